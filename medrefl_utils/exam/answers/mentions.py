"""Read an answer that is only an option's text: "She needs vitamin D.", "Thus, B lymphocytes are the cause."

A sentence counts if it chooses. What it rejects, refuses or only mentions does not (``refusals``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from medrefl_utils.exam.answers.hints import CHOOSES, OTHER_LABEL, Found, is_complete
from medrefl_utils.exam.answers.languages import Rules
from medrefl_utils.exam.answers.options import Options
from medrefl_utils.exam.answers.refusals import has_cue, is_review, is_undecided, without_refusals
from medrefl_utils.exam.answers.text import IF, NOT, SENTENCE_END, holds, lower

_PASSED_CLAUSE = re.compile(
    rf"(?:{NOT}|\b(?:would|should|i'd|to) avoid\b):?(?:(?! but )[^.;:,]){{0,80}}|"
    r"(?<!\bi )(?<!\bwe )\bwould (?:suggest|indicate|point|favou?r|imply|support)\b[^.;,]{0,60}|"
    r"\b(?:no|without|maybe|perhaps|possibly)\s[^.;:,]{0,40}|"
    r",\s(?:whereas|unlike|in contrast to|as opposed to)\b[^.;]{0,120}|"
    r"\A\s*(?:while|although|though|unlike|whereas)\b[^,.;]{0,120},|\bif (?:it|this|he|she|there) were\b[^,.;]{0,60}",
    re.IGNORECASE,
)
_ORDERED_OFF = re.compile(
    r"\b(?:stop|avoid|hold|discontinue|withhold)\s(?:(?! and (?:start|begin|give|use|add|switch))[^.;:,]){0,40}",
    re.IGNORECASE,
)
# The same in other languages: "not A but", "B, not A".
_PASSED_ABROAD = re.compile(
    r"[^。、，,\s]{0,40}(?:では|で)なく、?|[^\s,]{1,30}(?:이|가) 아니라,?|"
    r"不是[^，,。]{0,40}[，,]?(?=而是)|而不是[^，,。]*|而非[^，,。]*|"
    r",?\s(?:y no|no|et non|et pas|non|pas|und nicht|nicht|e não|não|e non|а не)\s(?:de\s|por\s|d'|a\s)?"
    r"(?:un[ae]?\s|el\s|l[ae]\s|l'|d[ei][ernms]\s|eine?\w?\s|um\s|o\s)?[^\s,.;]{1,40}(?=[,.;]|\Z)",
    re.IGNORECASE,
)
_NOT_ABROAD = ("なく", "아니라", "不是", "而非", " no ", " non ", " pas ", " nicht ", " não ", " не ")
# A sentence that begins with an option and goes on with a verb describes it ("Ibuprofen is an NSAID").
_SUBJECT = re.compile(r"\W{0,6}(?:(?:step\s?)?\d{1,2}\s?[:.)]\s?)?\W{0,4}(?:the\s|an?\s)?", re.IGNORECASE)
_DESCRIBED = re.compile(
    r"[\"')*\]]{0,4}\s(?!(?:because|since|given|as|for|due|explains|fits|matches|accounts)\b|then\b|"
    r"(?:is|would be|remains|seems)\s(?:(?:therefore|thus|clearly|now|then|also|best|most|"
    r"strongly)\s)?(?:the\s)?(?:indicated|"
    r"recommended|needed|required|warranted|preferred|called for)\b(?!\s(?:in|for|if|when|against|only)\b(?! (?:this|"
    r"him|her|"
    r"these|here)\b))|"
    r"(?:is|would be|remains|seems)\s(?:the\s)?(?:most\s\w+\b|best\b|right\b|correct\b|(?:treatment|drug|test|"
    r"study) of choice\b|"
    r"next step\b|diagnosis\b|answer\b|cause\b|culprit\b|what\b)|(?:should|must|needs to|has to|ought to)\sbe\s"
    r"(?!considered|excluded|ruled|kept|avoided|suspected|checked|discussed|borne|noted|remembered))[a-z]"
)
_WENT_WRONG = re.compile(r"\b(?:went wrong|wrongly|by mistake|mistakenly|(?:wrong|worst) (?:thing|step|move))\b")
_REGRETS = re.compile(r"\b(?:wrong|mistake|error|overlook\w*|incorrect\w*)\b")
_BEFORE_NOT = re.compile(
    r"[^.,;\n]{0,60}?\b(?:is|are|was|were|can be|seems?)\s(?:ruled out|contraindicated|harmful|excluded|eliminated|"
    r"dismissed|rejected|"
    r"unlikely|incorrect|wrong|"
    r"out\b(?! of))\b|"
    r"[^.;,\n]{0,60}?\s(?:does not|do not|did not|would not|cannot|can't|doesn't|don't|wouldn't|isn't|is not|"
    r"are not)\b",
    re.IGNORECASE,
)
_NEGATES = re.compile(
    r"n['’]t\b|\b(?:not|cannot|unlikely|incorrect|wrong|excluded|eliminated|dismissed|rejected|ruled out|out|"
    r"contraindicated|harmful)\b"
)


def _backwards(final: str) -> Iterator[str]:
    """Yield the sentences, last one first. Those near the end are found first, since they usually decide."""
    near = SENTENCE_END.search(final, max(0, len(final) - 500))
    if near is None or len(final) < 1_000:
        yield from reversed(list(_sentences(final)))
        return
    yield from reversed(list(_sentences(final[near.end() :])))
    yield from reversed(list(_sentences(final[: near.end()])))


def _sentences(final: str) -> Iterator[str]:
    begin = 0
    for end in SENTENCE_END.finditer(final):
        yield final[begin : end.end()]
        begin = end.end()
    yield final[begin:]


def _negated(clause: re.Match[str]) -> str:
    """Return "not", which rejects what follows, or a comma where "and" begins a new clause."""
    return ", " if clause.string.startswith(" and ", clause.end()) and _WHOLE_VERDICT.search(clause[0]) else " not "


_WHOLE_VERDICT = re.compile(
    r"(?:contraindicated|harmful|excluded|eliminated|ruled out|incorrect|wrong|out)\Z", re.IGNORECASE
)


def _kept(sentence: str, options: Options) -> str:
    """Return a sentence without what it rejects; "" for a question, a hypothetical and a denial."""
    stripped = sentence.rstrip()
    low = lower(stripped)
    if stripped.endswith(("?", "？")) or IF.match(low) or _WENT_WRONG.search(low) or is_review(low, 0):
        return ""
    if _NEGATES.search(low):
        sentence = _BEFORE_NOT.sub(_negated, sentence)
    if holds(low, _NOT_ABROAD):
        sentence = _PASSED_ABROAD.sub(" ", sentence)
    if not any(_ORDERED_OFF.match(text) for text, _ in options.raw):  # "Stop metformin" may be an option
        sentence = _ORDERED_OFF.sub(" ", sentence)
    return _PASSED_CLAUSE.sub(" ", sentence)


def _choosing(final: str, languages: list[Rules], options: Options) -> Iterator[str]:
    """Yield the sentences that choose, without what they reject; last one first."""
    for sentence in _backwards(final):
        low = lower(sentence)
        if (
            CHOOSES.search(low)
            or (len(low) < 80 and _CHOSEN_SHORTLY.fullmatch(low))
            or any(
                rules.chooses.search(low) and not rules.condition.search(low) and not rules.negation.search(low)
                for rules in languages
            )
        ):
            yield _kept(sentence, options)


# "Carvedilol does.", after what the others do not do; "It is carvedilol."; "→ Carvedilol".
_CHOSEN_SHORTLY = re.compile(
    r"[\w ,'-]{3,40}\s(?:do|does|did|is|are|would|will|can|has|should)[.!*]*\s*|"
    r"(?:(?:it|this|that)(?:'s| is| must be)|final:|→|=>|->)\s[\w ,'()-]{3,60}[.!*]*\s*"
)
_COUNTERFACTUAL = re.compile(
    r"\swould be (?!(?:the|most|best|an?|my|indicated|appropriate|preferred|correct|right|better|safer|safest)\b)"
)
_SHORT = re.compile(r" (?:[a-z]{1,2}|[\d.,%/-]+|[ivx]+) ")
_ENDS_WITH = re.compile(
    r"(?:=|\bis|'s|\bmakes|\bequals)\s?(?:therefore\s|thus\s|then\s|about\s|approximately\s)?(?=[$\d.−-]+[\s.!*$%]*\Z)"
)
_TAIL = re.compile(r"[^:→\n]{20,}(?::|→|=>|->)\s{1,2}([^:→\n]{3,60})\Z")
_SUFFIX = re.compile(r"(\w{4,})(?:'?[dt][ıiuü]r)\b")


def by_text(text: str, languages: list[Rules], options: Options) -> tuple[Found, str] | None:
    """Return the one option that the last choosing sentence names, else the only option that a complete text names.

    Reads no option that is a number or as short as one, and nothing where several are named or the text is truncated.
    """
    short = {letter for option, letter in options.texts if _SHORT.fullmatch(option)}
    last = text.rstrip().rpartition("\n")[2].rpartition(". ")[2]
    if (options.every or options.no_one) and (said := set(options.named_in(last)) & {options.every, options.no_one}):
        return Found(said.pop()), "text"

    def named(sentence: str) -> list[str]:
        return [letter for letter in options.named_in(sentence) if letter not in short]

    if any(rules.language.code == "tr" for rules in languages):
        text = _SUFFIX.sub(r"\1", text)
    if stated := _whole_clause(text, options):
        return Found(stated), "text"
    for sentence in _choosing(text, languages, options):
        subject = options.text_at(sentence, _SUBJECT.match(sentence).end())
        if subject and _COUNTERFACTUAL.match(sentence, subject[1]):
            continue
        if named(sentence) and len(letters := named(without_refusals(sentence, options))) == 1:
            return Found(letters[0]), "text"
    kept = [_kept(sentence, options) for sentence in _sentences(text)] if len(text) < 12_001 else []
    everywhere = named(" ".join(kept))
    everywhere = everywhere and named(" ".join(without_refusals(sentence, options) for sentence in kept))
    if everywhere and is_undecided(text, options) and not _whole(text, everywhere[0], options):
        return None
    if (tail := _TAIL.search(text[-90:])) and (value := options.text_at(tail[1], 0)):
        whole = not tail[1][value[1] :].strip(" .!*") and not re.search(NOT, lower(tail[0]))
        if whole and kept and tail[1] in kept[-1] and not OTHER_LABEL.search(lower(tail[0])):
            return Found(value[0]), "text"
    if everywhere:
        settled = len(everywhere) == 1 and is_complete(text) and _is_settled(text, options)
        return (Found(everywhere[0]), "text") if settled else None
    if ends := _ENDS_WITH.search(text[-60:]):
        value = options.value_at(text[-60:], ends.end())
        if value and value.letter and not text[-60:][value.end :].strip(" .!*$\n"):
            return Found(value.letter), "text"
    if len(text) < 40 and (letters := options.named_in(text)):
        whole = _whole(text, letters[0], options) and options.named_in(without_refusals(text, options))
        return (Found(letters[0]), "text") if len(letters) == 1 and whole else None
    single = [text] if len(text) < 60 and len(text.split()) < 5 else []
    for sentence in [
        *single,
        *(without_refusals(kept, options) for kept in islice(_choosing(text, languages, options), 5)),
    ]:
        if len(text) < 60 and len(short := options.shortened(sentence)) == 1:
            return Found(short.pop()), "text"
        if len(near := options.nearly(sentence[-400:])) == 1:
            return Found(near.pop()), "misspelled"
    return None


# It begins with a set of signs, so that its search is fast. The text's own beginning is matched apart.
_CLAUSE_HEAD = re.compile(
    r"[.;:!\n,](?:(?<!,)\s|(?<=,)\s(?:so|but|and|thus|hence|therefore)\s)\W{0,3}(?P<article>the\s|an?\s)?",
    re.IGNORECASE,
)
_TEXT_HEAD = re.compile(r"\W{0,3}(?P<article>the\s|an?\s)?", re.IGNORECASE)
_CLAUSE_END = re.compile(r"\s(?:is|are) (?:true|right|correct)\b|\s(?:is|does)(?=[.!]|\Z)|(?=[.;!\n]|\Z)")


def _whole_clause(text: str, options: Options) -> str | None:
    """Return the one option whose text is a clause of its own ("...; the drug opens potassium channels."), or is called
    true, or is set against another ("Vitamin A is not the cause; vitamin C is.").
    """
    if not is_complete(text):
        return None
    said: set[str] = set()
    for head in (_TEXT_HEAD.match(text), *_CLAUSE_HEAD.finditer(text)):
        named = options.text_at(text, head.end())
        if named is None and head["article"]:
            named = options.text_at(text, head.start("article"))
        end = _CLAUSE_END.match(text, named[1]) if named else None
        if named and end and (end[0] or len(text[head.end() : named[1]].split()) > 3):
            said.add(named[0])
    return said.pop() if len(said) == 1 else None


def _whole(text: str, letter: str, options: Options) -> bool:
    """Say whether a short option opens the text: "yes", "No. The trial showed no effect."."""
    named = options.text_at(text, 0)
    return named is not None and named[0] == letter and text[named[1] : named[1] + 1] in ("", ".", ",", "!", "\n", ";")


def _is_settled(text: str, options: Options) -> bool:
    """Say whether a text does more than describe the option that it names ("Ibuprofen is an NSAID")."""
    for sentence in (without_refusals(_kept(sentence, options), options) for sentence in _sentences(text)):
        if not options.named_in(sentence) or _REGRETS.search(lower(sentence)):
            continue
        subject = options.text_at(sentence, _SUBJECT.match(sentence).end())
        if not has_cue(sentence):
            continue
        if subject is None or not _DESCRIBED.match(sentence, subject[1]):
            return True
    return False
