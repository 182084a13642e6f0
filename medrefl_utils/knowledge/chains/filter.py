"""Filter chains: keep those after which a model answers the question.

Published: a model answers with the chain alone, whose conclusion is cut off, once. Ours: k answers each with the chain,
without it, and with another question's chain, so that it is seen what the chain adds. The chain begins the model's own
turn after ``prompts.exam``, so that a model that knows no other prompt can be the filter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from tqdm import tqdm

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import extract_answer
from medrefl_utils.models.generators.call_log import CallLog, call_key
from medrefl_utils.models.generators.interface import Generator, Prefix, derive_seed

CONDITIONS = ("with", "without", "other")
_BATCH = 64  # prefixes whose answers are kept together


def pass_rates(
    questions: Sequence[Question],
    chains: Mapping[str, Sequence[str]],
    generator: Generator,
    *,
    log: CallLog,
    samples: int,
    sampling: Sampling,
    seed: int,
) -> pd.DataFrame:
    """Let a model answer each question with its chain, without one, and with another question's.

    The seed of an answer is derived from ``seed``, its question and its number, not from the condition, which pairs the
    three.

    Args:
        questions: those that have a chain.
        chains: {question_id: steps of the chain, without its conclusion}.
        generator: the model that answers.
        log: keeps every answer; an answer that is in it is not asked for again.
        samples: answers per question and condition, at least 1.
        sampling: of the answers.
        seed: of the answers and of the draw of the other chains.

    Returns:
        A row per question, in order: ``question_id``, ``other_id`` (whose chain was the other; None where no other
        question has a chain) and the shares of right answers ``pass_with``, ``pass_without`` and ``pass_other`` (NaN
        without another chain). An unreadable answer is wrong. All shares are NaN where a server refused one of the
        question's prompts.

    Raises:
        MedReflError: ``samples`` below 1.
    """
    if samples < 1:
        raise MedReflError(f"filter_samples is {samples}, expected at least 1")
    others = other_questions(questions, seed)
    begun: list[tuple[int, str, str]] = []
    for place, question in enumerate(questions):
        begun.append((place, "with", _begin(chains[question.question_id])))
        begun.append((place, "without", ""))
        if (other := others[question.question_id]) is not None:
            begun.append((place, "other", _begin(chains[other])))
    passed: dict[tuple[int, str], float] = {}
    refused: set[int] = set()
    with tqdm(total=len(begun) * samples, desc="filter", unit="answer") as bar:
        for start in range(0, len(begun), _BATCH):
            batch = begun[start : start + _BATCH]
            texts = _answers(
                [(questions[place], text) for place, _, text in batch],
                generator, log=log, samples=samples, sampling=sampling, seed=seed, progress=bar.update,
            )  # fmt: skip
            for (place, condition, _), replies in zip(batch, texts, strict=True):
                question = questions[place]
                if replies is None:
                    refused.add(place)
                    continue
                letters = [
                    extract_answer(text, question.options, thinking_open=generator.thinking_open).letter
                    for text in replies
                ]
                passed[place, condition] = sum(letter == question.gold for letter in letters) / samples
    rows = [
        {"question_id": question.question_id, "other_id": others[question.question_id]}
        | {f"pass_{condition}": _share(passed, refused, place, condition) for condition in CONDITIONS}
        for place, question in enumerate(questions)
    ]
    return pd.DataFrame(rows, columns=["question_id", "other_id", *(f"pass_{c}" for c in CONDITIONS)])


def _share(passed: Mapping[tuple[int, str], float], refused: set[int], place: int, condition: str) -> float:
    return float("nan") if place in refused else passed.get((place, condition), float("nan"))


def other_questions(questions: Sequence[Question], seed: int) -> dict[str, str | None]:
    """Draw for each question another one, whose chain is the control; None for a single question.

    Each question's chain serves once. A question with the same letters comes first, so that the other chain does not
    fail only because its letter is no option.
    """
    places = {
        one.question_id: (len(one.options), derive_seed(seed, "other chain", one.question_id)) for one in questions
    }
    ids = sorted(places, key=places.__getitem__)
    following = dict(zip(ids, [*ids[1:], *ids[:1]], strict=True))
    return {question.question_id: following[question.question_id] if len(ids) > 1 else None for question in questions}


def filter_fault(rates: Mapping[str, Any], *, min_pass: float, min_lift: float) -> str:
    """Return why the filter refuses a chain, or "": ``filter_refused``, ``low_pass`` or ``low_lift``.

    Args:
        rates: a row of ``pass_rates``.
        min_pass: smallest share of right answers with the chain.
        min_lift: smallest ``pass_with - pass_without``.
    """
    if math.isnan(rates["pass_with"]):  # a server refused a prompt, for its content or length
        return "filter_refused"
    if rates["pass_with"] < min_pass:
        return "low_pass"
    return "low_lift" if rates["pass_with"] - rates["pass_without"] < min_lift else ""


def _begin(steps: Sequence[str]) -> str:
    """Return the beginning of a turn that holds these steps."""
    return "".join(f"Step {number}: {step}{prompts.STEP_BOUNDARY}" for number, step in enumerate(steps, 1))


def _answers(
    begun: Sequence[tuple[Question, str]],
    generator: Generator,
    *,
    log: CallLog,
    samples: int,
    sampling: Sampling,
    seed: int,
    progress: Callable[[int], object],
) -> list[list[str] | None]:
    """Return the answers after each beginning, None where a server refused the prompt.

    A batch is one entry of the log, since rounding depends on the batch.
    """
    # Two questions may have the same chain, and then two conditions of one question ask the same.
    places = {(question.question_id, text): place for place, (question, text) in enumerate(begun)}
    asked = [begun[place] for place in places.values()]
    messages = [prompts.exam(question) for question, _ in asked]
    texts = [text for _, text in asked]
    key = call_key("filter", generator.key, messages, texts, samples, asdict(sampling), seed)
    if (line := log.get(key)) is None:
        prefixes = [Prefix(one, tuple(generator.encode(text)), text) for one, text in zip(messages, texts, strict=True)]
        seeds = [
            [derive_seed(seed, "filter", question.question_id, run) for run in range(samples)] for question, _ in asked
        ]
        rows = generator.expand(prefixes, samples, None, sampling, seeds, progress)
        # A prompt that the server refused has no answer; it is asked again in another run.
        line = {
            "filter": [None if any(one.stop == "refused" for one in row) else [o.text for o in row] for row in rows]
        }
        if None not in line["filter"]:
            log.append(key, line)
    else:
        progress(samples * len(asked))
    of = dict(zip(places, line["filter"], strict=True))
    return [of[question.question_id, text] for question, text in begun]
