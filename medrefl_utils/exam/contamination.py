"""Find training questions that are also in an evaluation, word for word or lightly reworded.

The comparison takes the stem's words and the set of options. Case, punctuation, and the options' order and letters do
not count. MinHash with locality-sensitive hashing (datasketch) finds candidates, and their n-grams verify them. In a
script without spaces (Chinese, Thai) a character counts as a word. ``find_similar_stems`` is the edit-distance check
of others (rapidfuzz), for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import OVERLAPS
from medrefl_utils.exam.word_splitting import words

_CANDIDATES = 0.4
"""Jaccard similarity from which a pair is verified: so far below the threshold that hashing misses almost none."""
_PERMUTATIONS = 128
_CONTAINED = 0.95
_SIMILAR = 95.0  # of 100: m1's threshold
_BLOCK = 512  # training stems per block of the matrix of ratios

Grams = frozenset[tuple[str, ...]]


def find_overlaps(
    training: Sequence[Question], evaluation: Sequence[Question], *, n: int = 3, threshold: float = 0.75
) -> pd.DataFrame:
    """Return every pair of a training question and an evaluation question that is the same question.

    The defaults (**ours**) separate the clinic's questions, which share a template and many options (nearest of 16
    million pairs: 0.70). They find a question with one word changed in a stem of thirty (0.79 or more), or five words
    in a vignette of 120.

    Args:
        training: the training questions.
        evaluation: the evaluation's questions.
        n: words per n-gram.
        threshold: Jaccard similarity of the word n-grams from which a pair counts as reworded, in (0.4, 1].

    Returns:
        A row per pair with the columns of ``schemas.OVERLAPS``, ordered by the training question, the nearest first.
        ``how`` is "same" (equal normalised stem and options), "contained" (the larger has 95% of the smaller one's
        n-grams) or "reworded".

    Raises:
        MedReflError: ``n`` below 1, or a threshold out of range.
    """
    if n < 1 or not _CANDIDATES < threshold <= 1:
        raise MedReflError(
            f"contamination: n is {n} and threshold {threshold}, expected n of at least 1 and a threshold above"
            f" {_CANDIDATES} and at most 1"
        )
    theirs = [_grams(question, n) for question in evaluation]
    their_stems = [_grams(replace(question, options={}), n) for question in evaluation]
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
            their = theirs[place] if question.options else their_stems[place]  # a training text may hold no options
            shared = len(grams & their)
            jaccard = shared / len(grams | their)
            containment = shared / min(len(grams), len(their))
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
    """Return the training questions that are not in the evaluation.

    Args:
        training: the training questions.
        found: what ``find_overlaps`` returns.
        contaminated: "drop" leaves the overlapping questions out; "stop" raises where there is one.

    Raises:
        MedReflError: with the count and the first one, for "stop"; another value of ``contaminated``.
    """
    if contaminated not in ("stop", "drop"):
        raise MedReflError(f"contaminated is {contaminated!r}, expected stop or drop")
    if len(found) and contaminated == "stop":
        first = found.iloc[0]
        raise MedReflError(
            f"{found['question_id'].nunique()} of {len(training)} training questions are in the evaluation, the "
            f"first {first.question_id!r} as {first.other_id!r} ({first.how}):"
            " 03_pair_construction.contaminated=drop leaves them out"
        )
    return [question for question in training if question.question_id not in set(found["question_id"])]


def find_similar_stems(
    training: Sequence[Question], evaluation: Sequence[Question], *, threshold: float = _SIMILAR
) -> pd.DataFrame:
    """Return every pair of stems whose rapidfuzz ratio reaches a threshold: the check of m1 (published: 95).

    The ratio is 100 times the normalised similarity by insertions and deletions of characters. It takes stems alone,
    after case-folding and without punctuation.

    Returns:
        Columns ``question_id`` (training), ``other_id`` (evaluation), ``ratio`` (0 to 100), ordered by the training
        question, the most similar first.

    Raises:
        MedReflError: a threshold out of (0, 100].
    """
    # Imported here: only this check needs it.
    from rapidfuzz import fuzz, process

    if not 0 < threshold <= 100:
        raise MedReflError(f"contamination: threshold is {threshold}, expected above 0 and at most 100")
    ours, theirs = ([" ".join(words(q.stem)) for q in questions] for questions in (training, evaluation))
    rows = []
    for start in range(0, len(ours) if theirs else 0, _BLOCK):
        block = ours[start : start + _BLOCK]
        ratios = process.cdist(block, theirs, scorer=fuzz.ratio, score_cutoff=threshold, dtype=np.float32)
        for i, j in zip(*np.nonzero(ratios), strict=True):
            rows.append((training[start + i].question_id, evaluation[j].question_id, float(ratios[i, j])))
    table = pd.DataFrame(rows, columns=["question_id", "other_id", "ratio"])
    return table.sort_values(["question_id", "ratio", "other_id"], ascending=[True, False, True], ignore_index=True)


def _normal(question: Question) -> tuple[str, ...]:
    return (" ".join(words(question.stem)), *sorted(" ".join(words(text)) for text in question.options.values()))


def _grams(question: Question, n: int) -> Grams:
    """Return the stem's word n-grams, and each option whole; "option:" is no word, so no option equals an n-gram."""
    stem_words = words(question.stem)
    stem = zip(*(stem_words[i:] for i in range(n)), strict=False) if len(stem_words) >= n else [tuple(stem_words)]
    return frozenset([*stem, *(("option:", *words(text)) for text in question.options.values())])


def _signatures(sets: Sequence[Grams]) -> list[MinHash]:
    encoded = [[" ".join(gram).encode("utf-8", "surrogatepass") for gram in sorted(grams)] for grams in sets]
    return MinHash.bulk(encoded, num_perm=_PERMUTATIONS, seed=1) if encoded else []
