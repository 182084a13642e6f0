"""Find what is wrong with a file of exam questions: errors stop a run, warnings go with every score.

The checks are ours. ``gold_unaccepted`` and the repeats are faults of the published evaluation's own files.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from medrefl_utils.core.records import LETTERS, Question
from medrefl_utils.exam import prompts
from medrefl_utils.exam.word_splitting import MARKS, TokenEstimate, estimate_tokens

CONTEXT = 4096
"""Tokens that a prompt may have before ``too_long`` warns: the context of many small models."""

# check -> (error or warning, what it means)
CHECKS: dict[str, tuple[str, str]] = {
    "unreadable": ("error", "the row is not a question"),
    "gold_not_an_option": ("error", "the gold answer is none of the options"),
    "gold_ambiguous": ("error", "the gold answer is a number that can be read in two ways: set answer_base"),
    "gold_disagrees": ("error", "two fields of the row give different gold answers"),
    "gold_several": ("error", "the row has more than one right answer"),
    "contradiction": ("error", "the same question and options as another row, another gold answer"),
    "too_long": ("warning", "the prompt may be longer than the model's context: such a question is left out"),
    "repeated": ("warning", "the same question, options and gold as an earlier row: counted as one question"),
    "repeated_stem": ("warning", "a stem that several rows have: one cluster"),
    "stem_with_other_answers": ("warning", "a repeated stem whose gold texts differ"),
    "option_repeated": ("warning", "two options with the same text"),
    "gold_repeated": ("warning", "another option has the gold option's text"),
    "option_empty": ("warning", "an option without text"),
    "letter_gap": ("warning", "the letters are not A, B, C, ... in order"),
    "white_space": ("warning", "white space around a text, or a tab, no-break or zero-width space within"),
    "figure": ("warning", "the stem refers to a figure that is not there"),
    "encoding": ("warning", "wrongly decoded text, or markup"),
    "gold_unaccepted": ("warning", "a gold letter that the published scorer cannot read: not A-E, G, H"),
}

_STRAY = re.compile(r"^\s|\s$|[\t\u00a0\u200b\ufeff]")
_PICTURE = r"(?:figure|image|photograph|photo|picture|exhibit|graph|diagram|illustration)"
_FIGURE = re.compile(
    rf"\b(?:shown|seen|depicted|provided|displayed|presented) (?:below|above|here|in (?:the )?{_PICTURE})|"
    rf"\b(?:figures?|images?|exhibits?) [A-H1-9]\b|\b(?:in|see) the {_PICTURE}\b|"
    rf"\b(?:following|accompanying|attached|above|below) {_PICTURE}|\b(?:indicated|marked) by (?:the|an) arrow",
    re.IGNORECASE,
)
_ENCODING = re.compile(
    r"Ã[\x80-\xbf]|Â[\s°±µ·]|â€|â\x80|\ufffd|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|&(?:amp|lt|gt|quot|nbsp|#\d+);|"
    r"\\(?:textquotedbl|AA[A-Z])"
)
_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}])*|[<>=+%↑↓≥≤±/]")  # marks: vowels of Thai, Hindi, Arabic
# What a fault's message contains -> its check; the first that fits. See ``gold``.
_FAULTS = {
    "gold is given twice": "gold_disagrees",
    "set answer_base": "gold_ambiguous",
    "right answers, expected one": "gold_several",
    "gold is": "gold_not_an_option",
}
_PUBLISHED_SCORER = frozenset("ABCDEGH")


@dataclass(frozen=True)
class LintFinding:
    """One check that found something: the row numbers, and a note in words."""

    check: str
    rows: tuple[int, ...]
    note: str = ""

    @property
    def severity(self) -> str:
        """Return "error" or "warning"."""
        return CHECKS[self.check][0]

    @property
    def meaning(self) -> str:
        """Return what the check is about."""
        return CHECKS[self.check][1]


def stem_key(stem: str) -> str:
    """Return a key that is equal for stems that differ only in case and white space: one cluster of an interval."""
    return " ".join(stem.casefold().split())


def content_key(question: Question) -> tuple[str, frozenset[str]]:
    """Return a key that a question shares with its copies: other order of options, other case and punctuation."""
    return stem_key(question.stem), frozenset(_fold(text) or text for text in question.options.values())


def lint_questions(
    rows: Sequence[tuple[int, Question]], faults: Sequence[tuple[int, str]] = (), context: int = CONTEXT
) -> list[LintFinding]:
    """Return what is wrong with the rows of a file, errors first, each check once.

    Args:
        rows: (row number, question) of each row that is a question.
        faults: (row number, message) of each row that is not.
        context: tokens above which a prompt is ``too_long``, by the high estimate of ``estimate_tokens``.
    """
    found: dict[str, list[int]] = defaultdict(list)
    notes: dict[str, str] = {}
    for number, message in faults:
        found[next((check for part, check in _FAULTS.items() if part in message), "unreadable")].append(number)
    lengths = {number: prompt_tokens(question) for number, question in rows}
    found["too_long"] = [number for number, tokens in lengths.items() if tokens.high > context]
    if found["too_long"]:
        longest = max(lengths.values(), key=lambda tokens: tokens.high)
        notes["too_long"] = (
            f"longest: an estimated {longest.low:,} to {longest.high:,} tokens, without the model's tokenizer;"
            f" limit {context:,}"
        )
    if faults:
        notes |= {check: message for number, message in reversed(faults) for check in found if number in found[check]}
    for check, is_faulty in _ROW_CHECKS.items():
        found[check] = [number for number, question in rows if is_faulty(question)]
    _repeats(rows, found, notes)
    letters = Counter(question.gold for _, question in rows if question.gold not in _PUBLISHED_SCORER)
    notes["gold_unaccepted"] = ", ".join(f"{letter} {n}" for letter, n in sorted(letters.items()))
    return [LintFinding(check, tuple(sorted(found[check])), notes.get(check, "")) for check in CHECKS if found[check]]


def prompt_tokens(question: Question) -> TokenEstimate:
    """Estimate the number of tokens of the prompt that asks a question."""
    return estimate_tokens(prompts.exam(question)[0]["content"])


def longest_prompt(rows: Sequence[tuple[int, Question]]) -> tuple[int, TokenEstimate] | None:
    """Return the row with the longest prompt and the estimate of its tokens; None where there is no row."""
    lengths = [(number, prompt_tokens(question)) for number, question in rows]
    return max(lengths, key=lambda row: row[1].high, default=None)


def _repeats(rows: Iterable[tuple[int, Question]], found: dict[str, list[int]], notes: dict[str, str]) -> None:
    stems: dict[str, list[tuple[int, Question]]] = defaultdict(list)
    contents: dict[tuple[str, frozenset[str]], list[tuple[int, Question]]] = defaultdict(list)
    for number, question in rows:
        stems[stem_key(question.stem)].append((number, question))
        contents[content_key(question)].append((number, question))
    n = sum(map(len, stems.values()))
    for same in contents.values():
        golds = [_gold_text(question) for _, question in same]
        if len(set(golds)) > 1:
            found["contradiction"] += [number for number, _ in same]
        found["repeated"] += [number for i, (number, _) in enumerate(same) if golds[i] in golds[:i]]
    notes["repeated"] = f"{n:,} rows of {n - len(found['repeated']):,} questions"
    several = [same for same in stems.values() if len(same) > 1]
    differ = [same for same in several if len({_gold_text(question) for _, question in same}) > 1]
    found["repeated_stem"] = [number for same in several for number, _ in same]
    notes["repeated_stem"] = f"{n:,} rows, {len(stems):,} distinct stems, {len(several):,} of them repeated"
    found["stem_with_other_answers"] = [number for same in differ for number, _ in same]
    notes["stem_with_other_answers"] = f"{len(differ):,} stems"


def _fold(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _gold_text(question: Question) -> str:
    text = question.options[question.gold]
    return _fold(text) or text


def _texts(question: Question) -> tuple[str, ...]:
    return question.stem, *question.options.values()


def _repeated_options(question: Question) -> list[str]:
    texts = [" ".join(text.casefold().split()) for text in question.options.values()]
    return [text for text in texts if text and texts.count(text) > 1]


_ROW_CHECKS: dict[str, Callable[[Question], bool]] = {
    "option_repeated": lambda q: bool(_repeated_options(q)),
    "gold_repeated": lambda q: " ".join(q.options[q.gold].casefold().split()) in _repeated_options(q),
    "option_empty": lambda q: not all(text.strip() for text in q.options.values()),
    "letter_gap": lambda q: "".join(q.options) != LETTERS[: len(q.options)],
    "white_space": lambda q: any(_STRAY.search(text) for text in _texts(q)),
    "figure": lambda q: _FIGURE.search(q.stem) is not None,
    "encoding": lambda q: any(_ENCODING.search(text) for text in _texts(q)),
    "gold_unaccepted": lambda q: q.gold not in _PUBLISHED_SCORER,
}
