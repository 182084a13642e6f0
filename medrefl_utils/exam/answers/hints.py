"""Read a letter without an explicit statement: a lone letter, a label, a marked letter, one that is pointed at.

These rules count only where a text has no explicit statement (``statements``), or after one that was retracted.
Each rule reads nothing where it would have to choose between two options.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from medrefl_utils.exam.answers.opinions import is_opinion
from medrefl_utils.exam.answers.options import OPEN, Options
from medrefl_utils.exam.answers.refusals import is_review
from medrefl_utils.exam.answers.text import IF, MARK_TAIL, NOT, PASSED, SENTENCE_END, clause_begin, holds, lower
from medrefl_utils.exam.answers.verdicts import WRONG
from medrefl_utils.exam.answers.words import BARE, OTHERS

_MOST = "appropriate|probable|suitable|consistent|accurate|relevant|important|common|plausible|effective|useful|helpful"
CHOOSES = re.compile(
    rf"\b(?:answer|(?:most|more) (?:likely|probably|closely|directly|significant|expected|{_MOST})|best|correct|"
    r"closest|safest|preferred|leaving|therefore|thus|so,|hence|the right (?:drug|choice|answer|option|one|"
    r"treatment|diagnosis)|choose|chosen|choice|would be|should be|is likely|suggests?|indicates?|consistent with|"
    r"(?:speaks?|argues?|calls?) for|"
    r"(?:revis|chang|switch|amend|updat)\w{1,3} (?:(?:it|this|that|my \w+) )?to)\b|\bthen[.!]*\s*\Z"
)
_CHOICE_WORDS = tuple(
    (
        "answer|most |more |best|correct|the right |closest|safest|preferred|leaving|therefore|thus|so,|hence|"
        "cho|would be|should be|is likely|suggest|indicate|consistent with| for |revis|chang|switch|amend|updat"
    ).split("|")
)
_CHOSEN = re.compile(
    r"[^.,;\n]{0,80}?\s(?:is|as|remains|would be|seems)\s(?:the\s)?(?:most|best|correct|right|answer|preferred|"
    r"safest|superior)\b"
)
# A sentence without these words rejects nothing and retracts nothing.
_TURNS = tuple(
    (
        "prefer|better|superior|safer|"
        "not|n't|no |nor|never|neither|unlike|rather|instead|than|oppos|except|less|rul|exclud|eliminat|least|avoid|"
        "hardly|while|though|whereas|wrong|incorrect|tempting|false|but|however"
    ).split("|")
)
_TAKEN_BACK = re.compile(
    r"[^.,;\n]{0,80}?\s(?:(?:is|are|was|were|would be|seems?|can be|could be|being)\s(?:also\s|a\s|"
    r"therefore\s)?(?:not|incorrect|wrong|"
    r"less|unlikely|excluded|eliminated|ruled|tempting|false)|isn['’]t|wouldn['’]t|does\snot|doesn['’]t|would\snot|"
    r"cannot|can['’]t)\b",
    re.IGNORECASE,
)
_CONNECTED = re.compile(r"(?:^|[,:]\s|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|that|and|making)\s)$")
_IS_CHOSEN = re.compile(
    r"\s(?:is|would be|seems|remains)\s(?:the\s)?(?:most|best|correct|right|answer|preferred|safest|superior)\b"
)
_POINTED = re.compile(
    r"(?:\b(?:say|then|finally|ultimately|meant|definitely|clearly|probably|likely|surely|only|now|go for|vote for|"
    r"i think|i believe|i guess|"
    r"left with|(?:leaves|leaving) (?:us|me|you) with|leaves only|leaving only|toward|towards|guess:|pick:|leaves|"
    r"leaving|final:|it['’]s|it is|"
    r"it must be|it has to be|that['’]s|makes it|make it|making it|recommend|favou?rs?|must be|is|be|remains|hence|"
    r"therefore|thus|so|"
    r"should have (?:been|chosen|picked|selected|said|answered)|i have (?:chosen|picked|selected))|(?<=\n)=>)[,:]?\s"
    r"(?:option\s|choice\s)?[\"'“‘*(\[]{0,3}"
)
_REMAINS = re.compile(
    r"\s(?:(?:it is|remains|is left|is the only one left)\b[^\w]{0,3}(?:\Z|\s)|does[.!]\s*\Z|then[.!]{1,3}\s*(?:\Z|\n))"
)
_OPENS_CLAUSE = re.compile(r"(?:\A|\W|\b(?:so|then|thus|hence|therefore|but|only|and|option|choice)\s)[\"'*(]{0,3}\Z")
_ENDS_ALL = re.compile(r"(?::|→|=>|->|⇒)\s?[\"'*(\[]{0,3}\Z")
OTHER_LABEL = re.compile(
    r"\b(?:second|2nd|third|3rd|initial|first|1st|alternative|other|distractor|runner[- ]up|question|type|grade|group|"
    r"class|"
    r"stage|vitamin|hepatitis|factor|consider|next|step|example|note|e\.g)\b"
)
_GOES_ON_AFTER = re.compile(
    r"\b(?:the|an?|and|or|of|in|to|is|are|was|with|for|which|that|by|as|but|because|so|from|on|at|be|has|this)\s*\Z"
)
_LISTED = re.compile(r"[A-Z](?:\s?[,/|]\s?[A-Z]){2,}\b")
_UNSURE = re.compile(r"\b(?:could|might|may|perhaps|possibly|maybe)\b")
_DEPENDS = re.compile(r"\bdepends\b|(?<!proven )\botherwise\b")
_CONCLUDES = re.compile(r"(?:so|hence|therefore|thus|leaves|leaving|left with)\b")
_POINT_ENDS = re.compile(r"[\"'”’*)\]]{0,3}\s{0,2}(?:\Z|\n|[.,;!](?:\s|\Z)|\sas\sthe\s|\suntil\sproven\b)")
_BLANKS = " \n\"'“‘*([#>-•"
# "Option B is for hyperglycemia" is a sentence about B and chooses nothing.
_GOES_ON = re.compile(r"[\"'”’*)\]]{0,4}\s\(?[a-z]")
_WRONG_TO = re.compile(r"\b(?:wrong|incorrect|mistake|error)\b[^.;:]{0,20}\bto\b[^.;:]{0,20}\Z")
_OTHERS_SAY = re.compile(
    r"\b(?:some|many|others|people|students?|one (?:could|might|may)|you (?:could|might|may))\b[^.;:]{0,30}\Z"
)
_THOUGHT = re.compile(r"\b(?:was|were|is) (?:\w+ )?(?:thought|believed|assumed|said|felt)\b")
_OTHERS_ANSWER = re.compile(
    r"\b(?:many|most|some|students?|people|others?|nobody|no one|almost|nearly|wanted to|would have|"
    r"(?:was|were) (?:going|about|tempted|inclined) to)\s(?:[\w']+\s){0,3}"
    r"(?:answer|answered|choose|chosen|pick|picked|select|selected|option)\s[\"'“‘*(]{0,4}\Z"
)
_WRONG_HEAD = re.compile(r"\b(?:wrong|incorrect|false|mistaken?|trap|distractor|error|doubt)\b")
_MISTAKEN = re.compile(
    r"[^.;\n]{0,60}\b(?:but|however|though)\b[^.;\n]{0,30}\b(?:mistake|wrong|trap|error|incorrect|distractor)\b"
)
_JOINED = re.compile(r"[\"'”’*).,\s]{0,6}(?:and|or|and/or|&|/)\s{0,2}")
_ALSO = re.compile(
    r"[\"'”’*)\]]{0,4}\s(?:is|are|would be)\salso\s(?:an?|the|crucial|important|necessary|needed|required|"
    r"recommended)\b"
)
_NAMED_HEAD = re.compile(r"\b(?:option|choice|letter|answer)\s[\"'“‘*(]{0,4}\Z", re.IGNORECASE)
_MARKS = "\"'“‘*(["
_MARK_HEAD = re.compile(r"[\"'“‘*(\[]{1,4}\Z")
_LINE = re.compile(
    r"(?:\d{1,2}[.)]\s)?[\s*_\"'(\[{#>$✅✔→`=-]{0,8}[A-Za-z](?:[\s*_\"')\]}.,:!$`]{0,8}|\s{0,2}(?:</?s>|"
    r"<\|\w{2,20}\|>)\s{0,2})\Z"
)
_AROUND = " \t\n.!。*_`\"')]}>$\\✅"
_OPENING = re.compile(
    r"[\s*_\"'(\[:>#✅✔`-]{0,8}([A-Za-z])(?:\*{0,2}[):。]|\*{0,2}\.(?![\w.])|\*\*|`|\s(?=\(?(?:not|rather than|"
    r"instead of|"
    r"because|since)\b)|,\s(?=(?:because|since|given|as|I (?:think|believe|guess))\b))"
)
_LINE_LABEL = re.compile(
    rf"[\s*_#>-]{{0,8}}(?:(?:my|the|final|best|correct|right|chosen|selected)\s){{0,2}}(?:pick|correct|verdict|guess|"
    rf"selection|decision|"
    rf"conclusion|result|solution|response|prediction|{OTHERS})[\s*_]{{0,4}}[:=]|"
    rf"[\s*_#>-]{{0,8}}ans\b[\s*_]{{0,4}}(?:[.:=]|[-–—]\s)"
)
_BRACKET_ITEM = re.compile(r"[(\s]([A-Z])[).]\s")
_DENIES = re.compile(r"\b(?:no|not|non|nicht|pas|ne|não|не|nie|kein\w*|değil|không|never|n't)\b|n't|[?？]")
_ITEM = re.compile(r"(?:\A|\n|[.;|]\s{1,3})[\s*_\"'(\[>#|•-]{0,8}(?:[Oo]ption\s)?([A-Z])[)\].:*\s]")
_ENDED = re.compile(r"[.!?。！？।…)\]}\"'”’*`:$>✅❌✓✗|]\s*\Z")


class Found(NamedTuple):
    """What a rule read: the letter that is meant ("": several) and the letter that is written, if one is."""

    letter: str
    written: str | None = None


def lone(text: str, letters: list[int], options: Options) -> Found | None:
    """Return the letter of a line that is nothing else, or of a text that begins with "B." or "B)".

    Reads nothing where lines name different letters, where "A:" opens the answer's turn, and in a list of options.
    """
    lines: list[str] = []
    last_line = text.rstrip().rpartition("\n")[2]
    for at in letters:
        begin, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
        end = len(text) if end < 0 else end
        if end - begin <= 26 and _LINE.match(text, begin, end):
            lines.append(text[at])
    if len(set(lines)) == 1:
        return Found(lines[0], lines[0])
    if lines:
        before = text.rstrip().rpartition("\n")[0].rstrip().rpartition("\n")[2]
        final = _LINE.match(last_line) and not _LINE.match(before)
        return Found(lines[-1], lines[-1]) if final else None
    opening = _OPENING.match(text)
    if len(text) < 40 and not text[(at := OPEN.match(text).end()) + 1 :].strip(_AROUND) and options.letter_at(text, at):
        return Found(text[at].upper(), text[at].upper())
    if opening is None and len(text) < 60 and len(letters) == 1 and _is_bare(text, letters[0]):
        return Found(text[letters[0]], text[letters[0]])
    if opening is None or options.letter_at(text, opening.start(1)) is None:
        return None
    at = opening.start(1)
    value = options.one_at(text, at)
    if value is None or len({item[1] for item in _ITEM.finditer(text)} & set(options.letters)) > 1:
        return None
    if len({item[1] for item in _BRACKET_ITEM.finditer(text)}) > 2:
        return None
    turn = value.written == "A" and text[at + 1 : at + 2] == ":" and options.text_at(text, at + 2) is None
    later = pointed(text, lower(text), [other for other in letters if other > value.end], options)
    if later and later.letter != value.letter:
        return later
    wrong = WRONG.match(lower(text[: value.end + 20]), MARK_TAIL.match(text, value.end).end())
    wrong = wrong or re.match(
        r"[\s)\].:*—–-]{1,4}(?:in|not )?(?:wrong|incorrect|false|correct\b)", text[value.end : value.end + 16], re.I
    )
    return None if turn or wrong or _TAKEN_BACK.match(text, value.end) else Found(value.letter, value.written)


def _is_bare(text: str, at: int) -> bool:
    """Say whether a short text is an option's letter after words without content: "La D.", "C'est D.", "..., D."."""
    if text[at + 1 :].strip(_AROUND):
        return False
    words = lower(text[:at]).split()
    if text[:at].endswith(", "):
        return 0 < len(words) < 7 and not _DENIES.search(lower(text))
    return 0 < len(words) < 4 and all(word.strip("*\"'(") in BARE for word in words)


def labelled(text: str, options: Options) -> Found | None:
    """Return the letter after a label that is rarer than "Answer:": "My pick: C", "Correct: C", "Antwoord: C".

    Only the first and the last three lines are read, and only a letter that ends its line or precedes its text.
    """
    lines = text.split("\n")
    for line in [*reversed(lines[-3:]), lines[0]]:
        label = _LINE_LABEL.match(lower(line[:80]))
        if label and (value := options.value_at(line, label.end())) and value.written:
            return Found(value.letter, value.written)
    return None


def marked(text: str, low: str, letters: list[int], options: Options) -> Found | None:
    """Return the last marked letter (**B**, 'B', (B), option B, "B: its text") in a sentence that chooses.

    Without such a sentence, the only marked letter of a text that is not cut. "" where two are joined.
    """
    seen: dict[str, Found] = {}
    for label, chosen in _labels(text, low, letters, options):
        if chosen:
            return label
        seen[label.letter] = label
    return seen.popitem()[1] if len(seen) == 1 and is_complete(text) else None


def chosen(text: str, low: str, letters: list[int], options: Options) -> Found | None:
    """Return the last marked letter in a sentence that chooses; None where letters are joined."""
    label = next((label for label, chooses in _labels(text, low, letters, options) if chooses), None)
    return label if label and label.letter else None


def settled_later(text: str, low: str, options: Options) -> Found | None:
    """Return the last marked letter in a sentence that chooses, after a statement that named several options."""
    labels = _labels(text, low, options.alone_in(text), options)
    return next((label for label, chooses in labels if chooses and label.letter), None)


def pointed(text: str, low: str, letters: list[int], options: Options) -> Found | None:
    """Return the last letter that a sentence points at: "Hence C.", "It must be D"."""
    for at in reversed(letters):
        begin = clause_begin(low, at)
        begin = max(begin, low.rfind("; ", begin, at) + 2) if low.find("; ", begin, at) >= 0 else begin
        if _REMAINS.match(low, at + 1) and _OPENS_CLAUSE.search(low[begin:at]) and not re.search(NOT, low[begin:at]):
            return Found(text[at], text[at])
        if not _POINT_ENDS.match(text, at + 1):
            continue
        if (
            low[at - 2 : at] in (". ", "! ", "? ")
            and (low[max(0, at - 4) : at - 2].isalnum() or low[at - 3 : at - 2] in (")", '"', "'", "*"))
            and at > 3
            and not text[at + 1 :].strip(" .!*\n")
        ):  # "... only C coats the ulcer. C."
            return Found(text[at], text[at])
        points = list(_POINTED.finditer(low, max(0, at - 24), at))
        point = points[-1] if points else None
        if point is None and not text[at + 1 :].strip(_AROUND) and not OTHER_LABEL.search(low, begin, at):
            # "The Heinz bodies changed my mind: B."
            point = _ENDS_ALL.search(low, max(begin, at - 6), at)
        if point is None or point.end() != at:
            continue
        if _DEPENDS.search(low[begin : at + 40]) or _UNSURE.search(low, begin, at):
            return None
        if _CONCLUDES.match(point[0]):
            begin = point.start()
        if (
            re.search(NOT, low[max(begin, at - 40) : at])
            or _WRONG_HEAD.search(low, begin, at)
            or _OTHERS_SAY.search(low, begin, at)
            or _THOUGHT.search(low, begin, at)
            or is_opinion(low[begin:at])
            or IF.search(low[begin:at])
        ):
            return None
        value = options.value_at(text, at)
        return Found(value.letter, value.written) if value else None
    return None


def is_complete(text: str) -> bool:
    """Say whether a text ends like a finished sentence, or is one short phrase. A truncated text has not chosen yet."""
    if _ENDED.search(text[-40:]):
        return True
    return len(text) < 80 and ". " not in text and "\n" not in text.strip() and not _GOES_ON_AFTER.search(text)


def _labels(final: str, low: str, letters: list[int], options: Options) -> Iterator[tuple[Found, bool]]:
    """Yield (label, chosen) of each marked letter that is not rejected, last one first.

    Two letters joined by "and" or "or" are "". ``chosen``: the letter's sentence makes a choice.
    """
    letters = [at for at in letters if _may_mark(final, at, options)]
    while letters:
        begin, stop = _sentence_at(final, letters[-1])
        first = bisect_left(letters, begin)
        yield from reversed(list(_labels_of(final, low, begin, stop, letters[first:], options)))
        letters = letters[:first]


def _may_mark(final: str, at: int, options: Options) -> bool:
    """Say whether a letter can be a label, by its neighbours: a fast test before the test of its sentence."""
    if (at and final[at - 1] in _MARKS) or _NAMED_HEAD.search(final, max(0, at - 14), at):
        return True
    end = MARK_TAIL.match(final, at + 1).end()
    return ":" in final[at + 1 : end] or bool(_IS_CHOSEN.match(final, end)) or options.text_at(final, end) is not None


def _sentence_at(final: str, at: int) -> tuple[int, int]:
    """Return begin and end of the sentence around a position, at most 2,000 characters before it and 4,000 after it."""
    begin = before = max(0, at - 2_000)
    place, rfind = at, final.rfind
    for _ in range(40):
        place = max(
            rfind(".", before, place),
            rfind("\n", before, place),
            rfind("?", before, place),
            rfind("!", before, place),
            rfind("。", before, place),
        )
        if place < 0:
            break
        end = SENTENCE_END.match(final, place)
        if end and end.end() <= at:
            begin = end.end()
            break
    end = SENTENCE_END.search(final, at, at + 4_000)
    return begin, end.end() if end else min(len(final), at + 4_000)


def _chooses_from(low: str, begin: int, stop: int) -> int:
    """Return where a sentence begins to choose, its end if it does not. A search per word is faster."""
    first = stop
    for word in _CHOICE_WORDS:
        if begin <= (at := low.find(word, begin, first)) and (cue := CHOOSES.match(low, at)):
            first = cue.start()
    return first


def _is_passed(before: str, after: str) -> bool:
    """Say whether the words before an option reject it, or the words after it retract it."""
    return bool(PASSED.search(before) or _TAKEN_BACK.match(after) or _MISTAKEN.match(after))


def _labels_of(
    final: str, low: str, begin: int, stop: int, letters: list[int], options: Options
) -> Iterator[tuple[Found, bool]]:
    """Yield the labels of one sentence, in order."""
    sentence, cued_from = final[begin:stop], -1
    if IF.match(low, begin) or is_review(low, begin) or sentence.rstrip().endswith("?"):
        return
    turns = holds(low[begin:stop], _TURNS)
    last, last_end, done = "", 0, 0
    for at in (at - begin for at in letters):
        if at < done:  # inside the text of the option before it
            continue
        if listed := _LISTED.match(sentence, at):  # "one letter (A, B, C or D)"
            done = listed.end()
            continue
        head = _NAMED_HEAD.search(sentence, max(done, at - 14), at)
        head = head or _MARK_HEAD.search(sentence, max(done, at - 4), at)
        start, close = head.start() if head else at, MARK_TAIL.match(sentence, at + 1)[0]
        end = at + 1 + len(close)
        named = options.text_at(sentence, end)
        if head is None and not named:
            opens = ":" in close and not sentence[:start].strip()
            judged = _IS_CHOSEN.match(sentence, end) and _CONNECTED.search(sentence, max(0, start - 20), start)
            if (not opens or sentence[at] == "A") and not judged:
                continue
        if head and not close and not head[0][0].isalpha():  # 'A brief trial of ...'
            continue
        if head is None and named and sentence[at] == "A" and not close:  # the article of "A varfarina"
            continue
        letter, done = named or (sentence[at], end)
        if turns and _is_passed(low[max(begin, begin + start - 80) : begin + start], low[begin + done : stop]):
            continue
        if (
            head
            and head[0][0] in "aA"
            and (_OTHERS_ANSWER.search(low, begin, begin + at) or _WRONG_TO.search(low, begin, begin + at))
        ):
            continue
        if cued_from < 0:
            cued_from = _chooses_from(low, begin, stop) - begin
        joined = last not in ("", letter) and _JOINED.fullmatch(sentence, last_end, start)
        joined = joined or _ALSO.match(sentence, done)
        chosen = start > cued_from or bool(_CHOSEN.match(sentence, done))
        if chosen or sentence[:start].strip(_BLANKS) or not _GOES_ON.match(sentence, done):
            yield Found("" if joined else letter, sentence[at]), chosen
        last, last_end = letter, done


def denied_around(text: str, low: str, head: int, end: int) -> bool:
    """Say whether the words before or after a letter deny it: "not A", "A is wrong"."""
    begin = clause_begin(low, head)
    return bool(re.search(rf"{NOT}[^.;:,]{{0,30}}\Z", low[begin:head])) or bool(_TAKEN_BACK.match(text, end))
