"""The gold answer of each row, from every field that states it: a letter, an option's text, or a position.

A position counts from 0 or from 1, and a wrong guess moves every answer by one letter. So the base is decided over all
rows of a file, by proof, and a file without proof is refused. All rules are ours.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from medrefl_utils.core.errors import MedReflError

AnswerBase = Literal["auto", 0, 1]
"""How a numeric gold answer counts the options: from 0, from 1, or decided from the whole file."""

GOLD_FIELDS = (
    *("gold", "answer_idx", "label", "answer_index", "cop", "ra", "answerKey", "correct_option", "correct_answers"),
    *("correct_answer", "final_decision", "answer"),
)
"""Names of the gold field in published files. Where two fields disagree, the message names them in this order."""

_INDEX_FIELDS = ("cop", "ra", "answer_index")  # a number there is a position, never an option's text
_FROM_0 = ("answer_index", "label")  # MMLU-Pro's field, and the hub's name for a class: from 0 where a letter stands by
# Published shapes whose positions are known: the columns that identify one, its gold field, its base.
_SHAPES: tuple[tuple[str, frozenset[str], str, Literal[0, 1]], ...] = (
    ("KorMedMCQA", frozenset({"subject", "year", "q_number", "answer", "A", "B"}), "answer", 1),
    ("KMMLU", frozenset({"Category", "Human Accuracy", "answer", "A", "B"}), "answer", 1),
    ("HeadQA", frozenset({"qid", "qtext", "ra"}), "ra", 1),
)
_LETTERED = re.compile(r"\(?([^\W_]{1,2})[).:\uff0c\u3001\uff0e]\s*(.+)", re.DOTALL)
OPTION_COLUMN = re.compile(r"(op|opt|option|choice|answer|)[ _-]?([a-z]|\d\d?)", re.IGNORECASE)
"""Names of options as columns: medmcqa's opa, FrenchMedMCQA's answer_a, a spreadsheet's option_a, option1 or A."""
_CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩"  # they have no zero: a position from 1
_LIST_MARK = re.compile(r"\s*(?:[,;/&+、，；]|\band\b)\s*|\s+")


@dataclass(frozen=True)
class Claim:
    """What one field of a row says about the gold answer."""

    field: str
    given: Any
    letters: tuple[str, ...] = ()
    """the options that it names by letter or by published key"""
    texts: tuple[str, ...] = ()
    """the options whose text it equals"""
    number: int | None = None
    """it as a position"""
    several: int = 0
    """number of right answers, where there is more than one"""


@dataclass(frozen=True)
class Draft:
    """A row whose gold answer is not decided yet."""

    number: int
    row: Mapping[str, Any]
    options: Mapping[str, str]
    """{letter: text}"""
    claims: Sequence[Claim]


@dataclass(frozen=True)
class Counting:
    """How the numbers of one field count the options; ``base`` None: the file does not tell."""

    base: int | None
    reason: str
    is_position: bool = False
    """the field holds positions for certain: a number there is never an option's text"""


@dataclass
class GoldReader:
    """Decide the gold letters of a file's rows.

    Args:
        answer_base: 0 or 1: every number counts from there; auto: decided from the rows.
        typed: whether a number and a numeric text differ in the source; they do not in CSV.
    """

    answer_base: AnswerBase = "auto"
    typed: bool = True
    counting: dict[str, Counting] = field(default_factory=dict)
    """field -> how its numbers were read; filled by ``look_at``"""
    _text_fields: set[str] = field(default_factory=set)
    _number_fields: set[str] = field(default_factory=set)

    def look_at(self, drafts: Sequence[Draft]) -> None:
        """Decide from all rows whether each field holds letters, texts or positions, and where positions start."""
        numbered: dict[str, list[tuple[Draft, Claim]]] = defaultdict(list)
        letters: dict[str, int] = defaultdict(int)
        texts: dict[str, int] = defaultdict(int)
        for draft in drafts:
            for claim in draft.claims:
                letters[claim.field] += bool(claim.letters) and not claim.texts
                texts[claim.field] += bool(claim.texts) and not claim.letters and claim.number is None
                if claim.number is not None and not claim.texts:
                    self._number_fields.add(claim.field)
                if claim.number is not None:
                    numbered[claim.field].append((draft, claim))
        self._text_fields = {name for name, n in texts.items() if n and not letters[name]}
        for name, found in numbered.items():
            if positions := [(draft, claim) for draft, claim in found if not self._is_text(claim)]:
                self.counting[name] = self._decide(name, positions)

    def gold_of(self, draft: Draft) -> str:
        """Return the gold letter of a row; ValueError says why there is none."""
        if not draft.claims:
            raise ValueError("no gold answer")
        named = [(claim, set(self._named(claim))) for claim in draft.claims if self._named(claim)]
        several = next((claim for claim in draft.claims if claim.several), None)
        if several and not (several.field == "answer" and isinstance(several.given, str) and named):
            stated = f"gold is {_shown(several.given)} under {several.field!r}"
            raise ValueError(f"{stated}: {several.several} right answers, expected one")
        left = set(draft.options)
        for claim, letters in named:
            if not left & letters:
                raise ValueError(_contradiction([*named, (claim, letters)]))
            left &= letters
        numbers = [
            (claim, self._places(claim, draft, settled=bool(named)))
            for claim in draft.claims
            if claim.number is not None and not self._named(claim)
        ]
        for claim, letters in numbers:
            if not left & letters:
                raise ValueError(_contradiction([*named, *numbers[: numbers.index((claim, letters)) + 1]]))
            left &= letters
        self._check_strays(draft, named)
        if len(left) == 1:
            return left.pop()
        first = draft.claims[0]
        if named:  # one text, several options
            raise ValueError(f"gold is {_shown(first.given)}, the text of options {' and '.join(sorted(left))}")
        raise ValueError(f"gold is {_shown(first.given)}, expected one of {''.join(draft.options)}")

    def describe(self) -> list[str]:
        """Return a line for each field of numbers: how they were read, and why."""
        return [
            f"gold field {name!r}: "
            + (f"positions from {found.base}" if found.base is not None else "positions of an unknown base")
            + f" ({found.reason})"
            for name, found in self.counting.items()
        ]

    # --- one claim ---

    def _is_text(self, claim: Claim) -> bool:
        """Return whether a number that equals an option's text is that text, by what the rest of the file holds."""
        if not claim.texts or claim.number is None or claim.field in _INDEX_FIELDS or not isinstance(claim.given, str):
            return False
        if claim.field in self._text_fields:
            return True
        return self.typed and self.answer_base == "auto" and claim.field not in self._number_fields

    def _named(self, claim: Claim) -> tuple[str, ...]:
        if claim.letters and claim.texts and claim.letters != claim.texts and claim.field in self._text_fields:
            return claim.texts  # blood group A among the options of a field that holds texts
        if claim.letters:
            return claim.letters
        return claim.texts if claim.number is None or self._is_text(claim) else ()

    def _places(self, claim: Claim, draft: Draft, settled: bool) -> set[str]:
        """Return the options that a number may mean; one, unless another field settles the row."""
        counting = self.counting[claim.field]
        at = {base: _at(claim.number or 0, base, draft.options) for base in (0, 1)}
        texts = set() if claim.field in _INDEX_FIELDS or counting.is_position else set(claim.texts)
        bases = (0, 1) if counting.base is None else (counting.base,)
        letters = {letter for base in bases if (letter := at[base])} | texts
        if not letters:
            least, most = bases[0], len(draft.options) - 1 + bases[-1]
            raise ValueError(
                f"gold is {_shown(claim.given)}, expected one of {''.join(draft.options)}"
                + f" or a position from {least} to {most} ({counting.reason})" * (counting.base is not None)
            )
        if settled or (counting.base is not None and len(letters) == 1):
            return letters
        found = [f"from {base} {at[base] or 'none'}" for base in (0, 1)]
        if texts:
            raise ValueError(
                f"gold is {_shown(claim.given)} under {claim.field!r}, and the options are numbers: as an option's"
                f" text it is {' or '.join(sorted(texts))}, counted {found[0]}, counted {found[1]}; set answer_base to"
                " 0 or 1, or write the letter"
            )
        raise ValueError(
            f"gold is {_shown(claim.given)} under {claim.field!r}: counted {found[0]}, counted {found[1]}, and the file"
            f" does not tell which ({counting.reason}); set answer_base to 0 or 1"
        )

    def _check_strays(self, draft: Draft, named: Sequence[tuple[Claim, set[str]]]) -> None:
        """Raise ValueError for a single letter that no option has, which contradicts the other fields.

        A longer text is a comment.
        """
        for claim in draft.claims:
            if named and isinstance(claim.given, str) and re.fullmatch(r"\s*[A-Za-z]\s*", claim.given):
                if not (claim.letters or claim.texts):
                    raise ValueError(_contradiction([*named, (claim, set())]))

    # --- the whole file ---

    def _decide(self, name: str, found: Sequence[tuple[Draft, Claim]]) -> Counting:
        if self.answer_base != "auto":
            return Counting(int(self.answer_base), f"answer_base is {self.answer_base}", is_position=True)
        sure = [(draft, claim) for draft, claim in found if name in _INDEX_FIELDS or not claim.texts]
        zero = next((draft for draft, claim in sure if claim.number == 0), None)
        last = next((draft for draft, claim in sure if claim.number == len(draft.options)), None)
        if zero and last:
            return Counting(
                None, f"row {zero.number} has 0, but row {last.number} has {len(last.options)} with as many options"
            )
        for shape, columns, at, base in _SHAPES:
            if at == name and not (last, zero)[base] and all(columns <= set(draft.row) for draft, _ in found):
                return Counting(base, f"the columns are those of {shape}", is_position=True)
        if zero:
            return Counting(0, f"row {zero.number} has 0")
        if last:
            return Counting(1, f"row {last.number} has {len(last.options)}, the number of its options")
        if by_letters := self._by_letters(name, found):
            return by_letters
        return Counting(None, "no row has 0 or the number of its options")

    def _by_letters(self, name: str, found: Iterable[tuple[Draft, Claim]]) -> Counting | None:
        """Return the base at which the numbers agree with the letters or texts that stand beside them."""
        fits: dict[int, list[int]] = {0: [], 1: []}
        compared = 0
        for draft, claim in found:
            beside = [set(self._named(other)) for other in draft.claims if other is not claim and self._named(other)]
            compared += bool(beside)
            for base, numbers in fits.items() if beside else ():
                if _at(claim.number or 0, base, draft.options) in set.intersection(*beside):
                    numbers.append(claim.number or 0)
        if compared and name in _FROM_0 and len(fits[0]) <= len(fits[1]) and len(set(fits[1])) < 2:
            return Counting(0, "as is usual for this field beside a letter")
        if len(fits[0]) == len(fits[1]):
            return None
        base = int(len(fits[1]) > len(fits[0]))
        return Counting(base, f"{len(fits[base])} rows agree with their letters")


def check_answer_base(answer_base: object) -> AnswerBase:
    """Return 0, 1 or "auto"; a parameter may give the number as text. Raises MedReflError for anything else."""
    known: dict[str, AnswerBase] = {"auto": "auto", "0": 0, "1": 1}
    if isinstance(answer_base, bool) or str(answer_base) not in known:
        raise MedReflError(f"answer_base is {answer_base!r}, expected 0, 1 or auto")
    return known[str(answer_base)]


def claim_of(name: str, given: Any, options: Mapping[str, str], keys: Mapping[str, str]) -> Claim:
    """Return what a field's value says about the gold answer.

    Args:
        name: the field.
        given: its value: a letter, a key, a text, a number, or a list of them.
        options: {letter: text} of the row.
        keys: published key of each option, in capitals, -> its letter.
    """
    if isinstance(given, str) and given.strip().startswith("[") and not _owners(given, options):
        given = _parsed_list(given)
    if isinstance(given, (list, tuple)):
        distinct = list(dict.fromkeys(str(item).strip() for item in given if item not in (None, "")))
        if len(distinct) > 1:
            return Claim(name, given, several=len(distinct))
        given = next((item for item in given if item not in (None, "")), None)
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, (int, str)):
        return Claim(name, given)
    text = str(given).strip()
    owners = _owners(text, options)
    if isinstance(given, int):
        by_key = (keys[text],) if text in keys else ()
        return Claim(name, given, by_key, owners, None if by_key else given)
    bare = bare_key(text)
    if text in _CIRCLED and (letter := _at(_CIRCLED.index(text), 0, options)):
        return Claim(name, given, (letter,), owners)
    if bare in keys:
        return Claim(name, given, (keys[bare],), owners)
    if owners:
        return Claim(name, given, (), owners, _number(text))
    if (match := _LETTERED.fullmatch(text)) and match[1].upper() in keys:
        letter = keys[match[1].upper()]
        if letter in _owners(match[2], options):
            return Claim(name, given, (letter,))
    if n := _several(bare, keys):
        return Claim(name, given, several=n)
    return Claim(name, given, number=_number(text))


def bare_key(key: Any) -> str:
    """Return a published key in capitals without its marks: "a)" is A, "option_b" is B, "opc" is C."""
    bare = unicodedata.normalize("NFKC", str(key)).strip().strip("()[]{}.: ").upper()
    match = OPTION_COLUMN.fullmatch(bare)
    return match[2] if match else bare


def _number(text: str) -> int | None:
    text = text.removesuffix(".0")  # a table with an empty cell
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else None


def _parsed_list(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _owners(text: str, options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the options with this text: exactly, else but for case and white space."""
    exact = tuple(letter for letter, option in options.items() if option.strip() == text.strip())
    folded = "".join(text.casefold().split())
    return exact or tuple(letter for letter, option in options.items() if "".join(option.casefold().split()) == folded)


def _several(bare: str, keys: Collection[str]) -> int:
    """Return the number of right answers in "A,C", "A and C" or "ACD"; 0 where it is no list of keys."""
    parts = [part.strip("()") for part in _LIST_MARK.split(bare.replace(" AND ", ",")) if part]
    if len(parts) == 1 and len(bare) > 1 and bare.isalpha() and list(bare) == sorted(set(bare)):
        parts = list(bare)
    distinct = set(parts)
    return len(distinct) if len(distinct) > 1 and distinct <= set(keys) else 0


def _at(number: int, base: int, options: Mapping[str, str]) -> str | None:
    place = number - base
    return list(options)[place] if 0 <= place < len(options) else None


def _contradiction(said: Sequence[tuple[Claim, set[str]]]) -> str:
    """Return the first field, and the first one after it that disagrees with it."""
    first = said[0]
    other = next((one for one in said[1:] if not one[1] & first[1]), said[-1])
    shown = [
        f"{claim.field} {_shown(claim.given)} is {' or '.join(sorted(letters)) or 'no option'}"
        for claim, letters in (first, other)
    ]
    return f"gold is given twice, and the fields disagree: {shown[0]}, but {shown[1]}"


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:79]}…"
