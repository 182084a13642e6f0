"""The form of a path: an opening mark of thinking, the reasoning, and a final section.

Models write a chain in different forms::

    plain            Step 1: ...            Step 2: ...     Answer: C
    DeepSeek-R1      <think> ...            </think>        The answer is C.
    HuatuoGPT-o1     ## Thinking ...        ## Final Response   The answer is C.
    MedReason        1. ... 2. ...          ## Final Answer     C. Warfarin

Where a chat template opens the thinking, the text begins inside it and only the closing mark is there. The marks of the
model families are known to ``exam.answers.split_thinking`` alone; this module asks it. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from medrefl_utils.exam.answers.thinking import split_thinking

# What can be a mark at the beginning of a text, and at its end. ``split_thinking`` says whether it is one.
_FIRST = re.compile(
    r"\s*(?:<\|channel>thought|<\|channel\|>\w{1,20}<\|message\|>|<[^<>/\n]{1,60}>|\[\w{3,20}\]|◁[^◁▷/\n]{1,20}▷|"
    r"【[^【】\n]{1,20}】|#{1,6}[^\n]*|\*\*[^*\n]{1,60}\*\*[:：]?|Thinking\.\.\.|"
    r"Here is my thought process:|analysis)\s*"
)
_LAST = re.compile(
    r"[ \t]*(?:(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>|<[^<>\n]{1,60}>|\[/\w{3,20}\]|"
    r"◁/[^◁▷\n]{1,20}▷|【[^【】\n]{1,20}】|(?<!\S)#{1,6}[^\n]*|\*\*[^*\n]{1,60}\*\*[ \t]?[:：]?|"
    r"\.\.\.done thinking\.|Here is my response:|assistantfinal)"
    r"[:：]?\s*\Z"
)
_LONGEST_MARK = 200
# A heading on a line of its own, in a text without marks of thinking: "## Answer", "**Answer:**", "**答案：**".
_SECTION = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]*\**|\*\*)(?:the )?(?:(?:final|best|correct) )*"
    r"(?:answer|response|conclusion|solution|choice|respuesta|réponse|antwort|resposta|risposta|ответ|"
    r"答案|回答|最终答案|結論|结论|정답|답)\**[ \t]*[:：]?\**[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class PathForm:
    """The parts of a path's text; the four together are the text."""

    opening: str
    """mark that opens the thinking, with the white space after it; "" where there is none"""
    reasoning: str
    """steps between the opening mark and the final section"""
    closing: str
    """mark that closes the thinking, or heading of the final section; "" where there is none"""
    final: str
    """text of the final section, after ``closing``"""

    @property
    def final_section(self) -> str:
        """The closing mark with the text after it."""
        return self.closing + self.final


def split_form(text: str) -> PathForm:
    """Split a path's text, or its beginning, into its parts.

    A plain chain is all ``reasoning``, its last line ``Answer: X`` included. The heading of an answer on a line of its
    own ("## Answer", "**Answer:**") counts as a final section too (ours).
    """
    first = _FIRST.match(text)
    start = first.end() if first and _opens(first[0]) else 0
    thinking, told = split_thinking(f"{text}\nx")  # so that a mark at the very end is seen
    begin = end = len(text)
    if thinking and told:
        begin = end = len(thinking)
        while mark := _LAST.search(text[:begin], max(start, begin - _LONGEST_MARK)):
            begin = mark.start()
            if not _closes(text[:begin]):
                break
        if not text[start:begin].strip() and not text[begin:end].startswith(
            "#"
        ):  # an empty thinking: all that the model reasons follows it
            rest = split_form(text[end:])
            return replace(rest, opening=text[:end] + rest.opening)
    elif headings := list(_SECTION.finditer(text, start)):
        begin, end = headings[-1].span()
    return PathForm(text[:start], text[start:begin], text[begin:end], text[end:])


def insert_reflection(wrong: str, right: str, taken: int, reflection: str, *, finished: bool) -> str:
    """Write a wrong path, a reflection, and the steps of another path as one text in the model's form.

    Args:
        wrong: the wrong path's text, up to where it is left.
        right: the whole text of the other path.
        taken: position in ``right`` where the step that is switched to begins. Up to here both paths are the same.
        reflection: the reflection; it becomes one line.
        finished: the wrong path is complete (post-reasoning reflection).

    Returns:
        One text with one opening mark and one final section. A plain chain is kept as it is, ``Answer: X`` included
        (published form: "a finished wrong path, effective reflection, right steps"). In a chain with a final section
        the place depends on where the paths part (ours):

        - before the words of the final section: the reflection follows the last step of reasoning, inside the thinking.
          The wrong path loses its closing mark, and a finished one its final section too. Where the wrong steps are in
          this section only, its words stay, because the reflection corrects them.
        - among the words of the final section: the wrong path is kept, the reflection stands in its final section, and
          the steps of ``right`` follow.
    """
    begun, other = split_form(wrong), split_form(right)
    line = " ".join(reflection.split())
    words_begin = len(right) - len(other.final)
    if other.closing and right[words_begin:taken].strip():
        return _joined(wrong, line, right[taken:].lstrip())
    before = begun.reasoning
    in_reasoning = before[max(taken - len(begun.opening), 0) :].strip()
    if begun.final.strip() and not (finished and in_reasoning):
        before = f"{before.rstrip()}\n{begun.final.strip()}" if before.strip() else begun.final.strip()
    steps = other.reasoning[max(taken - len(other.opening), 0) :] + other.final_section
    opening = _opening(begun, other)
    before = before if opening == begun.opening else before.lstrip()
    return _joined(opening + before, line, steps.lstrip("\n"))


def _opening(begun: PathForm, other: PathForm) -> str:
    """Return the opening mark of the whole text: ``begun``'s, if the final section of ``other`` goes with it."""
    closed = _closes(other.opening)
    unclosed = _opens(begun.opening) and not other.closing
    if not unclosed and _closes(begun.opening) == closed:
        return begun.opening or other.opening
    return f"{other.opening}\n\n" if closed else other.opening


def _joined(*parts: str) -> str:
    return "\n".join(part.rstrip() for part in parts if part.strip())


def _opens(mark: str) -> bool:
    """Return whether a thinking is open after this mark."""
    thinking, told = split_thinking(f"{mark}x")
    return bool(thinking) and not told


def _closes(text: str) -> bool:
    """Return whether a text ends with a mark that closes a thinking."""
    thinking, told = split_thinking(f"{text}\nx")
    return bool(thinking) and told.strip() == "x"
