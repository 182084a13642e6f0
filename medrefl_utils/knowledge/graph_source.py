"""Load the graph that a notebook's parameter names: a file, or the built-in clinic's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medrefl_utils.exam import clinic
from medrefl_utils.knowledge.clinic_graph import write_clinic_graph
from medrefl_utils.knowledge.graph import KnowledgeGraph, read_graph

CLINIC = "clinic"


def load_graph(source: str, *, columns: Mapping[str, str] | None = None, folder: Path) -> KnowledgeGraph:
    """Return a graph by its source.

    Args:
        source: "clinic" (the truth of the synthetic exam), or a file for ``read_graph``.
        columns: {our name: name in the file} where the file has other column names than PrimeKG.
        folder: where the clinic's file, or the cache of another file, is written.

    Raises:
        MedReflError: what ``read_graph`` raises.
    """
    if source == CLINIC:
        return read_graph(write_clinic_graph(folder / "clinic_graph.csv", clinic.world()))
    return read_graph(Path(source), columns=columns, cache=folder / "graph_cache")
