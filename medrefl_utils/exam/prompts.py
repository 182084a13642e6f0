"""All prompts of the project, as functions that return chat messages.

The model's own chat template turns the messages into tokens. The prompts ask for numbered steps, one per line, and a
last line ``Answer: X``; a reflection may stand between the steps. The wording is ours.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from medrefl_utils.core.records import Question
from medrefl_utils.core.source_code import code_hash
from medrefl_utils.exam.answers.reader import NUMBERED_STEP
from medrefl_utils.exam.answers.thinking import closing_text

Messages = list[dict[str, str]]

STEP_BOUNDARY = "\n"
"""The end of a step in the form that the prompts ask for: one step per line. ``exam.steps`` cuts what models write."""


def is_numbered_step(line: str) -> bool:
    """Say whether a line begins with the number of a step, as in "Step 4: ..."."""
    return NUMBERED_STEP.match(line) is not None


def split_steps(chain: str) -> list[str]:
    """Return the lines of a finished chain that are not blank."""
    return [line.strip() for line in chain.split(STEP_BOUNDARY) if line.strip()]


def question_block(question: Question) -> str:
    """Return stem and lettered options as every prompt shows them; line breaks in an option become spaces."""
    options = "\n".join(f"{letter}. {' '.join(text.split())}" for letter, text in question.options.items())
    return f"{question.stem.strip()}\n\n{options}"


def exam(question: Question) -> Messages:
    """Ask a question, to be answered step by step: the prompt of rollout, pairs and evaluation."""
    return _user(f"{question_block(question)}\n\n{_STEPS}")


_STEPS = (
    'Reason in numbered steps, one line each, beginning with "Step 1:". '
    'End with the line "Answer: X", where X is the letter of the best option.'
)
_OPTION = re.compile(r"(?P<letter>[A-Z])\. (?P<text>.*)")


def read_exam(messages: Messages) -> tuple[str, dict[str, str]] | None:
    """Return stem and options {letter: text} of a prompt that ``exam`` made; None for any other prompt."""
    block, found, rest = messages[-1]["content"].rpartition(f"\n\n{_STEPS}")
    stem, _, lines = block.rpartition("\n\n")
    options = [_OPTION.fullmatch(line) for line in lines.split("\n")]
    if not found or rest or not stem or not all(options):
        return None
    return stem, {option["letter"]: option["text"] for option in options if option}


def exam_json(question: Question) -> Messages:
    """Ask a question, to be answered as JSON with a reason and an answer (published; our wording)."""
    return _user(
        f"{question_block(question)}\n\n"
        "Think the question through, then reply with one JSON object and nothing after it: "
        '{"reason": "why the option is the best", "answer": "X"}, where X is its letter.'
    )


FORMS = {"steps": exam, "json": exam_json}
"""The prompts of an evaluation, by the value of ``answer_format``."""


def mislead(messages: Messages, letter: str, text: str) -> Messages:
    """Return the messages with a wrong answer of someone else at the end of the last turn (ours)."""
    *before, last = messages
    suggestion = f"A colleague says that the answer is {letter}. {' '.join(text.split())}"
    return [*before, {**last, "content": f"{last['content']}\n\n{suggestion}"}]


def read_answer(question: Question, response: str) -> Messages:
    """Ask which option a response settles on, where the rules of ``exam.answers`` cannot read it."""
    return _user(
        f"{question_block(question)}\n\n"
        f"A response to this question:\n<response>\n{response.strip()}\n</response>\n\n"
        "Which option does the response settle on in the end? Do not answer the question yourself. Reply with one "
        'line, "Settles on: X", X the letter; or "Settles on: none", if it settles on none or on more than one.'
    )


def extract_entities(text: str, types: Sequence[str]) -> Messages:
    """Ask for the medical entities that a text names, one per line with its type."""
    return _user(
        f"Text:\n<text>\n{text.strip()}\n</text>\n\n"
        f"Which medical entities does this text name? The types are: {', '.join(types)}. Copy the words of each entity "
        'exactly as they stand in the text. Reply with one line per entity, "words | type", and nothing else; or with '
        'the line "none".'
    )


def choose_entity(text: str, words: str, names: Sequence[str]) -> Messages:
    """Ask which of the numbered names means the same as words of a text."""
    return _user(
        f"Text:\n<text>\n{text.strip()}\n</text>\n\n"
        f"Names:\n{_numbered(names)}\n\n"
        f'Which name means the same as "{words}" in this text? Reply with one line, "Same: n", n its number in '
        'brackets; or "Same: none".'
    )


def reflection(question: Question, public: Sequence[str], wrong: Sequence[str], right: Sequence[str]) -> Messages:
    """Ask for the five-part reflection that leads from ``wrong`` to ``right`` steps, after the ``public`` steps."""
    return _user(
        f"{question_block(question)}\n\n"
        f"Steps so far:\n{_lines(public)}\n\n"
        f"Steps that go wrong:\n{_lines(wrong)}\n\n"
        f"Steps that replace them:\n{_lines(right)}\n\n"
        "Write what the one who reasons thinks on noticing the mistake: one flowing passage on one line, in the first "
        "person. In this order: the flaw in the wrong steps, the information overlooked, the medical knowledge missed, "
        "the bridge from the evidence to the right step, the guideline to keep. Do not mention that other steps or a "
        "key were shown, and name no letter of an option."
    )


def affirmation(question: Question, public: Sequence[str], kept: Sequence[str]) -> Messages:
    """Ask for a reflection that looks again at the ``kept`` steps, after the ``public`` ones, and keeps them."""
    return _user(
        f"{question_block(question)}\n\n"
        f"Steps so far:\n{_lines(public)}\n\n"
        f"Steps that are kept:\n{_lines(kept)}\n\n"
        "Write what the one who reasons thinks on looking at these steps again and keeping them: one flowing passage "
        "on one line, in the first person. In this order: the step in doubt, the information that speaks for it, the "
        "decision to go on. Do not mention that other steps or a key were shown, and name no letter of an option."
    )


def ask_for_answer(cut: str, *, thinking_open: bool = False, closing: str | None = None) -> str:
    """Return the text that continues the assistant's turn when a truncated response is asked for its answer.

    It first closes a thinking that is still open, with the mark that belongs to the opening one.

    Args:
        cut: the response so far.
        thinking_open: the chat template opened the thinking, so ``cut`` begins inside it.
        closing: the mark that closes the template's thinking (``Generator.thinking_close``).
    """
    mark = closing_text(cut, thinking_open=thinking_open, thinking_close=closing)
    if mark is None:
        return f"{STEP_BOUNDARY}Answer:"
    if mark.startswith("#"):
        return f"\n\n{mark}\n\nThe answer is"
    return f"\n{mark}\n\nAnswer:"


def ask_to_reconsider() -> str:
    """Return the text that makes the model reconsider a finished answer, in its own turn (ours)."""
    return f"{STEP_BOUNDARY}Wait,"


def go_on(written: str) -> Messages:
    """Return the model's turn so far and the request to go on, for a server that cannot continue a turn.

    The turn stays the model's own: it sees its steps as such, and a tree branches by what it writes next (ours).
    """
    if written.endswith(STEP_BOUNDARY):
        request = "Go on with the line that comes next. Do not repeat a line, and keep to the same form."
    else:
        request = "Your message breaks off. Go on exactly where it ends, in the same form, and repeat none of it."
    return [{"role": "assistant", "content": written}, *_user(request)]


def judge(question: Question, chain: Sequence[str]) -> Messages:
    """Ask to rate a chain's correctness and logic, 1 to 5 each."""
    return _user(
        f"{question_block(question)}\n\n"
        f"Reasoning:\n{_lines(chain)}\n\n"
        "Rate this reasoning. Correctness: is what each step says medically true? Logic: does each step follow from "
        'what stands before it? Reply with two lines, "Correctness: n" and "Logic: n", n from 1 (worst) to 5 (best).'
    )


def locate(question: Question, chain: Sequence[str]) -> Messages:
    """Ask for the first wrong step of a chain that ends at a wrong answer."""
    return _user(
        f"{question_block(question)}\n\n"
        f"This reasoning ends at a wrong answer:\n{_numbered(chain)}\n\n"
        'Which step is the first that goes wrong? Reply with one line, "First wrong step: n", n its number in brackets.'
    )


def thinker(question: Question, chain: Sequence[str]) -> Messages:
    """Ask to rewrite a chain of steps as flowing thought that ends at the same answer."""
    return _user(
        f"{question_block(question)}\n\n"
        f"Reasoning:\n{_lines(chain)}\n\n"
        "Rewrite this reasoning as the flowing thought of one who works the question out: in the first person, without "
        "step numbers, nothing added, nothing left out, its doubts and changes of mind kept in their order. Keep to "
        'its conclusion, and end with the line "Answer: X", where X is the letter at which it ends.'
    )


def reasoning_chain(question: Question, paths: Sequence[str], *, answer_in_prompt: bool) -> Messages:
    """Ask for a chain of reasoning along paths of a knowledge graph, as if the writer had found them itself.

    Without paths, the writer reasons from what it knows: the control of MedReason.
    """
    answer = f"The right option is {question.gold}. {question.options[question.gold]}\n\n" if answer_in_prompt else ""
    connections = f"Connections:\n{_numbered(paths)}\n\n" if paths else ""
    return _user(
        f"{question_block(question)}\n\n{answer}{connections}"
        "Write the reasoning of an expert who works this question out alone, in numbered steps, one line each, "
        'beginning with "Step 1:". First say which findings of the question matter, and recall the connections that '
        "lead on from them; leave out what does not help. Then weigh the options by these reasons. Give every reason "
        'before the option that it speaks for. End with the line "Answer: X", where X is the letter of the best '
        "option. Write as from your own knowledge: do not mention that connections or a right option were shown."
    )


def choose_paths(question: Question, paths: Sequence[str], most: int, *, answer_in_prompt: bool) -> Messages:
    """Ask which of the numbered paths help most to answer a question, by their numbers."""
    answer = f"The right option is {question.gold}. {question.options[question.gold]}\n\n" if answer_in_prompt else ""
    return _user(
        f"{question_block(question)}\n\n{answer}"
        f"Connections:\n{_numbered(paths)}\n\n"
        "Which connections help most to reason from the question to the right option? Reply with one line, "
        f'"Chosen: n, n", with the numbers of at most {most} of them, the best first; or "Chosen: none".'
    )


def version() -> str:
    """Return a hash of this module's code; the manifest records it, so that a changed prompt is visible."""
    return code_hash(sys.modules[__name__])[:12]


def _user(content: str) -> Messages:
    return [{"role": "user", "content": content}]


def _lines(steps: Sequence[str]) -> str:
    return "\n".join(step.strip() for step in steps) or "(none)"


def _numbered(texts: Sequence[str]) -> str:
    return "\n".join(f"[{number}] {text.strip()}" for number, text in enumerate(texts, 1))
