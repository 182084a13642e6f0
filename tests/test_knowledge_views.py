"""A question in a graph as a person sees it: marked entities, drawn paths, and both as one page."""

from __future__ import annotations

import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from medrefl_utils.core import Question
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
from medrefl_utils.views import draw_paths, explore_paths, show_entities
from medrefl_utils.views.plots import save

CASE = next(case for case in clinic.make_cases(20) if case.kind == "drug")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeGraph:
    return read_graph(write_clinic_graph(tmp_path_factory.mktemp("graph") / "clinic.csv", clinic.world()))


@pytest.fixture(scope="module")
def paths(graph: KnowledgeGraph) -> list[KnowledgePath]:
    ends = (CASE.question.stem, CASE.question.options[CASE.question.gold])
    sources, targets = ([m.node for m in link_entities(text, graph)] for text in ends)
    return shortest_paths(graph, sources, targets, max_hops=4, max_paths=50, seed=0)


class Text(HTMLParser):
    """The text of a page without its tags and styles, as a viewer that removes both shows it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


def boxes(figure) -> dict[str, FancyBboxPatch]:
    """{name: its box}"""
    (axes,) = figure.axes
    found = {}
    for text in axes.texts:
        x, y = text.get_position()
        for patch in axes.patches:
            if isinstance(patch, FancyBboxPatch) and patch.get_facecolor()[3] > 0:
                box = patch.get_bbox()
                if abs((box.x0 + box.x1) / 2 - x) < 1e-6 and abs((box.y0 + box.y1) / 2 - y) < 1e-6:
                    found[text.get_text().replace("\n", " ")] = patch
    return found


def test_the_drawing_has_every_node_on_its_side_and_the_chosen_edges_thick(graph, paths, tmp_path: Path) -> None:
    chosen = choose_paths(graph, paths, 1)
    figure = draw_paths(graph, paths, chosen, max_nodes=1000)
    shown = boxes(figure)
    assert set(shown) == {graph.names[node] for path in paths for node in path.nodes}
    left = {path.nodes[0] for path in paths}
    columns = {name: round(box.get_bbox().x0, 3) for name, box in shown.items()}
    assert {columns[graph.names[node]] for node in left} == {min(columns.values())}
    assert columns[graph.names[paths[0].nodes[-1]]] == max(columns.values())
    (axes,) = figure.axes
    widths = Counter(p.get_linewidth() for p in axes.patches if isinstance(p, FancyArrowPatch))
    edges = [{frozenset(e) for path in some for e in zip(path.nodes, path.nodes[1:], strict=False)}
             for some in (paths, chosen)]  # fmt: skip
    assert widths == Counter({2.4: len(edges[1]), 0.9: len(edges[0] - edges[1])} | {})
    relations = {text.get_text() for text in axes.texts}
    assert {"presents", "arises from", "is treated with"} <= relations
    assert f"{len(paths)} paths, {len(chosen)} chosen (thick)" in relations
    assert save(figure, tmp_path / "paths").stat().st_size > 5000


def test_no_edge_runs_through_a_box_of_another_node(graph, paths) -> None:
    figure = draw_paths(graph, paths, choose_paths(graph, paths, 1), max_nodes=1000)
    (axes,) = figure.axes
    names, crossed = boxes(figure), []
    for arrow in (p for p in axes.patches if isinstance(p, FancyArrowPatch)):
        line = arrow._path_original.vertices
        for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):
            for step in range(1, 20):
                x, y = x0 + step / 20 * (x1 - x0), y0 + step / 20 * (y1 - y0)
                crossed += [n for n, b in names.items() if b.get_bbox().shrunk(0.95, 0.95).contains(x, y)]
    assert names and crossed == []


def test_a_limit_of_nodes_is_kept_and_told_and_no_path_is_a_figure_too(graph, paths) -> None:
    chosen = choose_paths(graph, paths, 1)[:1]
    figure = draw_paths(graph, paths, chosen, max_nodes=5)
    assert len(boxes(figure)) <= 5
    (text,) = [t.get_text() for t in figure.axes[0].texts if "not drawn" in t.get_text()]
    drawn, left_out = (int(n.replace(",", "")) for n in re.match(r"(\d+) path.*; ([\d,]+) more", text).groups())
    assert drawn + left_out == len(paths)
    assert "No path" in [t.get_text() for t in draw_paths(graph, []).axes[0].texts]


def test_marks_and_denials_survive_without_styles_and_text_is_escaped(graph) -> None:
    text = f"He has <b>{CASE.findings[0]}</b> and denies {CASE.findings[1]}."
    page = show_entities(text, link_entities(text, graph), graph).data
    assert "<b>" not in page and "&lt;b&gt;" in page
    shown = Text(page).text
    assert f"He has <b>[{CASE.findings[0]}]1</b> and denies [not: {CASE.findings[1]}]2." in shown
    assert f"1. {CASE.findings[0]}" in shown and f"2. {CASE.findings[1]} (denied)" in shown
    assert "effect/phenotype" in shown and "exact" in shown
    assert "No entity of the graph was found." in Text(show_entities("Nothing.", [], graph).data).text


def test_the_page_has_question_picture_and_paths(graph, paths) -> None:
    chosen = choose_paths(graph, paths, 1)
    page = explore_paths(CASE.question, graph, link_entities(CASE.question.stem, graph), paths, chosen).data
    shown = Text(page).text
    assert f"Right option: {CASE.question.gold}. {CASE.question.options[CASE.question.gold]}" in shown
    assert all(describe_path(graph, path) in shown for path in paths)
    assert all(f"[{finding}]" in shown for finding in CASE.findings)
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert picture and base64.b64decode(picture[1]).startswith(b"\x89PNG")
    assert "<script" not in page and "http" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_a_question_without_paths_has_a_page(graph) -> None:
    question = Question("q", "Nothing to find here.", {"A": "this", "B": "that"}, "A")
    shown = Text(explore_paths(question, graph, [], [], []).data).text
    assert "No entity of the graph was found." in shown and "No path was chosen." in shown
