r"""Cuts a model's text into reasoning steps: the one place that decides where a step ends.

A step is a line, a paragraph or a sentence, as the parameter ``steps`` says (ours). Text that says nothing by itself is
no step: blank lines, headings ("## Thinking", "**Answer:**", a lone "Step 1:"), code fences, rules, and marks of
thinking ("<think>"). Such text belongs to the step that follows it; at the end of a text, to the step before it.

``step_end`` works on a text that still grows. Its result never changes when more text follows, so that a generator
that looks at each token and one that reads a whole reply cut at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

STEP_KINDS = ("line", "paragraph", "sentence")

SIGNS = {"line": "\n", "paragraph": "\n", "sentence": "\n.!?。！？"}
"""By kind: a text in which none of these characters occurs holds no complete step."""

SERVER_STOPS = {"line": "\n", "paragraph": "\n\n", "sentence": "\n"}
"""By kind: a text after which a server may stop. It may come too early, after a heading; ``step_end`` says so."""

# --- lines that say nothing by themselves ---
_MARK = re.compile(r"<[^<>\n]{1,40}>|\|[a-z_]{3,20}\|?>|\[/?[A-Za-z_]{3,20}\](?!\()|◁/?\w{1,20}▷|【[^】\n]{1,12}】")
_FENCE = re.compile(r"\s*(?:```|~~~)\s*\w*\s*")
_HASHED = re.compile(r"\s{0,9}#{1,6}(?!#)\s*(.*?)[\s#]*")
_BOLD = re.compile(r"\s*(?:[-*+•]\s+)?(\*\*|__)(?!\s)((?:(?!\1).){1,100})\1\s*[:：]?\s*")
_LABEL = re.compile(r"\s*(?=\S)(?:[^.!?。！？\n]|(?<=\d)\.){1,60}[:：][\s*_`]*")
_NUMBER = re.compile(
    r"\W*(?:(?:step|schritt|étape|paso|passo|шаг|步骤)\s*\d{1,3}|第\s*\w{1,3}\s*步|\d{1,3}[.)])\W*", re.IGNORECASE
)
_TITLE = re.compile(
    r"(?:(?:my|the|your|internal|final|correct|best|overall|detailed|brief|clinical|assistant)\s?){0,3}"
    r"(?:thinking(?: process)?|done thinking|thoughts?(?: process)?|reasoning(?: process)?|analysis|commentary|"
    r"final|assistant|answer|response|reply|output|conclusion|explanation|rationale|solution|summary|"
    r"思考过程|思考|推理过程|推理|分析|结论|答案|回答|最终回答|最终答案|最终回复|最終回答|最終的な回答|결론|답변|정답)",
    re.IGNORECASE,
)
_ANSWER_WORD = re.compile(
    r"answer|response|conclusion|solution|choice|antwort|lösung|réponse|respuesta|resposta|risposta|ответ|答案|回答|回复|정답|답변",
    re.IGNORECASE,
)
_ANSWERED = re.compile(rf"(?:{_ANSWER_WORD.pattern})(?:[^\w\n]{{0,4}}[:：]|\W{{1,3}}is\b).*\w", re.IGNORECASE)
_OPTION = re.compile(r"\W*[A-Z](?:\W|$)")

# --- sentences ---
_SENTENCE_END = re.compile(
    r"(?P<latin>[.!?]+[\"'”’»)\]*_]*)[ \t]+(?P<next>\S)|[。！？]+[”」』）)\"*]*(?=[^。！？”」』）)\"*\n])"
)
_LAST_WORD = re.compile(r"(?:[^\W\d_]\.)*[^\W_]+$")
_NEXT_WORD = re.compile(r"[^\W\d_']*(?=([^\w'])?)")
_TITLES = frozenset("dr mr mrs ms prof st pt vs cf al jr viz resp approx incl esp ca max min hx dx tx rx".split())
"""Abbreviations that no sentence ends with."""
_BEFORE_NUMBERS = frozenset("no nos fig figs vol pp eq ref refs ch sec tab".split())
"""Abbreviations where a number follows; else they are words, or end their sentence."""
_COUNTED = frozenset("step no phase option question point item figure part schritt paso".split())
"""Words whose number may be followed by a full stop: "Step 1. The patient ..."."""
_LETTERED = frozenset("vitamin hepatitis type group factor grade class stage phase protein influenza lead".split())
"""Words that a single letter completes, so that a full stop behind it ends a sentence: "vitamin K."."""
_STARTERS = frozenset(
    "the this that these those it its he she they we i a an in on at for with as if so thus hence therefore however "
    "but and option options choice answer step because since although while when after before not only both all no "
    "other others now let there here next finally first second given based".split()
)
"""Words that begin a sentence: "The answer is B. The other ..." is two, "The answer is B. Heparin" may be one."""


def step_end(text: str, steps: str) -> int | None:
    """Find the end of the first complete step of a text that may still grow.

    Args:
        text: what was written since the last step ended.
        steps: one of ``STEP_KINDS``.

    Returns:
        The number of characters of the step; None where the text holds no complete step yet. For every longer text
        that begins with this one the result is the same.
    """
    if steps == "paragraph":
        return _paragraph_end(text)
    told = ""
    for begin, end in _lines(text):
        line = text[begin:end]
        if steps == "sentence" and (found := _sentence_end(line, told)) is not None:
            return begin + found if found >= 0 else None
        if not line.endswith("\n"):
            return None
        if is_content(line, told):
            return end
        told = line if line.strip() else told
    return None


def split_into_steps(text: str, steps: str) -> list[str]:
    """Cut a finished text into its steps: they join to the text, and none of them says nothing by itself.

    A text that says nothing at all is one step; an empty text has none.
    """
    pieces, begin = [], 0
    while (end := step_end(text[begin:], steps)) is not None:
        pieces.append(text[begin : begin + end])
        begin += end
    rest = text[begin:]
    if rest and pieces and not has_content(rest):
        pieces[-1] += rest
    elif rest:
        pieces.append(rest)
    return pieces


def has_content(text: str) -> bool:
    """Say whether a text holds a line that says something by itself."""
    return content_start(text) is not None


def content_start(text: str) -> int | None:
    """Return where the first line begins that says something by itself; None where there is none."""
    told = ""
    for begin, end in _lines(text):
        line = text[begin:end]
        if is_content(line, told):
            return begin
        told = line if line.strip() else told
    return None


def is_content(line: str, heading: str = "") -> bool:
    """Say whether a line says something by itself; ``heading`` is the line of text before it, if that did not.

    A heading that holds an answer ("## Answer: C") says something, and so does an option below a heading of an answer
    ("**Answer:**", then "**C. Warfarin**").
    """
    bare = _MARK.sub(" ", line)
    if not re.search(r"\w", bare) or _FENCE.fullmatch(bare) or _NUMBER.fullmatch(bare):
        return False
    words = re.sub(r"[^\w\s]+", " ", bare).strip()
    if _TITLE.fullmatch(" ".join(words.split())):
        return False
    if _ANSWER_WORD.search(heading) and _OPTION.match(bare):
        return True
    hashed, bold = _HASHED.fullmatch(bare), _BOLD.fullmatch(bare)
    title = hashed[1] if hashed else bold[2] if bold else None
    if title is not None:
        return bool(_ANSWERED.search(title)) or (hashed is None and title.rstrip()[-1:] in tuple(".!?。！？"))
    return _LABEL.fullmatch(bare) is None


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """Return (begin, end) of each line, its line end included."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin) + 1 or len(text)
        yield begin, end
        begin = end


def _paragraph_end(text: str) -> int | None:
    """Return where the first blank line after a line of content ends."""
    told, full = "", False
    for begin, end in _lines(text):
        line = text[begin:end]
        if not line.endswith("\n"):
            return None
        if full and not line.strip():
            return end
        full = full or is_content(line, told)
        told = line if line.strip() else told
    return None


def _sentence_end(line: str, heading: str) -> int | None:
    """Return where a line's first sentence ends; None where none ends yet, -1 where the next word decides it."""
    for found in _SENTENCE_END.finditer(line):
        if not is_content(line[: found.end("latin") if found["latin"] else found.end()], heading):
            continue
        if found["latin"] is None:
            return found.end()
        if found["next"].islower() or ("." in found["latin"] and len(found["latin"].rstrip("\"'”’»)]*_")) > 1):
            continue  # the sentence goes on; an ellipsis ends nothing
        end = found.end("latin")
        if found["latin"][0] != ".":
            return end
        before = line[: found.start()]
        word = _LAST_WORD.search(before)
        ends = _ends_sentence(before[: word.start()], word[0], line[found.start("next") :]) if word else True
        if ends is None:
            return -1
        if ends:
            return end
    return None


def _ends_sentence(before: str, word: str, after: str) -> bool | None:
    """Say whether a full stop behind ``word`` ends a sentence; None where the next word is not complete yet."""
    last = re.search(r"(\w+)\W*$", before)
    previous = last[1].lower() if last else ""
    low = word.lower()
    if "." in word or low in _TITLES:
        return False
    if low in _BEFORE_NUMBERS:
        return not after[0].isdigit()
    if word.isdigit():
        return bool(previous) and previous not in _COUNTED
    if len(word) > 1 or not word.isalpha():
        return True
    if not previous or after[0].isdigit():
        return False
    if previous in _LETTERED:
        return True
    following = _NEXT_WORD.match(after)
    if following[1] is None:
        return None
    return following[0].lower() in _STARTERS
