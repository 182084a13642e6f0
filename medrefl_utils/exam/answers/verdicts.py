"""Read verdicts on single options: "A is wrong. B is right.", "C: ✅", "(D) false", "C가 정답입니다"."""

from __future__ import annotations

import re

from medrefl_utils.exam.answers.languages import Rules, is_hypothetical
from medrefl_utils.exam.answers.options import Options
from medrefl_utils.exam.answers.text import IF, MARK_TAIL, PASSED, clause_begin, holds

# Verdicts in English, after a letter and perhaps its text.
_VERDICT_BETWEEN = re.compile(
    r"(?:'s\b|[\s*_\"'`)(\]\[|:.,—–=-]|→|=>|\b(?:is|was|seems|would be|stands out as|appears to be|appears|must be|"
    r"has to be|should be|looks|remains|are|the|a|clearly|definitely|also|therefore|option|choice|"
    r"answer|therefore|indeed|then|this|one|verdict|probably|quite)\b){0,12}+"
)
WRONG = re.compile(
    r"incorrect|wrong|false\b|no\b|not\b|n['’]t\b|cannot\b|can['’]t|unlikely|less\b|ruled out|excluded|eliminated|"
    r"inappropriate|contraindicated|too\b|"
    r"does(?:n['’]t| not)|would(?:n['’]t| not)|isn['’]t|implausible|irrelevant|❌|✗|✘|✖|×|🚫|least\b|least likely|"
    r"unrelated|improbable|out\b"
)
_RIGHT = re.compile(
    r"correct\b|right\b(?! (?:side|arm|ventric|atri|upper|lower|lung|heart|coronary|eye|ear|leg|bundle|hemi|colon|"
    r"adrenal|kidney))|true\b|"
    r"yes\b|fits\b|best\b|(?:most|more) (?:likely|appropriate|consistent|probable|suitable|plausible)|"
    r"likely\b(?=\s*(?:[.;,)\n]|\Z))|"
    r"only (?:option|choice|one|answer) (?:that|which|left)|matches\b|(?<=this one )is\b|(?<=answer)\Z|"
    r"✅|✓|✔|☑|only (?:safe|suitable|correct|appropriate|reasonable|sensible)\b|better\b|safer\b|safest\b|"
    r"preferable\b|comes? closest|appropriate\b|explains everything"
)
_IS_ANSWER = re.compile(
    r"\s?(?:is|was|remains|would be|must be)\s(?:(?!(?:initial|original|previous|earlier|old|former|second|"
    r"next)\b)\w+\s)"
    r"{0,2}?(?:answer|choice)\b"
)


def verdicts(
    text: str, low: str, letters: list[int], languages: list[Rules], options: Options
) -> tuple[str | None, set[str]]:
    """Return the one option that the text calls right: "A is wrong. B is right.", "C: ✅", "C가 정답입니다".

    None where two are called right, and where the verdict is under a condition or in a question. The second value
    holds the letters that are called wrong, and not right elsewhere.
    """
    right = _sole(text, low) & set(options.letters)
    wrong: set[str] = set()
    for at in letters:
        judged = _judged(text, low, at, languages, options)
        if judged is not None:
            (right if judged else wrong).add(text[at])
    return (right.pop(), wrong) if len(right) == 1 else (None, wrong - right)


# "Only C works.", "All but C can be excluded.", "D is not indicated; C is."
_FAILS = r"(?:wrong|incorrect|false|excluded|eliminated|ruled out|fails?\b|out\b|inappropriate|contra-?indicated)"
# A pattern that begins with plain letters is searched ten times faster than one that begins with a word's bound.
_ONLY = re.compile(
    r"only (?<!\wonly )(?:option |choice |answer )?[\"'*(]{0,3}(?=[a-z][)\"'*]{0,3}\s(?:works|fits|matches|remains|"
    r"applies|qualifies|makes sense|explains|satisfies|meets|is (?:correct|right|left|true|possible|plausible)|"
    r"can be (?:right|correct))\b)([a-z])"
)
_SOLE = re.compile(
    r"(?:\b(?:all|everything|every option|all (?:the )?(?:other )?options|anything) (?:but|except(?: for)?|other than) "
    rf"(?:option )?[\"'*(]{{0,3}}(?=[a-z][)\"'*]{{0,3}}\s(?:(?:is|are|can be|may be|must be) )?{_FAILS})|"
    rf"\b(?:except for|apart from) (?:option )?(?=[a-z],\s(?:all|every|no)\b[^.;]{{0,40}}{_FAILS})|"
    r"(?:\bnot\b|n['’]t\b)[^.;:\n]{0,60}[;,]\s(?:but\s|while\s)?(?:option\s)?"
    r"(?=[a-z]\s(?:is|does)[.!]?\s*(?:\Z|\n))|"
    r"\b[a-z]\sis\s(?:inferior to|worse than|not as (?:good|likely|suitable) as|less (?:likely|suitable|safe) than)\s"
    r"(?=[a-z][.!]?\s*(?:\Z|\n)))([a-z])"
)
_SOLE_WORDS = (
    *("all but ", "thing but ", "option but ", "options but ", "except", "other than ", "apart from "),
    *("inferior to", "worse than", "not as ", "less likely than", "less suitable than", "less safe than"),
)
_IS_LAST, _DOES_LAST = re.compile(r"is[.!]?\s*(?:\Z|\n)"), re.compile(r"does[.!]?\s*(?:\Z|\n)")


def _sole(text: str, low: str) -> set[str]:
    """Return the letters of options that a text calls the only one left."""
    found = {text[sole.start(1)] for sole in _ONLY.finditer(low)}
    if holds(low, _SOLE_WORDS) or _IS_LAST.search(low) or _DOES_LAST.search(low):
        found |= {text[sole.start(1)] for sole in _SOLE.finditer(low)}
    return found


_THIS_ONE = re.compile(r"[\s*_)\].:–—-]{1,6}this one is\b(?! (?:not|incorrect|wrong|unlikely))")
# "A would be right for arterial clots" speaks of another case.
_ELSEWHERE = re.compile(
    r"[^.;\n]{0,40}?\swould (?:only )?(?:be|have been)\s(?:[\w-]+\s){1,4}?(?:if|when|were|for|in|with)\b(?! (?:this|"
    r"these|the|her|his|him|our|my))"
)
_AT_FIRST = re.compile(
    r"\b(?:at first|at a first|on first|initially|originally)\b(?: (?:glance|sight|look))?[^.;\n]{0,24}\Z"
)
_JOINED_HEAD = re.compile(
    r"\b[a-z][\s)\"'*]{0,3}(?:,?\s(?:and|or)\s|&|/|\+)[\s(\"'*]{0,4}\Z|(?:options?|answers?|"
    r",)\s[(\"'*]{0,2}[a-z][)\"'*]{0,2},\s[(\"'*]{0,2}\Z"
)

# "Ob B oder C richtig ist", "si C es correcta": one of two, or whether it is; in the languages of ``words``.
_UNDECIDED_HEAD = re.compile(
    r"\b(?i:(?:ob|si|se)\s(?:(?:die|la|l'|a)\s?)?"
    r"(?:option|antwort|opción|respuesta|réponse|opção|resposta|opzione|risposta)?)\s?[(\"'*]{0,2}\Z|"
    # A capital letter: the Portuguese "e o C" is "and C".
    r"\b[A-Z][)\"'*]{0,2},?\s(?:oder|ou|o|u|или|أو|या|veya|ya da|hoặc)\s[(\"'*]{0,2}\Z|"
    r"[A-Z]\s?(?:或者?|还是|還是|または|か|또는|หรือ)\s?\Z"
)


def _judged(text: str, low: str, at: int, languages: list[Rules], options: Options) -> bool | None:
    """Return whether the words after a letter call it right or wrong; None if neither."""
    letter, end = text[at], at + 1
    for rules in languages:
        if rules.spaced and letter in "AEIO" and not options.is_letter(text, at):
            continue
        named = options.text_at(text, end)
        verdict = rules.verdict.match(low, named[1] if named else end)
        if verdict is None:
            continue
        begin = clause_begin(low, at)
        if is_hypothetical(low, begin, at, rules) or _asked(low, verdict.end()):
            return None
        if verdict["right"] and _UNDECIDED_HEAD.search(text, max(0, at - 20), at):
            return None
        denied = (
            verdict["no"]
            or rules.behind.match(low, verdict.end())
            or rules.denied_head.search(low, max(begin, at - 8), at)
        )
        return bool(verdict["right"]) and not denied
    named = options.text_at(text, MARK_TAIL.match(text, end).end())
    if named and named[0] != letter:
        return None
    between = _VERDICT_BETWEEN.match(low, named[1] if named else end).end()
    if (right := _RIGHT.match(low, between)) is None and not WRONG.match(low, between):
        right = _IS_ANSWER.match(low, end) or _THIS_ONE.match(low, end)
        if right is None:
            return _judged_at_end(text, low, at, options)
    if letter in "AEI" and not options.is_letter(text, at) and text[end : end + 2].strip() not in ("✅", "✓", "✔"):
        return None
    if WRONG.match(low, between) or "tempting" in low[between : between + 20]:
        return False
    begin = clause_begin(low, at)
    if _AT_FIRST.search(low, begin, at):
        return None
    if _ELSEWHERE.match(low, end):
        return None
    if _JOINED_HEAD.search(low, max(0, at - 12), at) or IF.search(low[begin:at]) or _asked(low, right.end()):
        return None
    return None if PASSED.search(low, max(begin, at - 50), at) else True


_ITEM_HEAD = re.compile(r"(?:\A|\n)[\s*_\"'(\[>#|•-]{0,8}(?:option\s)?\Z")
_LAST_WORD = re.compile(r"\b(?:(?P<right>yes|correct|right|true)|(?P<wrong>no|incorrect|wrong|false))\W{0,4}\Z")


def _judged_at_end(text: str, low: str, at: int, options: Options) -> bool | None:
    """Return the verdict that ends an item of a list ("C. Sucralfate: coats the ulcer, so yes.")."""
    if not _ITEM_HEAD.search(low, max(0, at - 20), at):
        return None
    stop = low.find("\n", at)
    stop = len(low) if stop < 0 else stop
    if options.alone.search(text, at + 1, stop):
        return None
    last = _LAST_WORD.search(low, max(at + 1, stop - 14), stop)
    if last is None or low[max(0, last.start() - 12) : last.start()].rstrip().endswith(("not", "n't", "be", "if")):
        return None
    return last["right"] is not None


def _asked(low: str, at: int) -> bool:
    stop = low.find("\n", at)
    stop = min(len(low), at + 60) if stop < 0 else min(stop, at + 60)
    rest = low[at:stop]
    ends = [rest.find(sign) for sign in ".!?。"]
    ends = [end for end in ends if end >= 0]
    return bool(ends) and rest[min(ends)] == "?"
