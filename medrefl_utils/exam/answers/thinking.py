"""Separate a model's thinking from its visible answer. Only this module knows the marks of the model families.

Families covered: ``<think>`` and its relatives (DeepSeek-R1, Qwen3, EXAONE, Seed, LongCat, Reflection), ``[THINK]``
(Magistral), ``<unused94>`` (MedGemma), ``◁think▷`` (Kimi), ``<|begin_of_thought|>`` (Sky-T1), ``<|START_THINKING|>``
(Command A), harmony channels (gpt-oss), ``## Thinking`` and ``## Final Response`` (HuatuoGPT-o1, also in Chinese).
"""

from __future__ import annotations

import re

_NAMES = (
    r"(?:\w{1,20}[:_-])?(?:think(?:ing)?|thoughts?|thought_process|reason(?:ing)?|reflection|scratch_?pad|analysis|"
    r"in(?:ner|ternal)_?(?:monologue|thoughts?)|rationale|cot|deliberation|internal|思考|think_?block|思考过程|思考過程)"
)
# A closing mark is looked for only where its first sign occurs.
_TAG_OPEN = re.compile(rf"<\|?{_NAMES}\|?>|\[{_NAMES}\]|◁{_NAMES}▷", re.IGNORECASE)
TAG_CLOSE = re.compile(rf"<\|?/{_NAMES}\|?>|\[/{_NAMES}\]|◁/{_NAMES}▷", re.IGNORECASE)
_FINAL_CHANNEL = "<|end|><|start|>assistant<|channel|>final<|message|>"

MARKS = (
    ("<unused94>", "<unused95>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|thought_start|>", "<|thought_end|>"),
    ("<|channel|>analysis<|message|>", _FINAL_CHANNEL),
    ("<|channel|>commentary<|message|>", _FINAL_CHANNEL),
    ("<|channel>thought", "<channel|>"),
    ("【思考】", "【回答】"),
    ("【思考过程】", "【最终回答】"),
)
"""Marks that open a thinking, each with the text that closes it. A tag ("<think>", "[THINK]") is closed by itself with
a slash, whatever its name (``_NAMES``), and is not listed."""
_SPECIAL_OPEN = tuple(opening for opening, _ in MARKS)
_ALSO_CLOSE = ("<|begin_of_solution|>", "<|START_RESPONSE|>", "<|channel|>final<|message|>", "【答案】", "【最终答案】")
_SPECIAL_CLOSE = tuple(
    (sign, tuple(mark for mark in (*dict(MARKS).values(), *_ALSO_CLOSE) if sign in mark)) for sign in ("<", "】")
)

# Words, not marks: they count only at the response's beginning. The first two are harmony channels without their marks.
_PLAIN = (
    ("analysis", "assistantfinal"),
    ("commentary", "assistantfinal"),
    ("Thinking...", "...done thinking."),
    ("Here is my thought process:", "Here is my response:"),
)
_PLAIN_OPEN = tuple(begun for begun, _ in _PLAIN)
# The final headings that follow a heading of thinking, by language; English for every other one.
_FINAL_HEADINGS = (
    ("プロセス", "## 最終回答"),
    ("思考", "## 最终回复"),
    ("사고", "## 최종 답변"),
    ("생각", "## 최종 답변"),
)

_THINKING_TITLE = (
    r"(?:(?:my |internal )?(?:thinking(?: process)?|thoughts?|thought process|monologue)|"
    r"思考过程|思考過程|思考|思考プロセス|"
    r"사고 과정|생각)"
)
_REASONING_TITLE = rf"(?:{_THINKING_TITLE}|(?:my |internal )?reasoning|analysis|推理过程|推理|分析)"
_FINAL_TITLE = (
    r"(?:final (?:response|answer|reply|output)|my final answer|"
    r"最终回复|最终回答|最终答案|最終回答|最終回覆|最終的な回答|最终答复|"
    r"최종 답변|최종 응답|최종 답|respuesta final|réponse finale|endgültige antwort|finale antwort|resposta final|"
    r"risposta finale|окончательный ответ|الإجابة النهائية|अंतिम उत्तर|คำตอบสุดท้าย|câu trả lời cuối cùng|"
    r"đáp án cuối cùng|"
    r"nihai cevap)"
)
_HEAD = r"\s{{0,9}}(?:#{{1,6}}\s{{0,3}}\**|\*\*){}\**\s{{0,2}}(?:[:：]|\n|\*\*)"
_THINKING_HEAD = re.compile(_HEAD.format(_THINKING_TITLE), re.IGNORECASE)
_REASONING_HEAD = re.compile(_HEAD.format(_REASONING_TITLE), re.IGNORECASE)
_FINAL_HEAD = re.compile(
    rf"#(?!#)[ \t]{{0,3}}\**{_FINAL_TITLE}\**[ \t]*[:：]?\**(?![^\n]{{0,20}}\bis\b)", re.IGNORECASE
)
# After a heading of thinking, a heading of the answer.
_BOLD_FINAL = re.compile(
    rf"(?:\*\*|#(?!#)\s?\**)(?:{_FINAL_TITLE}|answer|response|conclusion|回答|答案|回复)(?:\*\*\s?[:：]|[:：]\s?\*\*|\*\*|"
    rf"\s*\n)",
    re.IGNORECASE,
)


def _last_close(response: str) -> int:
    """Return where the last mark that closes a thinking ends, -1 without one."""
    end = -1
    if ("<" in response and "/" in response) or "[/" in response or "◁/" in response:
        for mark in TAG_CLOSE.finditer(response):
            end = mark.end()
    if response.startswith(_PLAIN_OPEN):
        for begun, mark in _PLAIN:
            if response.startswith(begun) and (at := response.rfind(mark)) >= 0:
                end = max(end, at + len(mark))
    for sign, marks in _SPECIAL_CLOSE:
        if sign in response:
            end = max(end, *(at + len(mark) for mark in marks if (at := response.rfind(mark)) >= 0), -1)
    return end


def _opens(text: str) -> bool:
    """Say whether a text holds a mark that opens a thinking."""
    if not ("<" in text or "[" in text or "◁" in text or "【" in text):
        return False
    return _TAG_OPEN.search(text) is not None or any(mark in text for mark in _SPECIAL_OPEN)


def split_thinking(response: str, *, thinking_open: bool = False) -> tuple[str, str]:
    """Split a response into its thinking and its visible answer.

    Args:
        response: the whole text that a model wrote.
        thinking_open: the chat template opened the thinking, so that the response begins inside it.

    Returns:
        (thinking, visible). ``visible`` is what follows the last closing mark or final heading. It is "" where a
        thinking is open at the end, because the token limit truncated it. A response without any mark is all visible.
    """
    marked = "<" in response or "[" in response or "◁" in response or "】" in response
    end = _last_close(response) if marked or response.startswith(_PLAIN_OPEN) else -1
    if "#" in response:
        for heading in _FINAL_HEAD.finditer(response):
            end = max(end, heading.end())
    if end < 0:
        begun = response.lstrip()[:1] in ("#", "*")
        if begun and (head := _REASONING_HEAD.match(response)) and (final := _BOLD_FINAL.search(response, head.end())):
            return response[: final.end()], response[final.end() :]
        plain = response.startswith(_PLAIN_OPEN) and not response.startswith("analysis ")
        open_at_end = (
            thinking_open or plain or (begun and _THINKING_HEAD.match(response)) or (marked and _opens(response))
        )
        return (response, "") if open_at_end else ("", response)
    visible = response[end:]
    return (response, "") if marked and _opens(visible) else (response[:end], visible)


def open_mark(text: str) -> tuple[str, str] | None:
    """Return the mark that opened the thinking that is open at a text's end, and the mark that closes it; or None."""
    begin = max(_last_close(text), 0)
    # A mark of the table comes before a tag at the same place: "<|begin_of_thought|>" has the form of both.
    found = [(at, mark, close) for mark, close in MARKS if (at := text.find(mark, begin)) >= 0]
    found += [(tag.start(), tag[0], _closing_tag(tag[0])) for tag in _TAG_OPEN.finditer(text, begin)]
    return min(found, key=lambda one: one[0])[1:] if found else None


def unopened_close(response: str) -> str | None:
    """Return the mark that closes a thinking which a response never opens: the chat template did. None without one."""
    end = _last_close(response)
    if end < 0 or _opens(response[:end]) or response.startswith(_PLAIN_OPEN):
        return None
    for tag in TAG_CLOSE.finditer(response):
        if tag.end() == end:
            return tag[0]
    special = [mark for _, marks in _SPECIAL_CLOSE for mark in marks if response[:end].endswith(mark)]
    return max(special, key=len, default=None)


def closing_text(response: str, *, thinking_open: bool = False, thinking_close: str | None = None) -> str | None:
    """Return the text that closes the thinking in which a response ends; None where it ends outside of a thinking.

    Args:
        response: the beginning of a response.
        thinking_open: the chat template opened the thinking, so that the response begins inside it.
        thinking_close: the mark that closes the template's thinking, if it is known. Otherwise the response's own first
            mark counts, or else ``</think>``.

    Returns:
        A mark such as ``</think>``, or a heading such as ``## Final Response`` after a heading of thinking.
    """
    mark = open_mark(response)
    if thinking_open and _last_close(response) < 0:
        return thinking_close or (mark[1] if mark else "</think>")
    if mark:
        return mark[1]
    if split_thinking(f"{response}\nx")[1]:
        return None
    for begun, close in _PLAIN:
        if response.startswith(begun):
            return close
    title = response.lstrip().split("\n", 1)[0]
    return next((heading for word, heading in _FINAL_HEADINGS if word in title), "## Final Response")


def _closing_tag(tag: str) -> str:
    signs = 2 if tag.startswith("<|") else 1
    return f"{tag[:signs]}/{tag[signs:]}"
