"""What is wrong with a file of exam questions: errors that stop, warnings that go with every score.

The checks are ours; those of ``gold_unaccepted`` and the repeats are faults of the published evaluation's own files.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from medrefl_utils.core.records import LETTERS, Question

# check -> (error or warning, what it means)
CHECKS: dict[str, tuple[str, str]] = {
    "unreadable": ("error", "the row is no question"),
    "gold_not_an_option": ("error", "the gold answer is none of the options"),
    "contradiction": ("error", "the same question and options as another row, another gold answer"),
    "repeated": ("warning", "the same question, options and gold as an earlier row: one question"),
    "repeated_stem": ("warning", "a stem that stands on several rows: one cluster"),
    "stem_with_other_answers": ("warning", "a repeated stem whose gold texts differ"),
    "option_repeated": ("warning", "two options with the same text"),
    "gold_repeated": ("warning", "another option has the gold option's text"),
    "option_empty": ("warning", "an option without text"),
    "letter_gap": ("warning", "the letters are not A, B, C, ... in order"),
    "white_space": ("warning", "white space around a text, or a tab, no-break or zero-width space within"),
    "figure": ("warning", "the stem leans on a figure that is not there"),
    "encoding": ("warning", "text that was decoded wrongly, or left-over markup"),
    "gold_unaccepted": ("warning", "a gold letter that the published scorer takes for unreadable: not A-E, G, H"),
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
_WORD = re.compile(r"[^\W_]+|[<>=+%↑↓≥≤±/]")
_PUBLISHED_SCORER = frozenset("ABCDEGH")


@dataclass(frozen=True)
class LintFinding:
    """One check that found something: on which rows, and in what words."""

    check: str
    rows: tuple[int, ...]
    note: str = ""

    @property
    def severity(self) -> str:
        """error or warning."""
        return CHECKS[self.check][0]

    @property
    def meaning(self) -> str:
        """What the check is about."""
        return CHECKS[self.check][1]


def stem_key(stem: str) -> str:
    """Equal for stems that differ in case and white space alone: they are one cluster of an interval."""
    return " ".join(stem.casefold().split())


def content_key(question: Question) -> tuple[str, frozenset[str]]:
    """Equal for a question and its copy with the options in another order, or its case and punctuation changed."""
    return stem_key(question.stem), frozenset(_fold(text) or text for text in question.options.values())


def lint_questions(rows: Sequence[tuple[int, Question]], faults: Sequence[tuple[int, str]] = ()) -> list[LintFinding]:
    """What is wrong with the rows of a file, errors first, each check once.

    Args:
        rows: (row number, question) of each row that is a question.
        faults: (row number, message) of each that is not.
    """
    found: dict[str, list[int]] = defaultdict(list)
    notes: dict[str, str] = {}
    for number, message in faults:
        found["gold_not_an_option" if message.startswith("gold is") else "unreadable"].append(number)
    if faults:
        notes |= {check: message for number, message in reversed(faults) for check in found if number in found[check]}
    for check, is_faulty in _ROW_CHECKS.items():
        found[check] = [number for number, question in rows if is_faulty(question)]
    _repeats(rows, found, notes)
    letters = Counter(question.gold for _, question in rows if question.gold not in _PUBLISHED_SCORER)
    notes["gold_unaccepted"] = ", ".join(f"{letter} {n}" for letter, n in sorted(letters.items()))
    return [LintFinding(check, tuple(sorted(found[check])), notes.get(check, "")) for check in CHECKS if found[check]]


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
