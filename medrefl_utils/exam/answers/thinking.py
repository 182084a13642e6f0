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
_TAG_CLOSE = re.compile(rf"<\|?/{_NAMES}\|?>|\[/{_NAMES}\]|◁/{_NAMES}▷", re.IGNORECASE)
_SPECIAL_OPEN = (
    "<unused94>",
    "<|begin_of_thought|>",
    "<|START_THINKING|>",
    "<|thought_start|>",
    "<|channel|>analysis<|message|>",
    "<|channel|>commentary<|message|>",
    "<|channel>thought",
    "【思考】",
    "【思考过程】",
)
_SPECIAL_CLOSE = (
    (
        "<",
        (
            "<unused95>",
            "<|end_of_thought|>",
            "<|begin_of_solution|>",
            "<|END_THINKING|>",
            "<|START_RESPONSE|>",
            "<|thought_end|>",
            "<|channel|>final<|message|>",
            "<channel|>",
        ),
    ),
    ("】", ("【回答】", "【答案】", "【最终回答】", "【最终答案】")),
)

# Words, not marks: they count only at the response's beginning. The first two are harmony channels without their marks.
_PLAIN = (
    ("analysis", "assistantfinal"),
    ("commentary", "assistantfinal"),
    ("Thinking...", "...done thinking."),
    ("Here is my thought process:", "Here is my response:"),
)
_PLAIN_OPEN = tuple(begun for begun, _ in _PLAIN)

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
        for mark in _TAG_CLOSE.finditer(response):
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
