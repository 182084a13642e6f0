"""Find explicit statements of an answer in English: boxes, "Answer: B", "the answer is B", "I choose B".

Each statement has a stance. ``asserted``: it says what the answer is. ``denied``: it says what the answer is not.
``supposed``: it is under a condition, in a question, or an opinion that is only reported. ``doubtful``: a "may be", or
a "would" under a circumstance ("in renal failure I would choose B"), which counts only where nothing else is stated.
``unreadable``: it states an answer that is no option, or that the rules cannot read; nothing before it is then read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from medrefl_utils.exam.answers.opinions import is_opinion, is_trial
from medrefl_utils.exam.answers.options import OPEN, TAKEN_BACK, Options, Value
from medrefl_utils.exam.answers.text import clause_begin, holds, lower, sentence_end

ASSERTED, DENIED, SUPPOSED, DOUBTFUL, UNREADABLE = "asserted", "denied", "supposed", "doubtful", "unreadable"


class Statement(NamedTuple):
    """An explicit statement: where it begins and ends, the letter it names ("": several or none), rule and stance.

    ``label``: it has the form of a final answer ("Answer: B", a box, JSON) and not of a sentence.
    """

    at: int
    end: int
    letter: str
    written: str | None
    rule: str
    stance: str = ASSERTED
    label: bool = False


# --- English: the words that statements contain, and the words before and after them (matched in lower case) ---
_CUES = ("answer", "option", "choice", "box", "choos", "select", "pick", "o with", "ing with", "prefer")
_BOX = re.compile(r"(?<=\\)box(?:ed)?\s?\{|(?<=\\f)box\s?\{")
_BOX_BEFORE = re.compile(r"\\boxed\{([^{}]{1,40})\}[$\s]{0,4}(?:and|or|,|&|/)?[$\s]{0,4}\\f?box(?:ed)?\s?\{\Z")
_NOT_BOXED = re.compile(r"(?:\b(?:not|never|rather than|instead of)|n['’]t)[\s$\\(\[*]{1,8}f?box(?:ed)?\s?\{\Z")
_CHOOSE = re.compile(
    r"(?:(?<!\w)(?:choos(?:e|ing)|select(?:ing)?|pick(?:ing)?|prefer)|(?<=\bg)o with|(?<=\bgo)ing with)\b(?!ed)"
)
_RANKED = tuple(
    f"{word} "
    for word in (
        "correct",
        "best",
        "right",
        "final",
        "appropriate",
        "closest",
        "suitable",
        "likely",
        "selected",
        "chosen",
        "my",
    )
)
_INCORRECT = ("incorrect ", "inappropriate ", "unsuitable ", "unlikely ")
_DENYING = tuple(
    (
        "not|n't|never|cannot|unlikely|wrong|incorrect|false|doubt|hardly|mistake|error|trap|avoid|least|neither|"
        "tempt|rather|"
        "instead|worst|hard to"
    ).split("|")
)
_OPENS_CONDITION = re.compile(r"\W{0,6}(?:were|had|should|(?:could|might|would|is) (?:the|it)) ")
_CONDITIONAL = (
    "if",
    "suppos",
    "assum",
    "imagin",
    "let's say",
    "unless",
    "provided",
    "hypothet",
    "why not",
    "when would",
)
_LABEL = re.compile(
    r"(?:answers?|option|choice|letter|ans|final)(?![^\W_])(?:\s(?:choice|option|letter))?(?:\s?\([^()\n]{1,24}\))?"
    r"(?:[\"'”*_`\]\s]{0,4}(?:[:=→]|[-–—]\s|\.\s(?<=ns\.\s))|[\"'”*_`]{0,3}\]\s?:?|\*\*\s(?=\S))|answer[\w_]{0,8}>"
)
_SENTENCE = re.compile(
    r"\w{6}s?\b(?:,?\s(?!(?:is|isn't|not|cannot|can't|should|would|must|may|might|"
    r"could)\b)[\w'’-]{1,24}){0,10}?(?:,?\s|(?='s))"
    r"(?P<copula>(?:'s|is|isn['’]t|are|cannot|can['’]t|can|should|shouldn['’]t|would|wouldn['’]t|must|may|might|"
    r"could|will)\b"
    r"(?:\s(?:certainly|possibly|clearly|definitely|most|likely|probably|therefore|then|thus|also|surely))?"
    r"(?:\s(?:not|never))?(?:\sbe\b)?)"
)
_CHANGED = re.compile(r"answer(?:\sfrom\s[^.\n]{1,40}?)?\sto\s")
_CHANGES = re.compile(r"\b(?:chang|switch|revis|correct|updat|amend)\w{0,4}\s(?:my|the)\s(?:final\s|initial\s)?\Z")
_HEADING = re.compile(r"[#*_\s>]{0,12}(?:the\s|my\s)?(?:final\s|correct\s|best\s)?\Z")
_FILLER = re.compile(
    r"(?:(?:the|an?(?=\s(?:option|choice|answer))|most|likely|probably|best|correct|right|final|answer|option|choice|"
    r"letter|"
    r"is|be|would|indeed|definitely|clearly|closest|therefore|thus|so|text|textbf|mathbf|mathrm|boxed|given|about|"
    r"approximately|"
    r"around|roughly|both|either|drug|statement|item|alternative|indicated by|as follows|number|"
    r"stage(?=\s\())\b[\s\"'“”‘’`*_(\[{:,\\>]{1,6}){1,8}+"
)
_NOT_HERE = re.compile(
    r"\b(?:not|never|cannot|n['’]t|isn['’]t|can['’]t|shouldn['’]t|wouldn['’]t|hardly|unlikely|neither|nor|no longer|"
    r"(?:any|every)thing (?:but|except)|all (?:but|except)|other than|far from)\b"
)
_DENIED_HEAD = re.compile(
    r"(?:\b(?:not|never|cannot|unlikely|wrong|incorrect|false|doubt|hardly|mistake|error|trap|avoid|least|neither|"
    r"tempt\w*|"
    r"rather than|instead of|worst|hard to see|hard to believe)|n['’]t)\b(?:(?!\b(?:so|thus|therefore|hence|but|"
    r"making|because|since|"
    r"as)\b)[^,.;:!?\n]){0,40}\Z"
)
_EARLIER_HEAD = re.compile(
    r"\b(?:first|initial|initially|original|previous|earlier|preliminary|alternative|alternate|other|"
    r"second(?:[- ]best)?|2nd|3rd|third|next[- ]best|"
    r"rejected|wrong|incorrect|student'?s?|their|his|another)[\s_-]{1,2}(?:answer|choice)?\s?\Z"
)
OTHERS_HEAD = re.compile(
    r"\b(?:nobody|no one|many|most|some|few|students?|people|others?|someone|candidates?|examinees?|they|clinicians|"
    r"doctors|test[- ]takers?|"
    r"one (?:might|may|could)|you (?:might|may|could)|tempt\w*|common\w*|easy to|error|mistake|trap|was going to|"
    r"were to|"
    r"initially|at first|first|almost|reason(?:s)? to|when to|how to|wrong to)\b"
    r"(?:(?!\b(?:but (?:i|we)|now|however)\b)[^.;:!?\n]){0,50}\Z"
)
# "Heparin first, then warfarin" names two options in order.
_IN_ORDER = re.compile(
    r"[\"'”*)\]]{0,4},?\s(?:first\b|(?:and\s)?(?:then|later|subsequently|followed by|before|after)\b)"
)
_MAY_BE = re.compile(r"(?:could|might|may)\b")
_BUT_BEHIND = re.compile(r"[^.!?\n]{0,60}?\b(?:but|or|however|yet)\b")
_CHOOSER = re.compile(
    r"(?:\b(?:i|we|i['’]d|i['’]ll|i['’]m|we['’]d|we['’]ll|we['’]re|let['’]s|let us|let me|should|must|will|"
    r"would)\b[^.;:!?\n]{0,40}|"
    r"(?:\A|[,:\n])\W{0,6}(?:so|thus|therefore|hence|then|now|finally|please|accordingly|"
    r"step \d+)?[,:]?\s{0,2}(?:go?)?)\Z"
)
_CONDITION = re.compile(
    r"\bif\b(?! (?:we|you|i|one) (?:look|consider|think|compare|review|go|take|had to|have to|must)|"
    r" (?:i (?:am|was|were) )?(?:forced|pressed))|"
    r"\b(?:suppos(?:e|ing)|assum(?:e|ing)|imagine|let['’]s say|unless|provided that|hypothetically|why not|"
    r"when would)\b"
)
_CIRCUMSTANCE = re.compile(
    r"\b(?:in|with|for|under|without|had)\s(?!this|these|those|the\s(?:given|above|present|current|case|end|"
    r"question)|my|our|"
    r"conclusion|summary|short|view|light|general|order|addition|all|such|that|mind|any|fact|her|his|him|their|me|"
    r"which)\w|\binstead\b"
)
ASKED = re.compile(
    r"[\"'”*)\].\s]{0,4}\?|\s?吗|\s?か[?？]|[^.!\n]{0,60}\?\s{0,3}(?:no|not|hmm|perhaps|maybe|\Z|\n|but|let)"
)
_IF_BEHIND = re.compile(r"[^.!?\n]{0,24}?\b(?:if|unless|in case|provided)\b")
_WHEN_HEAD = re.compile(r"\W{0,6}(?:when|whenever|in case)\b(?! (?:we|i|you)\b)")
_WHEN_BEHIND = re.compile(
    r"[\s\"'*)]{0,4}(?:(?:if|when|whenever|in case|only if)\b|(?:for|in)\b(?! (?:this|these|the|my|our|now)))"
)
_SETTLED = re.compile(
    r"[\"'”*)\].\s]{0,4}\?[^\w\n]{0,6}(?:no|nope|not really|rather|wait|actually)\b[,.:;!\s—–-]{0,4}(?:wait,?\s|"
    r"actually,?\s)?",
    re.I,
)
_BUT = re.compile(
    r"[^.!?\n]{0,60}?(?:[,;]?\s?\bbut(?:\srather|\sinstead)?|[,;]?\s?\brather|[,;]?\s?\binstead|;|,)\s(?:it['’]s\s|"
    r"it is\s|it should be\s|the answer is\s|"
    r"is\s|rather\s|instead\s)?"
)
_POINTER = re.compile(
    r"\b(?:is|be|it['’]s|choose|say|pick|select|give|with|options?|answer|leaving|leaves|left with|certainly|"
    r"definitely|clearly|probably|surely|so|therefore|hence|"
    r"thus|has|namely|"
    r"to|as|not [a-z],? but)\s[\"'“‘*(\[]{0,3}"
)
_LAST = re.compile(r"(?:(?:(?<!\b[A-Z]),|[;:–—])\s[\"'(*\[]{0,3}|\s[(\[])([A-Z])[\"')*\].!\s]{0,4}\Z")
_CALLED_BEST = re.compile(
    r"\b[a-z](?=\s(?:is|would be|seems|fits)\s(?:the\s)?(?:best|correct|right|most|answer|appropriate)\b)"
)
_PASSED = re.compile(
    r"(?:\b(?:not|never|rules? out|ruled out|ruling out|exclud\w+|eliminat\w+|unlike|rather than|instead of|"
    r"other than|no longer|"
    r"nor|neither)|n['’]t)\b[^.,;:]{0,60}"
)


def prose(text: str, begin: int, end: int, options: Options) -> Value | None:
    """Return what a phrase in place of a letter chooses: "I think it is C", "rules out C, leaving D", "a CT scan".

    None where the phrase names no option. ``Value.letter`` is "" for several.
    """
    phrase = text[begin:end]
    low = lower(phrase)
    kept = _PASSED.sub(lambda passed: " " * len(passed[0]), low)
    found = None
    for pointer in _POINTER.finditer(kept):
        if options.alone.match(phrase, pointer.end()) and options.is_letter(phrase, pointer.end()):
            found = options.value_at(phrase, pointer.end()) or found
    if found:
        return found._replace(end=begin + found.end)
    if (last := _LAST.search(phrase)) and options.letter_at(phrase, last.start(1)):
        return Value(last[1], last[1], begin + last.end(1))
    for judged in _CALLED_BEST.finditer(kept):
        if options.alone.match(phrase, judged.start()):
            return Value(phrase[judged.start()], phrase[judged.start()], begin + judged.end())
    named = options.named_in(kept)
    if named:
        return Value(named[0] if len(named) == 1 else options.joined(named), None, end)
    if len(phrase.split()) <= 14:
        for near in (options.described(kept), options.shortened(kept), options.nearly(kept)):
            if len(near) == 1:
                return Value(near.pop(), None, end)
    return None


def _boxed(text: str, at: int, options: Options) -> Statement | None:
    """Return the statement of a box: a letter, a letter and its text, or an option's text. A formula is no answer."""
    if (before := _BOX_BEFORE.search(text, max(0, at - 90), at)) and (one := options.value_at(text, before.start(1))):
        other = options.value_at(text, at)
        if other and other.letter != one.letter:
            return Statement(at, other.end, "", None, "boxed", label=True)
    start = OPEN.match(text, at).end()
    stance = DENIED if _NOT_BOXED.search(lower(text[max(0, at - 40) : at])) else ASSERTED
    if named := options.text_at(text, start):
        rest = text[named[1] : named[1] + 1]
        value = options.value_at(text, start) if rest in "} \n,.)$\\&/" else None
    else:
        value = options.value_at(text, start)
    if value is None and (filler := _FILLER.match(lower(text[start : start + 60]))):
        value = options.value_at(text, start + filler.end())
    if value is None:
        stop = text.find("}", start)
        words = re.search(r"[^\W\d_]{3,}", text[start : stop if stop >= 0 else start + 60])
        return Statement(at, start, "", None, "boxed", UNREADABLE, True) if words else None
    return Statement(at, value.end, value.letter, value.written, "boxed", stance, True)


def _value(text: str, low: str, at: int, options: Options) -> Value | None:
    at = OPEN.match(text, at).end()
    value = options.value_at(text, at)
    if value is None and (filler := _FILLER.match(low, at)):
        value = options.value_at(text, filler.end())
    return value


def _turned(text: str, low: str, end: int, options: Options) -> Value | None:
    """Return the option after a denied one: "not A but C", "it isn't A, it's C"."""
    but = _BUT.match(low, end)
    return _value(text, low, but.end(), options) if but else None


def _is_ranked(head: str) -> bool:
    return head.endswith(_RANKED) and not head.endswith(_INCORRECT)


def _is_asked(low: str, end: int) -> bool:
    near = low[end : end + 66]
    return holds(near, ("?", "吗", "か")) and ASKED.match(near) is not None


def _stance(low: str, at: int, end: int, copula: str) -> str:
    """Return the stance of a statement at a position, by its sentence."""
    head = low[clause_begin(low, at) : at]
    near = head[-64:]
    if (holds(near, _DENYING) and _DENIED_HEAD.search(near)) or _EARLIER_HEAD.search(near[-32:]):
        return DENIED
    if (holds(head, _CONDITIONAL) and _CONDITION.search(head)) or _OPENS_CONDITION.match(head) or _is_asked(low, end):
        return SUPPOSED
    if ("would" in copula and _IF_BEHIND.match(low, end)) or (copula == "choose" and _WHEN_BEHIND.match(low, end)):
        return SUPPOSED
    if is_opinion(head) or is_trial(low, end):
        return SUPPOSED
    if _MAY_BE.match(copula):
        return SUPPOSED if _BUT_BEHIND.match(low, end) else DOUBTFUL
    if "would" in copula and _BUT_BEHIND.match(low, end) and "textbook" in head:
        return SUPPOSED
    if "would" in copula and _CIRCUMSTANCE.search(head):
        return DOUBTFUL
    return ASSERTED


def english(text: str, low: str, options: Options) -> Iterator[Statement]:
    """Yield the explicit statements in English and in LaTeX or markup, last one first."""
    # Most statements are near the end: the words are looked for there first.
    end, rfind = len(low), low.rfind
    for begin in (max(0, end - 500), 0) if end > 500 else (0,):
        where = {cue: at for cue in _CUES if (at := rfind(cue, begin, end + len(cue) - 1)) >= 0}
        while where:
            cue = max(where, key=where.get)
            at = where[cue]
            if statement := _at_cue(text, low, cue, at, options):
                yield statement
            where[cue] = low.rfind(cue, begin, at)
            if where[cue] < 0:
                del where[cue]
        end = begin


def _at_cue(text: str, low: str, cue: str, at: int, options: Options) -> Statement | None:
    if cue == "box":
        box = _BOX.match(low, at)
        return _boxed(text, box.end(), options) if box else None
    if cue in ("choos", "select", "pick", "o with", "ing with", "prefer"):
        return _choice(text, low, at, options)
    before = low[at - 1 : at]
    if before.isalnum():
        return None
    if cue != "answer" and not _is_ranked(low[max(0, at - 14) : at]):
        return None
    label = _LABEL.match(low, at)
    if label and (label[0][-1] != ">" or before in "<_"):
        return _labelled(text, low, at, label.end(), options)
    if (changed := _CHANGED.match(low, at)) and _CHANGES.search(low, max(0, at - 24), at):
        value = _value(text, low, changed.end(), options)
        return Statement(at, value.end, value.letter, value.written, "stated") if value else None
    sentence = _SENTENCE.match(low, at)
    if sentence:
        return _sentence(text, low, at, sentence, options)
    return _headed(text, low, at, options) if cue == "answer" else None


def _labelled(text: str, low: str, at: int, end: int, options: Options) -> Statement | None:
    """Read "Answer: B": its value, a phrase that chooses, or an answer that no rule reads."""
    stance = _stance(low, at, end, "")
    if stance == DENIED:
        return None
    value = _value(text, low, end, options)
    if value and value.written is None and re.search(r"(?<!\w)[^\W\d_]\Z", text[at : value.end]):
        return None  # "Answer: X", as the instruction says, where an option's text is "X"
    if value is None:
        start = OPEN.match(text, end).end()
        stop = text.find("\n", start)
        stop = len(text) if stop < 0 else stop
        if "\n" in text[end:start] or not text[start:stop].strip(" \t*_.<>/"):
            return None  # nothing follows the label
        stop = min(stop, start + 300)
        negated = _NOT_HERE.match(low, start)
        value = _turned(text, low, negated.end(), options) if negated else None
        value = value or prose(text, end, stop, options)
        if value is None:
            return Statement(at, stop, "", None, "stated", UNREADABLE, True)
        return Statement(at, value.end, value.letter, value.written, "stated", label=True)
    return _settled(text, low, Statement(at, value.end, value.letter, value.written, "stated", stance, True), options)


def _settled(text: str, low: str, statement: Statement, options: Options) -> Statement:
    """Return a statement, or what its own question settles on ("Answer: C? No, B.")."""
    if statement.letter and _IN_ORDER.match(low, statement.end):
        rest = text[statement.end : sentence_end(text, statement.end)]
        named = {*options.named_in(rest), *(rest[at] for at in options.alone_in(rest))}
        if named - {statement.letter}:
            return statement._replace(letter="", written=None)
    settled = _SETTLED.match(low, statement.end)
    if settled and (value := _value(text, low, settled.end(), options)):
        return statement._replace(end=value.end, letter=value.letter, written=value.written, stance=ASSERTED)
    if settled or _is_asked(low, statement.end):
        return statement._replace(stance=SUPPOSED)
    return statement


def _sentence(text: str, low: str, at: int, sentence: re.Match[str], options: Options) -> Statement | None:
    """Read "The answer is B": the value after the copula, or the only option that the rest of the sentence names."""
    end, copula = sentence.end(), sentence["copula"]
    if options.letters and options.alone.search(text, at, sentence.start("copula")):
        return None  # "Answer A is an antiplatelet" is about A
    start = OPEN.match(text, end).end()
    denied = _NOT_HERE.search(copula) or _NOT_HERE.match(low, start)
    value = _value(text, low, _NOT_HERE.match(low, start).end() if _NOT_HERE.match(low, start) else end, options)
    if denied:
        turned = _turned(text, low, value.end if value else start, options)
        if turned is None:
            letter = value.letter if value else ""
            return Statement(at, value.end if value else end, letter, None, "stated", DENIED)
        return Statement(at, turned.end, turned.letter, turned.written, "stated")
    if value is None and sentence.start("copula") <= at + 8:  # "the answer is cranial nerve X"
        value = prose(text, start, sentence_end(text, start), options)
        value = value if value and value.letter else None
    if value is None:
        return None
    if value.letter and TAKEN_BACK.match(text, value.end):
        return Statement(at, value.end, value.letter, value.written, "stated", DENIED)
    return _settled(
        text,
        low,
        Statement(at, value.end, value.letter, value.written, "stated", _stance(low, at, value.end, copula)),
        options,
    )


def _headed(text: str, low: str, at: int, options: Options) -> Statement | None:
    """Read "## Answer" on a line of its own, and the value on the next line that is not blank."""
    line_end = low.find("\n", at)
    begin = low.rfind("\n", 0, at) + 1
    if line_end < 0 or low[at + 6 : line_end].strip("s*_# :\t") or not _HEADING.match(low[begin:at]):
        return None
    value = options.value_at(text, line_end)
    return Statement(at, value.end, value.letter, value.written, "stated", label=True) if value else None


def _choice(text: str, low: str, at: int, options: Options) -> Statement | None:
    """Read "I choose B", "let's go with B", "choose B" at a sentence's start; not "many choose B"."""
    choose = _CHOOSE.match(low, at)
    if choose is None:
        return None
    head = low[clause_begin(low, at) : at]
    if OTHERS_HEAD.search(head) or not _CHOOSER.search(head):
        return None
    if _WHEN_HEAD.match(head):
        return None
    if choose[0].endswith("ing") and not head.strip():  # "Choosing A would be an error."
        return None
    value = _value(text, low, choose.end(), options)
    if value is None or TAKEN_BACK.match(text, value.end):
        return None
    stance = _stance(low, at, value.end, "would" if "would" in head or "'d" in head else "choose")
    return Statement(at, value.end, value.letter, value.written, "stated", stance)
