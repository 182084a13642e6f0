"""Knowledge graphs: typed nodes keyed by (type, id), an undirected adjacency, and every relation between two nodes."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from medrefl_utils.core.dropped_rows import DropCounts, check_dropped, check_some_left
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.store import write_whole
from medrefl_utils.knowledge.graph_files import Codes, Table, read_columns

NODE_TYPES = (
    "anatomy",
    "biological_process",
    "cellular_component",
    "disease",
    "drug",
    "effect/phenotype",
    "exposure",
    "gene/protein",
    "molecular_function",
    "pathway",
)
"""The node types of PrimeKG."""
COLUMNS: Mapping[str, str] = {
    "relation": "display_relation",
    **{f"{side}_{name}": f"{side}_{name}" for side in "xy" for name in ("type", "id", "name", "source", "synonyms")},
}
"""{our name: PrimeKG's name} of the columns that are read. Source and synonyms ("a|b") may be missing."""
_NEEDED = ("relation", *(f"{side}_{name}" for side in "xy" for name in ("type", "id", "name")))
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|nan|inf", re.IGNORECASE)
_FORMAT = 2  # of the cache


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """A graph of typed nodes. Two nodes are neighbours if a relation joins them, in either direction."""

    nodes: pd.DataFrame
    """index: number 0 to n - 1, in the order of (type, id); columns type, id, name, source, synonyms (list[str])"""
    relation_names: list[str]
    """the relations that occur, sorted"""
    adjacency: sparse.csr_array
    """(n, n), symmetric; an entry is an index into ``relation_sets``"""
    relation_sets: list[tuple[tuple[str, ...], tuple[str, ...]]]
    """relations between two nodes: those from the first to the second, and those from the second to the first"""
    rows: int = 0
    """rows of the file that the graph holds"""
    dropped: DropCounts = field(default_factory=DropCounts)
    """rows of the file that were left out"""

    @cached_property
    def degree(self) -> np.ndarray:
        """(n,) number of distinct neighbours of each node."""
        return np.diff(self.adjacency.indptr)

    @cached_property
    def keys(self) -> list[tuple[str, str]]:
        """The nodes' keys (type, id), in the order of their numbers."""
        return list(zip(self.nodes["type"].tolist(), self.nodes["id"].tolist(), strict=True))

    @cached_property
    def _numbers(self) -> dict[tuple[str, str], int]:
        return {key: number for number, key in enumerate(self.keys)}

    @cached_property
    def names(self) -> list[str]:
        """The nodes' names, in the order of their numbers."""
        return self.nodes["name"].tolist()

    def number(self, type: str, id: str) -> int:
        """Return the number of a node.

        Raises:
            MedReflError: the graph has no such node.
        """
        if (type, id) not in self._numbers:
            raise MedReflError(f"the graph has no node of type {type!r} with id {id!r}")
        return self._numbers[type, id]

    def neighbours(self, a: int) -> np.ndarray:
        """Return the numbers of a node's distinct neighbours, in increasing order."""
        start, end = self.adjacency.indptr[a : a + 2]
        return self.adjacency.indices[start:end]

    def directed_relations(self, a: int, b: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the relations from ``a`` to ``b`` and those from ``b`` to ``a``, each sorted."""
        start, end = self.adjacency.indptr[a : a + 2]
        place = start + np.searchsorted(self.adjacency.indices[start:end], b)
        if place == end or self.adjacency.indices[place] != b:
            return (), ()
        return self.relation_sets[self.adjacency.data[place]]

    def relations(self, a: int, b: int) -> tuple[str, ...]:
        """Return all relations between two nodes, in both directions, sorted; empty if there is none."""
        there, back = self.directed_relations(a, b)
        return tuple(sorted({*there, *back}))


def read_graph(
    path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    cache: Path | None = None,
    types: Sequence[str] = NODE_TYPES,
    max_dropped: float = 0.01,
) -> KnowledgeGraph:
    """Read a graph from a table with one row per edge, in PrimeKG's columns or others.

    Nodes are keyed by (type, id). All relations between two nodes are kept. A row with an empty cell or another number
    of columns is left out and counted; an edge from a node to itself is counted as ``self_loop``.

    Args:
        path: .csv or .tsv (also .gz), or .parquet.
        columns: {our name: name in the file} where the file has other names than PrimeKG; our names are the keys of
            ``COLUMNS``.
        cache: a file that keeps the graph. It is read if it was made from the same file (path, size and time of the
            last change) with the same columns; else it is written.
        types: node types of which the graph must have at least one.
        max_dropped: share of the rows that may be left out.

    Raises:
        MedReflError: the file is missing, empty, truncated, lacks a column, has numbers for names, or gives one id two
            names; the message has line and column.
    """
    path = Path(path)
    unknown = sorted(set(columns or {}) - set(COLUMNS))
    if unknown:
        raise MedReflError(f"columns: unknown name {unknown[0]!r}; expected some of {', '.join(COLUMNS)}")
    names = {**COLUMNS, **(columns or {})}
    key = _cache_key(path, names)
    graph = _read_cache(cache, key) if cache else None
    if graph is None:
        table = read_columns(path, names, _NEEDED)
        graph = _build(table)
        if cache:
            _write_cache(cache, graph, key)
    check_dropped(f"{path}: rows", graph.dropped, graph.rows, max_dropped)
    found = sorted(graph.nodes["type"].unique())
    if not set(types) & set(found):
        raise MedReflError(
            f"{path}: none of its node types is of use: found {', '.join(map(repr, found[:12]))}; expected at least "
            f"one of {', '.join(map(repr, types))}"
        )
    return graph


def _build(table: Table) -> KnowledgeGraph:
    # Both ends of an edge are coded together: the x side of all rows, then the y side.
    ends = {name: table.codes(f"x_{name}", f"y_{name}") for name in ("type", "id", "name")}
    relation = table.codes("relation")
    rows = _rows_with_all_cells(table, ends, relation)
    check_some_left(f"{table.path}: rows", len(rows), table.dropped, "expected a type, id and name for both ends")
    both = np.concatenate([rows, rows + len(table)])
    number, nodes, name_of = _number_nodes(ends["type"].of(both), ends["id"].of(both), ends["name"].of(both))
    names = ends["name"]
    _check_one_name(table, nodes, names, names.codes[both], number, name_of, rows)
    nodes["name"] = [" ".join(names.values[code].split()) for code in name_of]
    _check_names_are_no_numbers(table, nodes, number, rows)
    first = _first_rows(number, len(nodes))
    nodes["source"] = _text_of_first(table, "source", both[first])
    synonyms = _text_of_first(table, "synonyms", both[first])
    nodes["synonyms"] = [[part.strip() for part in text.split("|") if part.strip()] for text in synonyms]
    half = len(rows)
    loops = number[:half] == number[half:]
    if loops.any():
        table.dropped["self_loop"] = int(loops.sum())
    relation_names = sorted(set(relation.values[np.unique(relation.codes[rows])]))
    place = {name: i for i, name in enumerate(relation_names)}
    ranks = np.array([place.get(name, 0) for name in relation.values], dtype=np.int64)
    adjacency, sets = _adjacency(
        number[:half][~loops], number[half:][~loops], ranks[relation.codes[rows]][~loops], relation_names, len(nodes)
    )
    return KnowledgeGraph(nodes, relation_names, adjacency, sets, half, table.dropped)


def _rows_with_all_cells(table: Table, ends: Mapping[str, Codes], relation: Codes) -> np.ndarray:
    """Return the rows whose needed cells are not empty, and count the others."""
    good = np.ones(len(table), bool)
    cells = {"relation": relation}
    for name, column in ends.items():
        for side, part in (("x", slice(None, len(table))), ("y", slice(len(table), None))):
            cells[f"{side}_{name}"] = Codes(column.codes[part], column.values)
    for name, column in cells.items():
        empty = np.array([not (value or "").strip() for value in column.values], dtype=bool)
        if not empty.any():
            continue
        faulty = np.flatnonzero(empty[column.codes] & good)
        good[faulty] = False
        if len(faulty):
            example = f"{table.path}, {table.unit} {table.line(int(faulty[0])):,}, column {name!r} is empty"
            table.dropped.drop(f"empty_{name}", example)
            table.dropped[f"empty_{name}"] += len(faulty) - 1
    return np.flatnonzero(good)


def _number_nodes(type: Codes, id: Codes, name: Codes) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Return each end's node number, the table of nodes (type, id), and the code of each node's first name."""
    key = type.codes.astype(np.int64) * len(id.values) + id.codes
    codes, found = pd.factorize(key)
    nodes = pd.DataFrame({"type": type.values[found // len(id.values)], "id": id.values[found % len(id.values)]})
    nodes = nodes.sort_values(["type", "id"], kind="stable")
    rank = np.empty(len(nodes), dtype=np.int32)
    rank[nodes.index] = np.arange(len(nodes), dtype=np.int32)
    number = rank[codes]
    return number, nodes.reset_index(drop=True), name.codes[_first_rows(number, len(nodes))]


def _first_rows(number: np.ndarray, n: int) -> np.ndarray:
    """Return the first place of each of the numbers 0 to n - 1."""
    first = np.empty(n, dtype=np.int64)
    first[number[::-1]] = np.arange(len(number) - 1, -1, -1)
    return first


def _text_of_first(table: Table, name: str, places: np.ndarray) -> list[str]:
    if f"x_{name}" not in table or f"y_{name}" not in table:
        return [""] * len(places)
    column = table.codes(f"x_{name}", f"y_{name}")
    return [(column.values[code] or "").strip() for code in column.codes[places]]


def _check_one_name(
    table: Table,
    nodes: pd.DataFrame,
    names: Codes,
    codes: np.ndarray,
    number: np.ndarray,
    name_of: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Refuse a node with two names; case and spaces make no difference."""
    other = np.flatnonzero(codes != name_of[number])
    same: dict[tuple[int, int], bool] = {}
    for place in other:
        pair = int(codes[place]), int(name_of[number[place]])
        if pair not in same:
            one, two = (" ".join(names.values[code].casefold().split()) for code in pair)
            same[pair] = one == two
        if not same[pair]:
            node = nodes.iloc[number[place]]
            side, row = ("x", rows[place]) if place < len(rows) else ("y", rows[place - len(rows)])
            raise MedReflError(
                f"{table.path}, {table.unit} {table.line(int(row)):,}, column '{side}_name': {node['type']} "
                f"{node['id']!r} is named {names.values[pair[0]]!r} here and {names.values[pair[1]]!r} above; expected "
                "one name per type and id"
            )


def _check_names_are_no_numbers(table: Table, nodes: pd.DataFrame, number: np.ndarray, rows: np.ndarray) -> None:
    """Refuse a graph in which more than half of a type's names are numbers, as in a broken download."""
    numeric = nodes["name"].str.fullmatch(_NUMBER)
    share = numeric.groupby(nodes["type"]).mean()
    for type in share.index[share > 0.5]:
        wanted = np.zeros(len(nodes), bool)
        wanted[nodes.index[numeric & (nodes["type"] == type)]] = True
        place = int(np.argmax(wanted[number]))
        side, row = ("x", rows[place]) if place < len(rows) else ("y", rows[place - len(rows)])
        raise MedReflError(
            f"{table.path}, {table.unit} {table.line(int(row)):,}, column '{side}_name': "
            f"{nodes['name'].iloc[number[place]]!r} is a number, as are {share[type]:.0%} of the names of type "
            f"{type!r}; expected names: the file is broken, or columns are mixed up"
        )


def _adjacency(
    x: np.ndarray, y: np.ndarray, relation: np.ndarray, names: Sequence[str], n: int
) -> tuple[sparse.csr_array, list[tuple[tuple[str, ...], tuple[str, ...]]]]:
    """Return the symmetric adjacency and the sets of relations that its entries number."""
    low, high = np.minimum(x, y).astype(np.int64), np.maximum(x, y).astype(np.int64)
    width = 2 * max(1, len(names))
    key = (low * n + high) * width + 2 * relation + (x > y)
    del low, high
    key.sort()  # faster here than np.unique, which hashes first
    key = key[np.diff(key, prepend=-1) > 0]
    pair, code = key // width, key % width
    start = np.flatnonzero(np.diff(pair, prepend=-1))
    # Equal sets of relations have equal sums of random 64-bit numbers, one per relation and direction.
    weight = np.random.default_rng(0).integers(0, 2**64, width, dtype=np.uint64)
    total = np.add.reduceat(weight[code], start) if len(start) else np.zeros(0, np.uint64)
    which, different = pd.factorize(total)
    first = _first_rows(which, len(different))
    end = np.append(start[1:], len(code))
    sets = []
    for one in first:
        found = code[start[one] : end[one]]
        there, back = (tuple(names[c // 2] for c in found if c % 2 == side) for side in (0, 1))
        sets.append((there, back))
    low, high = pair[start] // n, pair[start] % n
    kind = np.int16 if 2 * len(sets) < 2**15 else np.int32
    entries = np.concatenate([which, which + len(sets)]).astype(kind)
    ends = (np.concatenate([low, high]).astype(np.int32), np.concatenate([high, low]).astype(np.int32))
    matrix = sparse.csr_array(sparse.coo_array((entries, ends), shape=(n, n)))
    matrix.sort_indices()
    return matrix, [*sets, *((back, there) for there, back in sets)]


def _cache_key(path: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    stat = path.stat()
    return {"format": _FORMAT, "path": str(path.resolve()), "size": stat.st_size, "mtime": stat.st_mtime_ns,
            "columns": dict(columns)}  # fmt: skip


def _write_cache(cache: Path, graph: KnowledgeGraph, key: Mapping[str, Any]) -> None:
    table = pa.Table.from_pandas(graph.nodes, preserve_index=False)
    nodes = io.BytesIO()
    pq.write_table(table, nodes)
    about = {
        **{"key": key, "rows": graph.rows, "relations": graph.relation_names, "sets": graph.relation_sets},
        **{"dropped": dict(graph.dropped), "examples": graph.dropped.examples},
    }
    arrays = {
        "indptr": graph.adjacency.indptr,
        "indices": graph.adjacency.indices,
        "data": graph.adjacency.data,
        "nodes": np.frombuffer(nodes.getvalue(), np.uint8),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            np.savez(file, **arrays)

    write_whole(Path(cache), write)


def _read_cache(cache: Path, key: Mapping[str, Any]) -> KnowledgeGraph | None:
    """Return the graph of the cache; None if there is none, if it is of another file, or if it cannot be read."""
    try:
        with np.load(cache) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["key"] != key:
                return None
            nodes = pq.read_table(io.BytesIO(arrays["nodes"].tobytes())).to_pandas()
            parts = arrays["data"], arrays["indices"], arrays["indptr"]
        nodes["synonyms"] = [list(names) for names in nodes["synonyms"]]
        dropped = DropCounts(about["dropped"])
        dropped.examples = about["examples"]
        sets = [(tuple(there), tuple(back)) for there, back in about["sets"]]
        adjacency = sparse.csr_array(parts, shape=(len(nodes), len(nodes)))
        return KnowledgeGraph(nodes, about["relations"], adjacency, sets, about["rows"], dropped)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pa.ArrowException):
        return None
