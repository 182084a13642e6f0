"""Judge the chosen sides with a model: correctness and logic, 1 to 5 each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Question, Sampling
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import split_thinking
from medrefl_utils.models.asking import ask_until_valid, count_faults
from medrefl_utils.models.generators.interface import Generator

_NAMES = (
    r"(?:correctness|korrektheit|richtigkeit|corrección|exactitude|exactitud|correção|correttezza|правильность|"
    r"正确性|正確性|准确性|準確性|정확성)",
    r"(?:logic(?:al)?(?:\s(?:flow|coherence|consistency|soundness|validity))?|logik|lógica|logique|logica|логика|"
    r"逻辑性?|邏輯性?|論理性?|논리(?:성)?)",
)
_NAME = tuple(re.compile(rf"(?<![^\W_]){name}(?![^\W_])", re.IGNORECASE) for name in _NAMES)
# "(1-5)", "(1 = worst, 5 = best)", "(out of 5)", "on a scale of 1 to 5": the scale, not the score.
_SCALE = re.compile(
    r"[(\[][^()\[\]\d]{0,20}1[^()\[\]\d]{1,30}5[^()\[\]\d]{0,20}[)\]]|[(\[]\s*(?:out\s+of|max\.?|of|/)\s*5\s*[)\]]|"
    r"\b(?:(?:on|from|in)\s+)?(?:an?\s+|the\s+)?(?:scale\s+(?:of|from)\s+)?1\s*(?:-|–|—|\bto\b)\s*5\b(?!\s*/)",
    re.IGNORECASE,
)
_WORDS = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b(?=[^\w\n]*(?:\n|\Z)|\s*[.,;/(]|\s+out\b)", re.IGNORECASE)
_FILLER = (
    r"(?:[\W_]|(?<![^\W_])(?:score|scores|scored|rating|rated|rate|grade|value|points?|is|are|be|was|would|of|the|a|an|i|give|it|at|"
    r"as|my|final|overall)\b){0,30}?"
)
_NUMBER = r"(?<![\w.,/])(?P<score>\d{1,3}(?:[.,]\d+)?)"
_OUT_OF = r"(?:[\s*_]{0,4}(?:/|out\s+of|von|sur|de|из)[\s*_]{0,4}(?P<of>\d{1,3})\b)?"
_AFTER = (
    r"(?![\w%])(?!\s?%)(?!\s*(?:[-–—~]|or\b|to\b|/)\s*\d)"
    r"(?=[^\S\n]*(?:\n|\Z|[^\w\s]|(?:points?|stars?|because|since|as|and|but|while|with|for|due)\b|(?-i:[A-Z])))"
)
_SCORE = re.compile(_FILLER + _NUMBER + _OUT_OF + r"\s?[分点점]?" + _AFTER, re.IGNORECASE)
# A word that announces a score after an explanation; an overall score belongs to no name.
_LABEL = re.compile(
    r"(?<!overall )(?<!total )(?<!average )(?<!combined )(?<!mean )(?<![^\W_])"
    r"(?:scores?|rating|rated?|grade|i\s(?:would\s)?(?:give|rate))(?![^\W_])",
    re.IGNORECASE,
)
# A number in the place of the score that is none: "80%", "3-4". Not "the logic of 3 steps".
_NUMBERED = re.compile(_FILLER + r"\d+(?!\d|[.,]?\s[^\W\d_]{3})", re.IGNORECASE)


def judge_pairs(
    pairs: pd.DataFrame,
    questions: Mapping[str, Question],
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
    min_judge_score: int,
) -> tuple[pd.DataFrame, DropCounts]:
    """Keep the pairs whose chosen side gets at least ``min_judge_score`` (1 to 5) for both correctness and logic.

    The rejected side is wrong on purpose, so it is not judged (ours). The judge's prompt, raw reply and scores are kept
    in the column ``judgement``.

    Returns:
        The pairs and the counts: ``judged_low`` (selection), ``judge_unreadable`` (fault: no scores in any attempt).

    Raises:
        MedReflError: ``min_judge_score`` out of its range.
    """
    if not 1 <= min_judge_score <= 5:
        raise MedReflError(f"judge: min_judge_score is {min_judge_score}, expected 1 to 5")
    chains = [prompts.split_steps(side[0]["content"]) for side in pairs["chosen"]]
    asked = ask_until_valid(
        generator,
        [
            (prompts.judge(questions[name], c), partial(read_scores, thinking_open=generator.thinking_open))
            for name, c in zip(pairs["question_id"], chains, strict=True)
        ],
        sampling=sampling,
        seed=seed,
        title="judge",
    )
    judgements = [
        one.value
        and {
            "prompt": one.messages[-1]["content"],
            "reply": one.replies[-1],
            "correctness": one.value[0],
            "logic": one.value[1],
        }
        for one in asked
    ]
    keep = [one.value is not None and min(one.value) >= min_judge_score for one in asked]
    judged = pairs.assign(judgement=pd.Series(judgements, index=pairs.index, dtype=object))
    dropped = DropCounts({"judge_unreadable": 0, "judged_low": sum(one.value is not None for one in asked) - sum(keep)})
    dropped.add(count_faults(asked, "judge", [f"question {name!r}" for name in pairs["question_id"]]))
    return judged[keep].reset_index(drop=True), dropped


def read_scores(reply: Continuation, *, thinking_open: bool = False) -> tuple[tuple[int, int] | None, str]:
    """Read correctness and logic, whole numbers from 1 to 5, from a judge's reply.

    The scores may be lines in any order ("**Correctness** (1-5): 4/5"), JSON or a table, with the digits of any script
    or in words; "4.0" is 4. The last score of each name counts. An explanation may come first, if a word announces the
    score: "Correctness: Step 1 is true. Score 4." A thinking before the verdict is not read. A reply is unreadable if
    it was truncated at the token limit, or if a score is not whole, out of range, on another scale ("4/10") or a range
    ("3-4"). ``thinking_open``: the judge's chat template opened its thinking.

    Returns:
        ((correctness, logic), ""), or (None, "unreadable").
    """
    if reply.stop == "length":
        return None, "unreadable"
    _, text = split_thinking(reply.text, thinking_open=thinking_open)
    found = _of_json(text) or _of_table(text) or [_last_score(text, name) for name in _NAME]
    if None in found:
        return None, "unreadable"
    return (found[0], found[1]), ""


def _last_score(text: str, name: re.Pattern[str]) -> int | None:
    """Return the last score that follows a name in a text, before the next name."""
    text = _WORD.sub(lambda word: _WORDS[word[0].casefold()], _SCALE.sub(" ", text))
    starts = sorted(match.start() for pattern in _NAME for match in pattern.finditer(text))
    for match in reversed(list(name.finditer(text))):
        part = text[match.end() : next((at for at in starts if at > match.start()), len(text))]
        if score := _SCORE.match(part):
            return _whole(score["score"], score["of"])
        if _NUMBERED.match(part):
            return None
        if labelled := [score for label in _LABEL.finditer(part) if (score := _SCORE.match(part, label.end()))]:
            return _whole(labelled[-1]["score"], labelled[-1]["of"])
    return None


def _whole(score: str, of: str | None = None) -> int | None:
    """Return a score that is written as a whole number from 1 to 5, of 5 if it says of what; else None."""
    value = float(score.replace(",", "."))
    return int(value) if value in (1, 2, 3, 4, 5) and (of is None or int(of) == 5) else None


def _of_json(text: str) -> list[int | None] | None:
    """Return the scores of the JSON object in a text; None where there is no object with both names."""
    try:
        read = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError:
        return None
    found = [[value for key, value in _entries(read) if name.match(key.strip())] for name in _NAME]
    return [_of_value(values[-1]) for values in found] if all(found) else None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (anything that JSON holds)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, inner
        yield from _entries(inner)


def _of_value(value: Any) -> int | None:  # noqa: ANN401 (anything that JSON holds)
    if isinstance(value, dict):
        named = [value[key] for key in value if key.casefold() in ("score", "rating", "value", "grade")]
        return _of_value(named[0]) if named else None
    score = None if isinstance(value, bool) else _SCORE.match(str(value))
    return _whole(score["score"], score["of"]) if score else None


def _of_table(text: str) -> list[int | None] | None:
    """Return the scores of a table that has the names in its header; None where there is none."""
    rows = [[cell.strip(" *_`\t") for cell in line.strip().strip("|").split("|")] for line in text.splitlines()]
    for number, header in enumerate(rows):
        places = [next((i for i, cell in enumerate(header) if name.match(cell)), None) for name in _NAME]
        if len(header) > 1 and None not in places and places[0] != places[1]:
            for row in rows[number + 1 :]:
                if len(row) == len(header) and any(re.match(r"\d", row[place]) for place in places):
                    return [_of_value(row[place]) for place in places]
    return None
