"""Shortest paths between entities: all of them, the right ones, within limits, and the same for the same seed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrefl_utils.core import MedReflError
from medrefl_utils.exam import clinic
from medrefl_utils.knowledge import (
    KnowledgeGraph,
    KnowledgePath,
    choose_paths,
    describe_path,
    link_entities,
    read_graph,
    shortest_paths,
    write_clinic_graph,
)
from tests.conftest import SHARED

HEAD = "display_relation,x_id,x_type,x_name,y_id,y_type,y_name"


def graph_of(folder: Path, edges: list[tuple[str, str, str]]) -> KnowledgeGraph:
    """Make a graph of diseases from (name, relation, name); a node's id is its name."""
    rows = [f"{relation},{a},disease,{a},{b},disease,{b}" for a, relation, b in edges]
    file = folder / "kg.csv"
    file.write_text("\n".join([HEAD, *rows, ""]))
    return read_graph(file)


def names(graph: KnowledgeGraph, paths: list[KnowledgePath]) -> list[str]:
    return ["".join(graph.names[node] for node in path.nodes) for path in paths]


# a-b-d, a-c-d and a-e-f-d; b has three further neighbours, so that it is the hub.
EDGES = [
    *(("a", "r", "b"), ("b", "r", "d"), ("a", "r", "c"), ("d", "s", "c"), ("c", "t", "d"), ("a", "r", "e")),
    *(("e", "r", "f"), ("f", "r", "d"), ("b", "r", "x"), ("b", "r", "y"), ("b", "r", "z")),
]


def test_all_shortest_paths_of_a_pair_with_their_relations(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, EDGES)
    a, b, c, d, e, f = (graph.number("disease", name) for name in "abcdef")
    found = shortest_paths(graph, [a], [d], max_hops=3, max_paths=10, seed=0)
    assert found == [
        KnowledgePath((a, b, d), (("r",), ("r",))),
        KnowledgePath((a, c, d), (("r",), ("s", "t"))),
    ]
    assert names(graph, shortest_paths(graph, [d, e], [a, e], max_hops=3, max_paths=10, seed=0)) == [
        *("dba", "dca", "dfe", "ea"),
    ]
    assert shortest_paths(graph, [a], [a], max_hops=3, max_paths=10, seed=0) == []
    assert describe_path(graph, found[0]) == "a -[r]-> b -[r]-> d"
    assert describe_path(graph, found[1]) == "a -[r]-> c -[t; inverse of s]-> d"
    back = shortest_paths(graph, [d], [a], max_hops=3, max_paths=10, seed=0)
    assert describe_path(graph, back[0]) == "d <-[r]- b <-[r]- a"


def test_a_pair_that_is_farther_apart_than_the_limit_has_no_path(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, [*EDGES, ("alone", "r", "far")])
    x, f, alone = (graph.number("disease", name) for name in ("x", "f", "alone"))
    assert names(graph, shortest_paths(graph, [x], [f], max_hops=3, max_paths=9, seed=0)) == ["xbdf"]
    assert shortest_paths(graph, [x], [f], max_hops=2, max_paths=9, seed=0) == []
    assert shortest_paths(graph, [x], [alone], max_hops=9, max_paths=9, seed=0) == []
    with pytest.raises(MedReflError, match="max_hops is 0"):
        shortest_paths(graph, [x], [f], max_hops=0, max_paths=9, seed=0)


def test_hubs_come_last_and_the_choice_is_per_pair(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, EDGES)
    a, d, e = (graph.number("disease", name) for name in "ade")
    found = shortest_paths(graph, [a, e], [d], max_hops=3, max_paths=10, seed=0)
    assert names(graph, choose_paths(graph, found, 1)) == ["acd", "efd"]
    assert names(graph, choose_paths(graph, found[::-1], 5)) == ["efd", "acd", "abd"]
    assert choose_paths(graph, found, 0) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=40), st.integers(1, 5))
def test_the_paths_are_those_of_networkx(tmp_path_factory, edges, max_hops) -> None:
    graph = graph_of(
        tmp_path_factory.mktemp("graph"), [("n0", "r", "n1"), *((f"n{a}", "r", f"n{b}") for a, b in edges)]
    )
    other = networkx.Graph()
    other.add_edges_from((a, int(b)) for a in range(len(graph.nodes)) for b in graph.neighbours(a))
    nodes = range(len(graph.nodes))
    found = shortest_paths(graph, nodes, nodes, max_hops=max_hops, max_paths=10**6, seed=0)
    wanted = {
        tuple(path)
        for a, b in itertools.permutations(other, 2)
        if networkx.has_path(other, a, b)
        for path in networkx.all_shortest_paths(other, a, b)
        if len(path) - 1 <= max_hops
    }
    assert {path.nodes for path in found} == wanted and len(found) == len(wanted)
    for path in found:
        steps = zip(path.nodes, path.nodes[1:], strict=False)
        assert path.relations == tuple(graph.relations(a, b) for a, b in steps)


def test_a_sample_is_uniform_seeded_and_of_the_pair_alone(tmp_path: Path) -> None:
    # a - (m0 ... m9) - (k0, k1 joined to m0; k2 joined to all) - z: 12 paths of length 3.
    middle = [f"m{i}" for i in range(10)]
    edges = [("a", "r", m) for m in middle] + [("m0", "r", "k0"), ("m0", "r", "k1"), *((m, "r", "k2") for m in middle)]
    graph = graph_of(tmp_path, [*edges, *((k, "r", "z") for k in ("k0", "k1", "k2"))])
    a, z = graph.number("disease", "a"), graph.number("disease", "z")

    def sample(seed: int, others: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
        found = shortest_paths(graph, [*others, a], [z], max_hops=3, max_paths=3, seed=seed)
        return [path.nodes for path in found if path.nodes[0] == a]

    assert len(shortest_paths(graph, [a], [z], max_hops=3, max_paths=12, seed=0)) == 12
    assert sample(1) == sample(1) == sample(1, others=(graph.number("disease", "m3"),))
    assert len({tuple(sample(seed)) for seed in range(20)}) > 10
    drawn = [nodes for seed in range(800) for nodes in sample(seed)]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    # 2,400 draws over 12 paths: 200 each; a deviation of 60 is 4 standard deviations.
    assert len(counts) == 12 and abs(counts - 200).max() < 60


def test_more_paths_than_a_64_bit_number_counts(tmp_path: Path) -> None:
    layers = [[f"l{depth}_{i}" for i in range(30)] for depth in range(14)]
    edges = [(x, "r", y) for one, two in zip(layers, layers[1:], strict=False) for x in one for y in two]
    edges += [("a", "r", x) for x in layers[0]] + [(x, "r", "z") for x in layers[-1]]
    graph = graph_of(tmp_path, edges)
    ends = [graph.number("disease", name) for name in "az"]
    found = shortest_paths(graph, ends[:1], ends[1:], max_hops=20, max_paths=5, seed=0)
    assert len({path.nodes for path in found}) == 5 and {len(path.nodes) for path in found} == {16}


def test_the_clinics_true_path_is_among_the_shortest_of_its_entities(tmp_path: Path) -> None:
    """From a question's findings to its answer; the true path runs through the question's disease."""
    world, missed, chosen_true = clinic.world(), 0, 0
    graph = read_graph(write_clinic_graph(tmp_path / "clinic.csv", world))
    cases = clinic.make_cases(200, seed=3)
    for case in cases:
        option = case.question.options[case.question.gold]
        sources = [m.node for m in link_entities(case.question.stem, graph)]
        targets = [m.node for m in link_entities(option, graph)]
        assert [graph.names[node] for node in sources] == list(case.findings)
        assert [graph.names[node] for node in targets] == [option]
        way = [case.disease]
        if case.kind in ("mechanism", "drug"):
            way.append(world.mechanism[case.disease])
        way += [option] if way[-1] != option else []
        found = shortest_paths(graph, sources, targets, max_hops=3, max_paths=50, seed=0)
        texts = {tuple(graph.names[node] for node in path.nodes) for path in found}
        missed += any((finding, *way) not in texts for finding in case.findings)
        best = {tuple(graph.names[n] for n in path.nodes) for path in choose_paths(graph, found, 3)}
        chosen_true += any((finding, *way) in best for finding in case.findings)
    assert missed == 0 and chosen_true >= 0.95 * len(cases)


@pytest.mark.skipif(not (SHARED / "knowledge").is_dir(), reason="MEDREFL_SHARED has no knowledge graph")
def test_paths_of_200_real_questions() -> None:
    """The sample has 2,206 nodes, so that many answers are not in it; where both sides are, most have a path."""
    graph = read_graph(SHARED / "knowledge/hetionet_sample.csv")
    asked = answered = joined = n_paths = n_pairs = 0
    for name in ("medqa_usmle_4op_test.jsonl", "medbullets_op4.jsonl"):
        for line in (SHARED / "benchmarks" / name).read_text(encoding="utf-8").splitlines()[:100]:
            row = json.loads(line)
            sources = {m.node for m in link_entities(row["question"], graph) if not m.negated}
            targets = {m.node for m in link_entities(row["options"][row["answer_idx"]], graph)} - sources
            found = shortest_paths(graph, sorted(sources), sorted(targets), max_hops=4, max_paths=50, seed=0)
            asked, answered = asked + bool(sources), answered + bool(sources and targets)
            joined, n_paths = joined + bool(found), n_paths + len(found)
            n_pairs += len({(path.nodes[0], path.nodes[-1]) for path in found})
            assert all(graph.relations(a, b) for path in found for a, b in itertools.pairwise(path.nodes))
    print(
        f"of 200 questions, {asked} have entities, {answered} also in the answer, {joined} have a path; "
        f"{n_paths / n_pairs:.1f} paths a pair"
    )
    assert asked >= 180 and joined >= 0.9 * answered >= 30
