"""Read a review of the options one by one, which says of each whether it fits: "A: not oral. B: not oral. C: oral."

An item begins with an option, by letter or by text, where a line or a sentence begins. It is for its option or against
it by the last verdict in it ("fits", "✗", "ruled out"), or against it by a weaker word ("does not", "would show").
"""

from __future__ import annotations

import re
from typing import NamedTuple

from medrefl_utils.exam.answers.hints import is_complete
from medrefl_utils.exam.answers.options import Options
from medrefl_utils.exam.answers.text import clause_begin

_HEAD = re.compile(
    r"(?:\A|\n|(?<=[.;?!✓✔✅✗✘❌|])\s)[\s*_\"'(\[>#|•·→-]{0,8}(?:\d{1,2}[.)]\s)?(?P<mark>[✓✔✅☑✗✘❌✖×]?)[\s*_\"'(\[]{0,6}"
    r"(?:(?:[Oo]ption|[Cc]hoice|[Ss]tatement|[Aa]nswer)\s[\"'*(]{0,3})?(?=[^\W_])"
)
_LETTER_ENDS = re.compile(r"[\"'*_]{0,3}(?:[).:\]|,?–—-]|\s(?:[(–—=→|-]|[a-z])|[*_]{1,2})")
_TEXT_ENDS = re.compile(r"[\"'*_)\]]{0,4}(?:\s\([^()\n]{1,40}\))?[\"'*_]{0,3}\s?(?:[:?–—=→|,-]|\s[a-z]|\Z|\n)")
_ENDS = re.compile(
    r"\n\s*\n|\n(?=\W{0,4}[A-Z][a-z])|(?<=[.!?✓✔✅✗✘❌])\s(?=(?:So|Therefore|Thus|Hence|Overall|In summary)\b)"
)
# The signs of these patterns are matched in lower case.
_JUDGED = (
    r"correct|right|true|fits?|match|matches|explain|consistent|likely|best|answer|suitable|appropriate|indicated|"
    r"appl(?:y|ies)|support(?:ed)?"
)
_STOP = r"(?=\W{0,3}(?:\Z|\n|[.,;:!)|])|\s(?:as|at|because|since|by|with|in|for|here|and|given|that|the|this|of|due)\b)"
_VERDICT = re.compile(
    r"(?P<against>[✗✘❌✖×]|\b(?:no|incorrect|wrong|false|unlikely|excluded|eliminated|inconsistent|implausible|"
    r"contra-?indicated|(?:ruled|rules it|is|are) out|less (?:likely|consistent|probable|suitable|appropriate)|"
    rf"(?:not|no|never|hardly|neither|nor)\s(?:\w+\s){{0,2}}?(?:{_JUDGED})){_STOP}|"
    rf"n['’]t\s(?:\w+\s){{0,2}}?(?:{_JUDGED})\b)|"
    r"(?P<pro>[✓✔✅☑]|\b(?:yes|correct|true|right(?= answer| choice| option|\W{0,3}(?:\Z|\n|[.,;!]))|fits|matches|"
    r"consistent|(?:most|more|very|highly) (?:likely|probable|plausible|consistent|appropriate|suitable)|"
    r"best (?:choice|option|answer|fit|match|explanation|candidate)|(?:fits?|matches|explains(?: it| this)?) best|"
    r"the best\b(?=\W{0,3}(?:\Z|\n|[.,;!]))|must be the answer|as described|"
    r"explains? (?:all|everything|(?:the|this) (?:case|findings|picture|presentation)))\b)"
)
_AGAINST = re.compile(
    r"\b(?:no|not|none|never|neither|nor|cannot|without|lacks?|lacking|absent|would|unlikely|less|rarely|insufficient|"
    r"inadequate|contra-?indicated|dangerous|harmful|inappropriate|unnecessary|too|instead|incorrect|wrong|false|"
    r"excluded|eliminated)\b|n['’]t\b|[✗✘❌✖×]"
)


class Review(NamedTuple):
    """A review of the options: the letter that it leaves (None: undecided), and where its last item ends."""

    letter: str | None
    end: int


def review(text: str, low: str, options: Options) -> Review | None:
    """Return the review of a text; None where fewer than three options, or than all but one, have an item.

    A list that only repeats the options is an undecided review.

    Where each item has a share of 100% or a score of 10, the letter is the one with the highest. Else it is the only
    one with a verdict for it, where each option has an item, or something speaks against half of the others. Without
    such a verdict it is the only one that nothing speaks against, where each option has an item.
    A review that is truncated in its last item has none.
    """
    heads = _heads(text, options)
    letters = {letter for _, _, letter in heads}
    if len(letters) < max(3, len(options.letters) - 1) or len(letters) < len(heads):
        return None
    items: list[tuple[str, str]] = []
    end = 0
    for (begin, start, letter), following in zip(heads, [*heads[1:], None], strict=True):
        stop = following[0] if following else _last_end(text, start)
        items.append((letter, low[begin:stop]))
        end = stop
    if len(items) == len(options.letters) and (best := _highest(items)):
        return Review(best, end)
    verdicts = [_verdict(item) for _, item in items]
    if verdicts[-1] is None and not is_complete(text):
        return Review(None, end)
    pro = [letter for (letter, _), verdict in zip(items, verdicts, strict=True) if verdict]
    against = [
        letter for letter, item in items if letter not in pro and (_AGAINST.search(item) or _verdict(item) is False)
    ]
    whole = len(items) == len(options.letters)
    if len(pro) == 1:
        return Review(pro[0] if whole or 2 * len(against) >= len(items) - 1 else None, end)
    if not pro and len(against) == len(items) == len(options.letters) - 1:  # "... Only complete heart block shows it."
        return Review(next(iter(set(options.letters) - set(against))), len(text))
    left = [letter for letter, item in items if letter not in against and len(item.split()) > 3]
    return Review(left[0] if whole and not pro and len(left) == 1 == len(items) - len(against) else None, end)


_SCORE = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d{1,3})?)\s?(%|/\s?10\b)")


def _highest(items: list[tuple[str, str]]) -> str | None:
    """Return the option with the highest share or score, where each item has one: "A: 10%", "B: 9/10"."""
    scores: dict[str, float] = {}
    units: set[str] = set()
    for letter, item in items:
        found = _SCORE.findall(item)
        if len(found) != 1:
            return None
        scores[letter] = float(found[0][0])
        units.add(found[0][1][0])
    best = max(scores, key=scores.__getitem__)
    if len(units) > 1 or list(scores.values()).count(scores[best]) > 1:
        return None
    return best if units == {"/"} or 90 <= sum(scores.values()) <= 110 else None


def _heads(text: str, options: Options) -> list[tuple[int, int, str]]:
    """Return (begin, end of the option's name, letter) of each item; the last ones where a list of options precedes."""
    heads: list[tuple[int, int, str]] = []
    for head in _HEAD.finditer(text):
        at = head.end()
        named = options.text_at(text, at)
        if named and _TEXT_ENDS.match(text, named[1]):
            if not heads or heads[-1][2] != named[0] or at - heads[-1][1] > 4:  # "A. Aspirin" is one head
                heads.append((head.start(), named[1], named[0]))
        elif (end := _letter_end(text, at, options)) and _LETTER_ENDS.match(text, end):
            heads.append((head.start(), end, text[at]))
    repeated = len(heads) // 2
    if [letter for *_, letter in heads[:repeated]] == [letter for *_, letter in heads[repeated:]]:
        return heads[repeated:]
    return heads


def _letter_end(text: str, at: int, options: Options) -> int | None:
    """Return where the capital that begins an item ends. A verb of any kind may follow it: "C needs a scar"."""
    if not text[at].isupper():
        return None
    verb = text[at] not in "AEI" and options.alone.match(text, at) and text[at + 1 : at + 2] == " "
    return at + 1 if verb else options.letter_at(text, at)


def _last_end(text: str, at: int) -> int:
    end = _ENDS.search(text, at)
    return end.start() if end else len(text)


def _verdict(item: str) -> bool | None:
    """Return whether the last verdict of an item is for its option; None without one."""
    found = list(_VERDICT.finditer(item))
    return found[-1]["pro"] is not None if found else None


_BEFORE_HEAD = frozenset(
    ("", ". ", "? ", "! ", "; ", "- ", "* ", "• ", "**", ") ", ": ", "| ", "✗ ", "✓ ", "✔ ", "✅ ", "❌ ", "✘ ")
)


def may_review(text: str, letters: list[int], options: Options) -> bool:
    """Say whether enough options occur where an item may begin, by letter or by text: a fast test before ``review``."""
    found = {text[at] for at in letters}
    needed = max(3, len(options.letters) - 1)
    if len(found) >= needed:
        return True
    for name, letter in options.raw:
        if letter not in found:
            at = text.find(name)
            while at >= 0 and text[at - 1 : at] != "\n" and text[max(0, at - 2) : at] not in _BEFORE_HEAD:
                at = text.find(name, at + 1)
            if at >= 0:
                found.add(letter)
    return len(found) >= needed


_DENIED_HEAD = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|rules? out|ruled out|ruling out|exclud\w+|eliminat\w+|reject\w*|discard\w*|"
    r"dismiss\w*|doubt\w*|unlikely to be)\b|n['’]t\b)"
    r"(?:(?!\b(?:but|so|thus|therefore|hence|because|since|leav\w+|while|whereas|is|are|than)\b)[^.;:!?\n]){0,90}\Z"
)


# "A, B and D are wrong", "A and B do not fit": one verdict on several options.
_TOGETHER = re.compile(
    r"(?<![a-z])(?:[a-z][)\"'*]{0,3},\s){0,8}[a-z][)\"'*]{0,3},?\s"
    r"(?:and|&|or|nor)\s(?:option\s)?[\"'*(]{0,3}[a-z][)\"'*]{0,3}\s"
    r"(?:(?:are|were|can be|could be|have been|must be)\s(?:(?:all|both|also|clearly|thus|therefore)\s)?(?:incorrect|"
    r"wrong|false|out\b|ruled out|excluded|eliminated|unlikely|inappropriate|contra-?indicated|not\b|less\b)|"
    r"(?:do|would|can|could|are)(?:\snot|n['’]t)\b|cannot\b|fail\b)"
)


def eliminated(text: str, low: str, letters: list[int], wrong: set[str], options: Options) -> str | None:
    """Return the only option that a text does not deny, where it names each of the others and denies it."""
    if len({text[at] for at in letters}) < max(2, len(options.letters) - 1):
        return None
    denied, open_ = set(wrong), set()
    together = [said.span() for said in _TOGETHER.finditer(low)]
    for at in letters:
        if any(begin <= at < end for begin, end in together) or _DENIED_HEAD.search(low, clause_begin(low, at), at):
            denied.add(text[at])
        elif text[at] not in wrong and (text[at] != "A" or options.is_letter(text, at)):
            open_.add(text[at])
    left = set(options.letters) - (denied - open_)
    return left.pop() if len(left) == 1 and not left & open_ else None
