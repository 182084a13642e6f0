"""Write the clinic's world as a knowledge graph, in the columns of PrimeKG: a graph whose truth is known."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from medrefl_utils.core.store import write_text
from medrefl_utils.exam.clinic import World

PRIMEKG_COLUMNS = (
    *("relation", "display_relation", "x_index", "x_id", "x_type", "x_name", "x_source"),
    *("y_index", "y_id", "y_type", "y_name", "y_source"),
)
"""The twelve columns of PrimeKG's file."""
_SOURCE = "clinic"


def write_clinic_graph(path: Path, world: World) -> Path:
    """Write the clinic's truth as a CSV in PrimeKG's twelve columns, and return its path.

    Findings are nodes of type effect/phenotype, mechanisms of type biological_process; a test is a node of type "test",
    which PrimeKG does not have. Each relation is one row: a disease *presents* a finding, *arises from* a mechanism and
    *is confirmed by* a test; a mechanism *is treated with* a drug. An id is the name.
    """
    rows = list(_edges(world))
    nodes = list(dict.fromkeys(node for row in rows for node in row[2:]))
    index = {node: i for i, node in enumerate(nodes)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PRIMEKG_COLUMNS)
    for relation, display, *ends in rows:
        cells = [cell for type, name in ends for cell in (index[type, name], name, type, name, _SOURCE)]
        writer.writerow([relation, display, *cells])
    return write_text(Path(path), text.getvalue())


def _edges(world: World) -> Iterator[tuple[str, str, tuple[str, str], tuple[str, str]]]:
    for disease, findings in world.shows.items():
        for finding in sorted(findings):
            yield "disease_phenotype_positive", "presents", ("disease", disease), ("effect/phenotype", finding)
    for disease, mechanism in world.mechanism.items():
        yield "disease_bioprocess", "arises from", ("disease", disease), ("biological_process", mechanism)
    for disease, test in world.test.items():
        yield "disease_test", "is confirmed by", ("disease", disease), ("test", test)
    for mechanism, drug in world.drug.items():
        yield "bioprocess_drug", "is treated with", ("biological_process", mechanism), ("drug", drug)
