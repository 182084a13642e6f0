"""Join the tables of a graph whose nodes have a table of their own (Hetionet, OptimusKG) into one for read_graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medrefl_utils.core.dropped_rows import DropCounts, check_some_left
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.store import write_whole
from medrefl_utils.knowledge.graph import COLUMNS
from medrefl_utils.knowledge.graph_files import Table, column_names, read_columns

_TYPES = {
    **{"compound": "drug", "drg": "drug", "pharmacologic class": "drug class"},
    **{"symptom": "effect/phenotype", "side effect": "effect/phenotype", "phe": "effect/phenotype"},
    **{"phenotype": "effect/phenotype", "gene": "gene/protein", "gen": "gene/protein", "dis": "disease"},
    **{"biological process": "biological_process", "bpo": "biological_process", "ana": "anatomy", "exp": "exposure"},
    **{"cellular component": "cellular_component", "cco": "cellular_component", "pwy": "pathway"},
    **{"molecular function": "molecular_function", "mfn": "molecular_function"},
}
"""{a type of Hetionet or OptimusKG, in small letters: PrimeKG's}; other types stay as they are, in small letters."""
_METAEDGES = {
    **{"AdG": "downregulates", "AeG": "expresses", "AuG": "upregulates", "CbG": "binds", "CcSE": "causes"},
    **{"CdG": "downregulates", "CpD": "palliates", "CrC": "resembles", "CtD": "treats", "CuG": "upregulates"},
    **{"DaG": "associates", "DdG": "downregulates", "DlA": "localizes", "DpS": "presents", "DrD": "resembles"},
    **{"DuG": "upregulates", "GcG": "covaries", "GiG": "interacts", "Gr>G": "regulates", "PCiC": "includes"},
    **{"GpBP": "participates", "GpCC": "participates", "GpMF": "participates", "GpPW": "participates"},
}
"""{Hetionet's abbreviation: relation}"""


@dataclass(frozen=True)
class _Layout:
    name: str
    edges: Mapping[str, str]
    nodes: Mapping[str, str]


_LAYOUTS = (
    _Layout(
        "Hetionet",
        {"relation": "metaedge", "x_id": "source", "y_id": "target"},
        {"id": "id", "type": "kind", "name": "name"},
    ),
    _Layout(
        "OptimusKG",
        {"relation": "relation", "x_id": "from", "y_id": "to"},
        {"id": "id", "type": "label", "properties": "properties"},
    ),
)


def join_node_table(edges: Path, nodes: Path, path: Path) -> DropCounts:
    """Write one Parquet table in PrimeKG's columns from a table of edges and a table of nodes.

    Types and relations get PrimeKG's words ("Compound" becomes "drug", "CtD" becomes "treats"). A row that names a node
    without an entry or without a name is left out and counted.

    Args:
        edges: Hetionet's ``edges.sif.gz`` (source, metaedge, target) or OptimusKG's ``edges.parquet`` (from, to,
            relation).
        nodes: Hetionet's ``nodes.tsv`` (id, name, kind) or OptimusKG's ``nodes.parquet`` (id, label, properties).
        path: of the new table, for ``read_graph``.

    Returns:
        The counts of the rows that are left out: ``unknown_node``, and what ``read_columns`` counts.

    Raises:
        MedReflError: a file is missing or broken, or the two have the columns of neither graph.
    """
    heads = column_names(edges), column_names(nodes)
    layout = next(
        (one for one in _LAYOUTS if {*one.edges.values()} <= {*heads[0]} and {*one.nodes.values()} <= {*heads[1]}), None
    )
    if layout is None:
        expected = "; ".join(
            f"{', '.join(one.edges.values())} and {', '.join(one.nodes.values())} ({one.name})" for one in _LAYOUTS
        )
        raise MedReflError(
            f"{edges} has the columns {', '.join(heads[0])}, and {nodes} {', '.join(heads[1])}; expected {expected}"
        )
    table = read_columns(edges, layout.edges, tuple(layout.edges))
    known = _known_nodes(read_columns(nodes, layout.nodes, tuple(layout.nodes)))
    dropped = table.dropped
    ends = table.codes("x_id", "y_id")
    has_entry = np.array([id in known for id in ends.values], dtype=bool)[ends.codes].reshape(2, -1)
    rows = np.flatnonzero(has_entry.all(axis=0))
    if len(rows) < len(table):
        first = int(np.flatnonzero(~has_entry.all(axis=0))[0])
        place = f"{edges}, {table.unit} {table.line(first):,}"
        missing = [ends.values[code] for code in ends.codes.reshape(2, -1)[:, first]]
        missing = next(id for id in missing if id not in known)
        dropped.drop("unknown_node", f"{place}: {missing!r} has no entry with a name in {nodes}")
        dropped["unknown_node"] = len(table) - len(rows)
    check_some_left(f"{edges}: rows", len(rows), dropped, f"expected the ids of {nodes}")
    relation = table.codes("relation")
    words = [_METAEDGES.get(text, text.replace("_", " ").lower()) for text in relation.values]
    columns = {COLUMNS["relation"]: _column(relation.codes[rows], words)}
    for side, codes in zip("xy", ends.codes.reshape(2, -1), strict=True):
        for name in ("type", "name", "synonyms"):
            values = [known[id][name] if id in known else "" for id in ends.values]
            columns[COLUMNS[f"{side}_{name}"]] = _column(codes[rows], values)
        columns[COLUMNS[f"{side}_id"]] = _column(codes[rows], ends.values.tolist())
    joined = pa.table(columns)
    write_whole(path, lambda beside: pq.write_table(joined, beside))
    return dropped


def _column(codes: np.ndarray, values: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(values, pa.string()))


def _known_nodes(table: Table) -> dict[str, dict[str, str]]:
    """Return {id: type, name, synonyms} of the nodes that have a name."""
    texts = {}
    for name in ("id", "type", "name", "properties"):
        if name in table:
            column = table.codes(name)
            texts[name] = [column.values[code] for code in column.codes]
    known = {}
    for place, id in enumerate(texts["id"]):
        about = _properties(table, place, texts["properties"][place]) if "properties" in texts else {}
        name = texts["name"][place] if "name" in texts else about.get("name") or about.get("symbol") or ""
        kind = texts["type"][place].strip().lower()
        synonyms = about.get("synonyms") or []
        if isinstance(name, str) and name.strip():
            also = [one for one in synonyms if isinstance(one, str)] if isinstance(synonyms, list) else []
            known[id] = {"type": _TYPES.get(kind, kind), "name": name.strip(), "synonyms": "|".join(also)}
    return known


def _properties(table: Table, place: int, text: str) -> dict:
    try:
        about = json.loads(text or "{}")
    except ValueError:
        raise MedReflError(
            f"{table.path}, {table.unit} {table.line(place):,}, column 'properties': {text[:60]!r} is not JSON"
        ) from None
    return about if isinstance(about, dict) else {}
