"""A chain's text: read it from a writer's reply, check it, and write it in the form of a model family. Pure.

A chain is a list of steps and a conclusion. The conclusion begins where the answer is stated for the first time; the
filter cuts it off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Question
from medrefl_utils.exam.answers.reader import EXPLICIT, extract_answer
from medrefl_utils.exam.answers.thinking import split_thinking
from medrefl_utils.exam.steps import has_content, split_into_steps

CHAIN_FORMATS = ("steps", "huatuo", "medreason", "think")
"""Forms of a response: that of ``prompts.exam``, of HuatuoGPT-o1, of MedReason, and of DeepSeek-R1."""

# Not leaks: "given the findings", "the connection between the two", "the provided history", "a correct dose".
_SHOWN = r"(?:given|provided|listed|shown|supplied|told)"
_LEAK = re.compile(
    r"\b(?:answer key|ground truth|gold (?:answer|letter|option|standard answer)|knowledge graph|knowledge base"
    rf"|(?:{_SHOWN}|numbered|above|following) (?:connections?|paths?|answer|right option|correct option)"
    r"|(?:connections?|paths?|(?:right|correct) (?:option|answer)) (?:(?:that|which) )?(?:(?:I|we) )?"
    rf"(?:was|were|is|are|am|has been|have been) {_SHOWN}"
    rf"|(?:connections?|paths?) (?:{_SHOWN}|above|below|in the prompt)"
    rf"|(?:I|we) (?:was|were|am|are|have been|had been) {_SHOWN}\b[^.\n]{{0,40}}\b(?:connections?|paths?|answer|option)"
    r"|(?:connections?|paths?) (?:\[\d+\]|\d+\b)|according to the (?:connections?|paths?)"
    r"|(?:since|because|as|knowing that|given that) the (?:right|correct) (?:answer|option) is)\b",
    re.IGNORECASE,
)
_ARROW = re.compile(r"-\[[^\]\n]{1,60}\]->?|(?:^|\s)\[\d{1,2}\](?=\s|$)")
_STEP = re.compile(r"^\W{0,4}(?:step\s*\d{1,3}\s*[:.)\-–]*|\d{1,3}[.)])\W*", re.IGNORECASE)
_OPTION = re.compile(r"\b(?i:option|choice|answer)\W{0,4}([A-Z])\b")
_NAMES = EXPLICIT | {"lone", "label"}
"""The rules of ``extract_answer`` that read a letter, not an option's text."""
_FEWEST = 2  # steps of reasoning (ours): one step and an answer are a claim


@dataclass(frozen=True)
class ChainText:
    """A chain: its steps without numbers, the lines of its conclusion without the answer's own line, and its letter."""

    steps: tuple[str, ...]
    conclusion: tuple[str, ...]
    letter: str


def read_chain(reply: Continuation, question: Question, *, thinking_open: bool = False) -> tuple[ChainText | None, str]:
    """Read a chain from a writer's reply, and check it.

    The writer's own thinking, before its reply, is left out. ``thinking_open``: its chat template opened the thinking.

    Returns:
        (chain, ""), or (None, fault). Faults: ``empty``: no text; ``cut``: the token limit was reached; ``leak``: it
        mentions that connections or an answer were shown; ``unreadable``: no answer; ``elsewhere``: another answer than
        gold; ``letter``: it names the answer in its first half, before its reasons; ``short``: fewer than two steps
        before the conclusion. The rules are ours.
    """
    if not reply.text.strip():
        return None, "empty"
    if reply.stop == "length":
        return None, "cut"
    text = split_thinking(reply.text, thinking_open=thinking_open)[1]
    lines = chain_lines(text)
    if not lines:
        return None, "empty"
    if _LEAK.search(text) or _ARROW.search(text):
        return None, "leak"
    letter = extract_answer(text, question.options).letter
    if letter is None:
        return None, "unreadable"
    if letter != question.gold:
        return None, "elsewhere"
    if _before_reasons(lines, question):
        return None, "letter"
    named = _first_named(lines, question)
    begin = len(lines) - 1 if named is None else named
    conclusion = tuple(line for line in lines[begin:] if not _only_states(line, question))
    chain = ChainText(tuple(lines[:begin]), conclusion, letter)
    return (None, "short") if len(chain.steps) < _FEWEST else (chain, "")


def chain_lines(text: str) -> list[str]:
    """Cut a text into its lines with content, without the steps' numbers; one long paragraph into its sentences."""
    for kind in ("line", "sentence"):
        pieces = [piece.strip() for piece in split_into_steps(text.strip(), kind) if has_content(piece)]
        if len(pieces) > _FEWEST:
            break
    # A heading belongs to the step after it; only the step's own text is wanted.
    bare = [_STEP.sub("", " ".join(piece.split("\n")[-1].split())).replace("**", "").strip("*_ ") for piece in pieces]
    return [line for line in bare if line]


def names_answer_early(lines: Sequence[str], question: Question) -> bool:
    """Say whether a chain names the gold letter as its answer before its conclusion, the last two lines."""
    place = _first_named(lines, question)
    return place is not None and place < len(lines) - 2


def format_response(chain: ChainText, form: str) -> str:
    """Return a chain as the response of a model, in one of ``CHAIN_FORMATS``; it ends with the line "Answer: X".

    - ``steps``: numbered steps, as ``prompts.exam`` asks for.
    - ``huatuo``, ``medreason``: "## Thinking", then "## Final Response" or "## Final Answer" (published).
    - ``think``: "<think>", then the conclusion.

    Raises:
        MedReflError: an unknown format.
    """
    answer = f"Answer: {chain.letter}"
    if form == "steps":
        return "\n".join([*numbered_steps([*chain.steps, *chain.conclusion]), answer])
    reasoning, final = "\n\n".join(chain.steps), "\n".join([*chain.conclusion, answer])
    if form == "think":
        return f"<think>\n{reasoning}\n</think>\n\n{final}"
    titles = {"huatuo": "Final Response", "medreason": "Final Answer"}
    if form not in titles:
        raise MedReflError(f"chain_format is {form!r}, expected one of {', '.join(CHAIN_FORMATS)}")
    return f"## Thinking\n\n{reasoning}\n\n## {titles[form]}\n\n{final}"


def numbered_steps(lines: Sequence[str]) -> list[str]:
    """Return lines as the steps that ``prompts.exam`` asks for: "Step 1: ..."."""
    return [f"Step {number}: {line}" for number, line in enumerate(lines, 1)]


def _first_named(lines: Sequence[str], question: Question) -> int | None:
    """Return the place of the first line that names the gold letter as the answer; None where none does."""
    for place, line in enumerate(lines):
        answer = extract_answer(line, question.options)
        if answer.letter == question.gold and answer.rule in _NAMES:
            return place
    return None


def _before_reasons(lines: Sequence[str], question: Question) -> bool:
    """Say whether the letter comes before the reasons: in the first half, or as the only option in the first line."""
    place = _first_named(lines, question)
    alone = len(lines) > _FEWEST and set(_OPTION.findall(lines[0])) == {question.gold}
    return alone or (place is not None and place < len(lines) // 2)


def _only_states(line: str, question: Question) -> bool:
    """Say whether a line is nothing but the answer: "Answer: B", "**Answer: B. Warfarin**"."""
    rest = re.sub(r"(?i)\b(?:the |my )?(?:final |best |correct )*(?:answer|option)(?: is)?\b", " ", line)
    rest = rest.replace(question.options[question.gold], " ")
    return not re.sub(rf"\b{question.gold}\b|\W", "", rest)
