"""A knowledge graph keeps every node and every relation of its file, and a broken file is refused at its line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.exam import clinic
from medrefl_utils.knowledge import read_graph, write_clinic_graph
from tests.benchmarks.bench_knowledge import write_large_graph

HEAD = "relation,display_relation,x_index,x_id,x_type,x_name,x_source,y_index,y_id,y_type,y_name,y_source"
FEVER = "1,HP:1,effect/phenotype,Fever,HPO"
FLU = "2,MONDO:1,disease,influenza,MONDO"
DRUG = "3,DB1,drug,oseltamivir,DrugBank"
ROWS = [
    f"r,phenotype present,{FLU},{FEVER}",
    f"r,phenotype present,{FEVER},{FLU}",
    f"r,indication,{DRUG},{FLU}",
    f"r,off-label use,{DRUG},{FLU}",
    f"r,side effect,{DRUG},{FEVER}",
    f'r,parent-child,{FLU},4,MONDO:2,disease,"flu, avian",MONDO',
]


def table(path: Path, rows: list[str] = ROWS, head: str = HEAD, end: str = "\n") -> Path:
    path.write_bytes(("\n".join([head, *rows]) + end).encode())
    return path


def test_nodes_are_keyed_by_type_and_id_and_every_relation_is_kept(tmp_path: Path) -> None:
    graph = read_graph(table(tmp_path / "kg.csv"))
    assert graph.nodes.to_dict("list") == {
        "type": ["disease", "disease", "drug", "effect/phenotype"],
        "id": ["MONDO:1", "MONDO:2", "DB1", "HP:1"],
        "name": ["influenza", "flu, avian", "oseltamivir", "Fever"],
        "source": ["MONDO", "MONDO", "DrugBank", "HPO"],
        "synonyms": [[], [], [], []],
    }
    flu, avian, drug, fever = range(4)
    assert graph.number("drug", "DB1") == drug
    assert graph.relation_names == ["indication", "off-label use", "parent-child", "phenotype present", "side effect"]
    assert graph.relations(drug, flu) == graph.relations(flu, drug) == ("indication", "off-label use")
    assert graph.directed_relations(drug, flu) == (("indication", "off-label use"), ())
    assert graph.directed_relations(flu, drug) == ((), ("indication", "off-label use"))
    assert graph.directed_relations(flu, fever) == (("phenotype present",), ("phenotype present",))
    assert graph.relations(avian, fever) == () and graph.relations(flu, flu) == ()
    assert graph.neighbours(flu).tolist() == [avian, drug, fever]
    assert graph.degree.tolist() == [3, 1, 2, 2]
    with pytest.raises(MedReflError, match="no node of type 'drug' with id 'HP:1'"):
        graph.number("drug", "HP:1")


def test_one_name_in_two_types_is_two_nodes_and_the_order_of_the_rows_changes_nothing(tmp_path: Path) -> None:
    rows = [*ROWS, f"r,linked to,{FLU},9,CTD:1,exposure,Fever,CTD"]
    graph = read_graph(table(tmp_path / "kg.csv", rows))
    assert graph.nodes.loc[graph.nodes["name"] == "Fever", "type"].tolist() == ["effect/phenotype", "exposure"]
    other = read_graph(table(tmp_path / "other.csv", rows[::-1]))
    pd.testing.assert_frame_equal(graph.nodes, other.nodes)
    for a in range(len(graph.nodes)):
        for b in range(len(graph.nodes)):
            assert graph.directed_relations(a, b) == other.directed_relations(a, b)


def test_a_generated_graph_agrees_with_pandas(tmp_path: Path) -> None:
    file = write_large_graph(tmp_path / "kg.csv", nodes=300, edges=2000)
    graph = read_graph(file)
    rows = pd.read_csv(file, dtype=str)
    rows = rows[rows["x_id"] != rows["y_id"]]
    number = {id: graph.number(type, id) for type, id in zip(rows["x_type"], rows["x_id"], strict=True)}
    assert len(number) == len(graph.nodes)
    wanted: dict[tuple[int, int], set[str]] = {}
    for x, y, relation in zip(rows["x_id"], rows["y_id"], rows["display_relation"], strict=True):
        wanted.setdefault((number[x], number[y]), set()).add(relation)
    assert graph.adjacency.nnz == len(wanted)
    for (a, b), relations in wanted.items():
        assert graph.relations(a, b) == tuple(sorted(relations))
    near = rows.groupby("x_id")["y_id"].nunique()
    assert {id: graph.degree[n] for id, n in number.items()} == near.to_dict()


def test_the_cache_gives_the_same_graph_and_is_made_again_when_the_file_changes(tmp_path: Path) -> None:
    file, cache = table(tmp_path / "kg.csv", [*ROWS, f"r,indication,{DRUG},,,,,"]), tmp_path / "cache/kg.npz"
    first = read_graph(file, cache=cache, max_dropped=0.2)
    again = read_graph(file, cache=cache, max_dropped=0.2)
    pd.testing.assert_frame_equal(first.nodes, again.nodes)
    assert (first.adjacency != again.adjacency).nnz == 0 and first.relation_sets == again.relation_sets
    assert first.dropped == again.dropped == {"empty_y_type": 1}
    with pytest.raises(MedReflError, match="rows: 1 of 7 are dropped"):
        read_graph(file, cache=cache)
    table(file, ROWS[:3])
    assert len(read_graph(file, cache=cache).nodes) == 3
    cache.write_bytes(cache.read_bytes()[:500])
    assert len(read_graph(file, cache=cache).nodes) == 3


def test_tsv_gzip_other_columns_and_synonyms(tmp_path: Path) -> None:
    head = ["rel", "a", "a_kind", "a_label", "also", "b", "b_kind", "b_label", "also_b"]
    rows = [["treats", "1", "drug", "aspirin", "ASA | acetylsalicylic acid", "2", "disease", "migraine", ""]]
    text = "\n".join("\t".join(row) for row in [head, *rows]) + "\n"
    file = tmp_path / "edges.tsv.gz"
    file.write_bytes(gzip.compress(text.encode()))
    names = {"relation": "rel", "x_id": "a", "x_type": "a_kind", "x_name": "a_label", "x_synonyms": "also", "y_id": "b",
             "y_type": "b_kind", "y_name": "b_label", "y_synonyms": "also_b"}  # fmt: skip
    graph = read_graph(file, columns=names)
    assert graph.relations(0, 1) == ("treats",)
    assert graph.nodes["synonyms"].tolist() == [[], ["ASA", "acetylsalicylic acid"]]
    graph.nodes.to_csv(tmp_path / "unused.csv")
    edges = pd.read_csv(file, sep="\t", dtype=str)
    edges.to_parquet(tmp_path / "edges.parquet")
    same = read_graph(tmp_path / "edges.parquet", columns=names)
    pd.testing.assert_frame_equal(same.nodes, graph.nodes)


def test_faulty_rows_are_left_out_and_counted_up_to_a_share(tmp_path: Path) -> None:
    rows = [*ROWS[:2], "r,too,short", f"r,indication,{DRUG},2,,disease,influenza,MONDO", *ROWS[2:]]
    rows += [f"r,side effect,{DRUG},{DRUG}"]
    graph = read_graph(table(tmp_path / "kg.csv", rows), max_dropped=0.3)
    assert graph.dropped == {"columns": 1, "empty_y_id": 1, "self_loop": 1}
    assert "line 5, column 'y_id' is empty" in graph.dropped.examples["empty_y_id"]
    assert "3 columns, expected 12" in graph.dropped.examples["columns"]
    assert len(graph.nodes) == 4 and graph.relations(0, 2) == ("indication", "off-label use")
    with pytest.raises(MedReflError, match=r"kg.csv: rows: 2 of 9 are dropped \(columns 1, empty_y_id 1\)"):
        read_graph(tmp_path / "kg.csv")


WHOLE = "\n".join([HEAD, *ROWS])
NUMBERS = [ROWS[0], ROWS[1].replace("Fever", "17.0").replace("HP:1", "HP:2")]
NUMBERS += [f"r,x,{FLU},1,HP:{i},effect/phenotype,{i}.5,HPO" for i in range(5, 9)]
OTHER_TYPES = WHOLE.replace(",disease,", ",d,").replace(",drug,", ",c,").replace(",effect/phenotype,", ",s,")
REFUSED = {
    "empty": ("", "line 1: the column 'display_relation' is missing; found an empty file"),
    "head only": (f"{HEAD}\n", "no row below the head of line 1"),
    "no column": (WHOLE.replace("y_name", "name_y"), "line 1: the column 'y_name' is missing"),
    "a web page": ("<!DOCTYPE html>\n<p>404</p>\n", "line 1: .* is missing; found <!DOCTYPE"),
    "cut in a row": (WHOLE[:-25], r"line 7, column 'y_type': the file ends inside this row \(10 of 12"),
    "cut in a name": (WHOLE[:-10], "line 7, column 'y_name': the file ends inside this row"),
    "cut, closed": (f"{WHOLE[:-40]}\n", "line 7, column 'y_index': the file ends inside"),
    "numbers": (
        "\n".join([HEAD, *NUMBERS, ""]),
        "line 3, column 'x_name': '17.0' is a number, as are 83% of the names of type 'effect/phenotype'",
    ),
    "two names": (
        f"{WHOLE}\nr,indication,{DRUG.replace('oseltamivir', 'zanamivir')},{FLU}\n",
        "line 8, column 'x_name': drug 'DB1' is named 'zanamivir' here and 'oseltamivir' above",
    ),
    "no useful type": (OTHER_TYPES, "none of its node types is of use: found 'c', 'd', 's'; expected at least one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_file_is_refused_at_its_line_and_column(case: str, tmp_path: Path) -> None:
    text, message = REFUSED[case]
    file = tmp_path / "kg.csv"
    file.write_text(text)
    with pytest.raises(MedReflError, match=message) as caught:
        read_graph(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    packed = tmp_path / "kg.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(MedReflError, match=message):
        read_graph(packed)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(MedReflError, match="kg.csv does not exist"):
        read_graph(tmp_path / "kg.csv")
    with pytest.raises(MedReflError, match="columns: unknown name 'z_id'"):
        read_graph(table(tmp_path / "kg.csv"), columns={"z_id": "x"})
    half = tmp_path / "half.csv.gz"
    half.write_bytes(gzip.compress(write_large_graph(tmp_path / "large.csv", 300, 2000).read_bytes())[:-2000])
    with pytest.raises(MedReflError, match=r"half.csv.gz.*broken download|half.csv.gz.*the file ends inside"):
        read_graph(half)
    latin = tmp_path / "latin.csv"
    latin.write_bytes("\n".join([HEAD, *ROWS, ""]).replace("influenza", "Ménière").encode("latin-1"))
    with pytest.raises(MedReflError, match=r"latin.csv.*UTF"):
        read_graph(latin)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(MedReflError, match="broken.parquet"):
        read_graph(tmp_path / "broken.parquet")


def test_a_file_without_a_last_line_break_is_whole(tmp_path: Path) -> None:
    assert len(read_graph(table(tmp_path / "kg.csv", end="")).nodes) == 4
    assert len(read_graph(table(tmp_path / "kg.csv", end="\n\n")).nodes) == 4


def test_quotes_commas_and_windows_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "kg.csv"
    file.write_bytes(
        (
            "\ufeff"
            + "\r\n".join([HEAD, *ROWS, 'r,has,4,MONDO:2,disease,"flu, avian",MONDO,5,D:9,drug,"a ""b"" c",X', ""])
        ).encode()
    )  # noqa: E501
    graph = read_graph(file)
    assert 'a "b" c' in graph.names and "flu, avian" in graph.names and graph.dropped == {}


def test_the_clinics_truth_is_the_graph(tmp_path: Path) -> None:
    world = clinic.world()
    graph = read_graph(write_clinic_graph(tmp_path / "clinic.csv", world))
    assert graph.nodes["type"].value_counts().to_dict() == {
        "disease": 30, "effect/phenotype": len({f for shown in world.shows.values() for f in shown}),
        "biological_process": 15, "test": len(set(world.test.values())), "drug": 15,
    }  # fmt: skip
    for disease, shown in world.shows.items():
        d = graph.number("disease", disease)
        near = {(graph.nodes["type"][n], graph.nodes["name"][n]): graph.relations(d, n) for n in graph.neighbours(d)}
        assert near == {
            **{("effect/phenotype", finding): ("presents",) for finding in shown},
            ("biological_process", world.mechanism[disease]): ("arises from",),
            ("test", world.test[disease]): ("is confirmed by",),
        }
    for mechanism, drug in world.drug.items():
        ends = graph.number("biological_process", mechanism), graph.number("drug", drug)
        assert graph.directed_relations(*ends) == (("is treated with",), ())
    assert np.array_equal(graph.adjacency.indptr, read_graph(tmp_path / "clinic.csv").adjacency.indptr)
