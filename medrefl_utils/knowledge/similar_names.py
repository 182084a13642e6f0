"""Find the most similar names by character n-grams: a sparse product of the queries and all names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import OSA
from scipy import sparse

_N = 3  # characters
_COLUMNS = 1 << 18  # of the hashed n-grams
_BATCH = 256  # queries of one product; each meets up to a third of all names
_OPPOSITES = (("hyper", "hypo"), ("ab", "ad"), ("ante", "anti"), ("inter", "intra"), ("macro", "micro"), ("pre", "pro"),
              ("endo", "ecto"), ("eu", "dys"), ("brady", "tachy"), ("oligo", "poly"))  # fmt: skip


class SimilarNames:
    """An index of names; the similarity of two names is the cosine of their n-gram counts, weighted by rarity (TF-IDF).

    Args:
        names: texts without case; repeated ones are allowed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        counts = _counts(names)
        frequency = np.bincount(counts.indices, minlength=_COLUMNS)
        self._weight = np.log((1 + len(names)) / (1 + frequency)) + 1.0
        # One row per n-gram: a product then reads the names of the query's n-grams only.
        self._names = _unit_rows(counts, self._weight).T.tocsr()

    def nearest(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the most similar names of each query: places (q, k) and cosines (q, k), the best first.

        A place is -1 where fewer names share an n-gram with the query. Equal cosines: the earlier name.
        """
        places = np.full((len(queries), k), -1, dtype=np.int64)
        cosines = np.zeros((len(queries), k))
        for start in range(0, len(queries), _BATCH):
            some = queries[start : start + _BATCH]
            product = (_unit_rows(_counts(some), self._weight) @ self._names).tocsr()
            for i in range(len(some)):
                part = slice(product.indptr[i], product.indptr[i + 1])
                found, cosine = product.indices[part], product.data[part].round(9)
                if len(found) > k:
                    least = np.partition(cosine, -k)[-k]
                    found, cosine = found[cosine >= least], cosine[cosine >= least]
                best = np.lexsort((found, -cosine))[:k]
                places[start + i, : len(best)], cosines[start + i, : len(best)] = found[best], cosine[best]
        return places, cosines


def is_misspelling(written: Sequence[str], name: Sequence[str], known: frozenset[str] | set[str]) -> bool:
    """Return whether the words are those of a name with a slip of the pen in a long word.

    A word may differ if it has 6 letters or more, begins and ends with the same letters ("scleral" is no slip of
    "sclera"), is not itself a word of another name (``known``), and needs one edit. Prefixes of opposite meaning
    (hyper-, hypo-) never pass, nor does another letter in the ending (nitrite, nitrate).
    """
    if len(written) != len(name) or not any(a != b for a, b in zip(written, name, strict=True)):
        return False
    return all(a == b or (a not in known and _one_slip(a, b)) for a, b in zip(written, name, strict=True))


def _one_slip(a: str, b: str) -> bool:
    if not (a.isalpha() and b.isalpha()) or min(len(a), len(b)) < 6 or (a[0], a[-1]) != (b[0], b[-1]):
        return False
    if OSA.distance(a, b, score_cutoff=1) > 1 or (len(a) == len(b) and a[-3:] != b[-3:] and sorted(a) != sorted(b)):
        return False
    return not any(
        (a.startswith(one) and b.startswith(other)) or (a.startswith(other) and b.startswith(one))
        for one, other in _OPPOSITES
    )


def _counts(names: Sequence[str]) -> sparse.csr_array:
    """Return the counts of the hashed n-grams of each name, (names, columns); a space stands before and after it."""
    text = "".join(f" {name} " for name in names)
    letters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    lengths = np.array([len(name) + 2 for name in names], dtype=np.int64)
    owner = np.repeat(np.arange(len(names)), lengths)
    if len(letters) < _N:
        return sparse.csr_array((len(names), _COLUMNS))
    code = np.zeros(len(letters) - _N + 1, dtype=np.uint64)
    for i in range(_N):
        code = code * np.uint64(1_000_003) + letters[i : len(letters) - _N + 1 + i]
    code ^= code >> np.uint64(21)
    inside = owner[: len(code)] == owner[_N - 1 :]
    columns = (code[inside] % np.uint64(_COLUMNS)).astype(np.int64)
    ones = np.ones(len(columns))
    counts = sparse.csr_array((ones, (owner[: len(code)][inside], columns)), shape=(len(names), _COLUMNS))
    counts.sum_duplicates()
    return counts


def _unit_rows(counts: sparse.csr_array, weight: np.ndarray) -> sparse.csr_array:
    rows = counts.copy()
    rows.data = rows.data * weight[rows.indices]
    length = np.sqrt(np.asarray((rows * rows).sum(axis=1)).ravel())
    rows.data /= np.repeat(np.where(length > 0, length, 1.0), np.diff(rows.indptr))
    return rows
