"""Whether training questions stand in an evaluation, word for word or lightly reworded.

What is compared is the stem's words and the options as a set: case, punctuation, the options' order and letters do not
count. Candidates come from MinHash with locality-sensitive hashing (datasketch) and are verified by the n-grams.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import pandas as pd
from datasketch import MinHash, MinHashLSH

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import OVERLAPS

_WORD = re.compile(r"[^\W_]+")
_CANDIDATES = 0.4
"""Jaccard from which a pair is looked at: far enough below the threshold that hashing misses next to none."""
_PERMUTATIONS = 128
_CONTAINED = 0.95

Grams = frozenset[tuple[str, ...]]


def find_overlaps(
    training: Sequence[Question], evaluation: Sequence[Question], *, n: int = 3, threshold: float = 0.75
) -> pd.DataFrame:
    """Every training question that is an evaluation question: a row per pair found, with the columns of OVERLAPS.

    ``how`` is "same" (equal normalised stem and options), "contained" (19 in 20 of the smaller one's n-grams are the
    other's) or "reworded" (Jaccard of the word n-grams at least ``threshold``). The defaults (**ours**) tell apart the
    clinic's questions, which share their template and many options (the nearest of 16 million pairs: 0.70), and find
    one with a word changed in a stem of thirty (0.79 or more) or five in a vignette of 120. Ordered by the training
    question, the nearest first.

    Raises MedReflError for ``n`` below 1 or a threshold out of (0.4, 1].
    """
    if n < 1 or not _CANDIDATES < threshold <= 1:
        raise MedReflError(
            f"contamination: n is {n} and threshold {threshold}, expected at least 1 and one above {_CANDIDATES}, "
            "at most 1"
        )
    theirs = [_grams(question, n) for question in evaluation]
    index = MinHashLSH(threshold=_CANDIDATES, num_perm=_PERMUTATIONS, weights=(0.2, 0.8))
    for place, signature in enumerate(_signatures(theirs)):
        index.insert(place, signature)
    exact: dict[tuple[str, ...], list[int]] = {}
    for place, question in enumerate(evaluation):
        exact.setdefault(_normal(question), []).append(place)

    rows = []
    ours = [_grams(question, n) for question in training]
    for question, grams, signature in zip(training, ours, _signatures(ours), strict=True):
        same = exact.get(_normal(question), [])
        for place in {*index.query(signature), *same}:
            shared = len(grams & theirs[place])
            jaccard = shared / len(grams | theirs[place])
            containment = shared / min(len(grams), len(theirs[place]))
            if place in same:
                how = "same"
            elif containment >= _CONTAINED:
                how = "contained"
            elif jaccard >= threshold:
                how = "reworded"
            else:
                continue
            other = evaluation[place]
            rows.append((question.question_id, other.question_id, other.source, how, jaccard, containment))
    table = pd.DataFrame(rows, columns=OVERLAPS.names)
    return table.sort_values(["question_id", "jaccard", "other_id"], ascending=[True, False, True], ignore_index=True)


def remove_overlaps(training: Sequence[Question], found: pd.DataFrame, *, contaminated: str) -> list[Question]:
    """The training questions that stand in no evaluation.

    ``contaminated`` "stop" raises MedReflError, with the count and the first one, where there is any; "drop" leaves
    them out.
    """
    if contaminated not in ("stop", "drop"):
        raise MedReflError(f"contaminated is {contaminated!r}, expected stop or drop")
    if len(found) and contaminated == "stop":
        first = found.iloc[0]
        raise MedReflError(
            f"{found['question_id'].nunique()} of {len(training)} training questions stand in the evaluation, the "
            f"first {first.question_id!r} as {first.other_id!r} ({first.how}): contaminated=drop leaves them out"
        )
    return [question for question in training if question.question_id not in set(found["question_id"])]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _normal(question: Question) -> tuple[str, ...]:
    return (" ".join(_words(question.stem)), *sorted(" ".join(_words(text)) for text in question.options.values()))


def _grams(question: Question, n: int) -> Grams:
    """The stem's word n-grams, and each option whole; "option:" is no word, so that no option is an n-gram."""
    words = _words(question.stem)
    stem = zip(*(words[i:] for i in range(n)), strict=False) if len(words) >= n else [tuple(words)]
    return frozenset([*stem, *(("option:", *_words(text)) for text in question.options.values())])


def _signatures(sets: Sequence[Grams]) -> list[MinHash]:
    encoded = [[" ".join(gram).encode("utf-8", "surrogatepass") for gram in sorted(grams)] for grams in sets]
    return MinHash.bulk(encoded, num_perm=_PERMUTATIONS, seed=1) if encoded else []
