"""Graphs whose nodes have a table of their own are joined into one, in PrimeKG's columns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.knowledge import join_node_table, link_entities, read_graph

NODES = [
    ("Compound::DB00945", "Aspirin", "Compound"),
    ("Disease::DOID:6364", "migraine", "Disease"),
    ("Symptom::D006261", "Headache", "Symptom"),
    ("Gene::5742", "PTGS1", "Gene"),
]
EDGES = [
    ("Compound::DB00945", "CtD", "Disease::DOID:6364"),
    ("Compound::DB00945", "CpD", "Disease::DOID:6364"),
    ("Disease::DOID:6364", "DpS", "Symptom::D006261"),
    ("Compound::DB00945", "CbG", "Gene::5742"),
    ("Compound::DB00945", "CbG", "Gene::1"),
]


def hetionet(folder: Path) -> tuple[Path, Path]:
    nodes = folder / "nodes.tsv"
    nodes.write_text("\n".join(["id\tname\tkind", *("\t".join(row) for row in NODES), ""]))
    edges = folder / "edges.sif.gz"
    text = "\n".join(["source\tmetaedge\ttarget", *("\t".join(row) for row in EDGES), ""])
    edges.write_bytes(gzip.compress(text.encode()))
    return edges, nodes


def test_hetionet(tmp_path: Path) -> None:
    dropped = join_node_table(*hetionet(tmp_path), tmp_path / "hetionet.parquet")
    assert dropped == {"unknown_node": 1}
    assert "line 6: 'Gene::1' has no entry with a name" in dropped.examples["unknown_node"]
    graph = read_graph(tmp_path / "hetionet.parquet")
    assert graph.nodes[["type", "name"]].to_numpy().tolist() == [
        ["disease", "migraine"],
        ["drug", "Aspirin"],
        ["effect/phenotype", "Headache"],
        ["gene/protein", "PTGS1"],
    ]
    assert graph.directed_relations(1, 0) == (("palliates", "treats"), ())
    assert graph.relations(0, 2) == ("presents",) and graph.relations(1, 3) == ("binds",)


def test_optimuskg(tmp_path: Path) -> None:
    about = {"name": "migraine disorder", "synonyms": ["migraine", "sick headache"], "description": "..."}
    nodes = pd.DataFrame(
        [
            ("MONDO_1", "DIS", json.dumps(about)),
            ("ENSG1", "GEN", json.dumps({"symbol": "PTGS1", "synonyms": None})),
            ("CHEMBL25", "DRG", json.dumps({"name": "ASPIRIN"})),
            ("X", "EXP", "{}"),
        ],
        columns=["id", "label", "properties"],
    )
    rows = [("CHEMBL25", "MONDO_1", "DRG-DIS", "OFF_LABEL_USE"), ("MONDO_1", "ENSG1", "DIS-GEN", "ASSOCIATED_WITH"),
            ("X", "MONDO_1", "EXP-DIS", "LINKED_TO")]  # fmt: skip
    edges = pd.DataFrame(rows, columns=["from", "to", "label", "relation"]).assign(undirected=True, properties="{}")
    nodes.to_parquet(tmp_path / "nodes.parquet")
    edges.to_parquet(tmp_path / "edges.parquet")
    files = tmp_path / "edges.parquet", tmp_path / "nodes.parquet", tmp_path / "kg.parquet"
    assert join_node_table(*files) == {"unknown_node": 1}
    graph = read_graph(files[2])
    assert graph.nodes[["type", "name"]].to_numpy().tolist() == [
        ["disease", "migraine disorder"], ["drug", "ASPIRIN"], ["gene/protein", "PTGS1"]]  # fmt: skip
    assert graph.relations(0, 1) == ("off label use",) and graph.relations(0, 2) == ("associated with",)
    assert [graph.names[m.node] for m in link_entities("A sick headache; aspirin helped.", graph)] == [
        "migraine disorder", "ASPIRIN"]  # fmt: skip
    nodes.assign(properties="{").to_parquet(tmp_path / "nodes.parquet")
    with pytest.raises(MedReflError, match=r"nodes.parquet, row 1, column 'properties': '\{' is not JSON"):
        join_node_table(*files)


def test_other_tables_and_missing_ones_are_refused(tmp_path: Path) -> None:
    edges, nodes = hetionet(tmp_path)
    with pytest.raises(MedReflError, match=r"has the columns id, name, kind, and .*expected source|expected metaedge"):
        join_node_table(nodes, edges, tmp_path / "kg.parquet")
    with pytest.raises(MedReflError, match="nothing.tsv does not exist"):
        join_node_table(edges, tmp_path / "nothing.tsv", tmp_path / "kg.parquet")
    nodes.write_text("id\tname\tkind\nother\tother\tDisease\n")
    with pytest.raises(MedReflError, match=r"edges.sif.gz: rows: none is left \(unknown_node 5\)"):
        join_node_table(edges, nodes, tmp_path / "kg.parquet")
    assert not (tmp_path / "kg.parquet").exists()
