"""A question in a knowledge graph: its text with the entities marked, and the paths to its answer, drawn and listed."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from medrefl_utils.core.records import Question
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.linking import Mention
from medrefl_utils.knowledge.paths import KnowledgePath, describe_path
from medrefl_utils.views.display_text import wrap_text
from medrefl_utils.views.plots import BASE, INK, RIGHT, WRONG, Picture, styled
from medrefl_utils.views.static_html import page, piece

_SIDES = {"question": ("#d1e5f0", RIGHT), "between": ("#ffffff", INK), "answer": ("#fee0c5", WRONG)}
"""Fill and edge of a node's box by its side."""
_COLUMN, _LINE, _BOX = 3.1, 0.62, 1.5  # inches: distance of two columns and of two nodes, width of a box
_LETTERS = 20  # in a line of a box


@styled
def draw_paths(
    graph: KnowledgeGraph,
    paths: Sequence[KnowledgePath],
    chosen: Sequence[KnowledgePath] = (),
    *,
    title: str = "",
    max_nodes: int = 18,
) -> Figure:
    """Draw the paths from a question's entities (left) to its answer's entities (right).

    The chosen paths are thick and blue, the others thin and grey. The relations stand on the edges, and an arrow points
    as the graph's row does. A box's colour and frame show its side: question (blue), answer (orange, double), between
    (white).

    Args:
        graph: the graph of the paths.
        paths: paths to draw. Those through the least connected nodes come first, until ``max_nodes`` are drawn; the
            title says how many are left out.
        chosen: paths to emphasise; all of them are drawn.
        title: title of the figure.
        max_nodes: largest number of nodes, unless the chosen paths have more.
    """
    drawn = list(dict.fromkeys(chosen))
    nodes = {node for path in drawn for node in path.nodes}
    for path in sorted(set(paths) - set(drawn), key=lambda p: (np.log(graph.degree[list(p.nodes)]).sum(), p.nodes)):
        if len(nodes | set(path.nodes)) <= max_nodes:
            nodes |= set(path.nodes)
            drawn.append(path)
    left_out = len({*paths, *chosen}) - len(drawn)
    column, sides = _columns(drawn)
    edges = list(dict.fromkeys(_left_first(edge, column) for path in drawn for edge in pairwise(path.nodes)))
    at = _positions(column, edges)
    high = max((y for _, y in at.values()), default=0.0) + 1
    wide = max(column.values(), default=0)
    size = (max(_COLUMN * wide + _BOX + 0.5, 4.5), _LINE * high + 0.7)
    figure = Picture(size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)  # in inches
    place = {node: (_BOX / 2 + 0.25 + _COLUMN * x, 0.95 + _LINE * y) for node, (x, y) in at.items()}
    thick = {frozenset(edge) for path in chosen for edge in pairwise(path.nodes)}
    spots: list[tuple[float, float]] = []
    for edge in sorted(edges, key=lambda e: frozenset(e) not in thick):
        bends = [place[edge, x] for x in range(column[edge[0]] + 1, column[edge[1]])]
        line = _line(place[edge[0]], bends, place[edge[1]])
        _draw_edge(axes, graph.directed_relations(*edge), line, spots, chosen=frozenset(edge) in thick)
    for node, side in sides.items():
        _draw_node(axes, graph.names[node], *place[node], side)
    counted = f"{len(drawn)} paths" if len(drawn) != 1 else "1 path"
    counted += f", {len(set(chosen))} chosen (thick)" if chosen else ""
    counted += f"; {left_out:,} more are not drawn" if left_out else ""
    axes.text(0.15, 0.25, title or "From the question (left) to the answer (right)", weight="bold", size=11)
    axes.text(0.15, 0.5, counted if drawn else "No path", size=9)
    return figure


def _columns(paths: Iterable[KnowledgePath]) -> tuple[dict[int, int], dict[int, str]]:
    """Return the column and the side of each node: sources in column 0, targets in the last one."""
    paths = list(paths)
    last = max((len(path.nodes) - 1 for path in paths), default=0)
    column: dict[int, int] = {}
    sides: dict[int, str] = {}
    for path in paths:
        for place, node in enumerate(path.nodes[1:-1], 1):
            column[node] = max(column.get(node, 0), place)
            sides[node] = "between"
    # A node that is an end of one path and inside another belongs to its side.
    for path in paths:
        column[path.nodes[-1]], sides[path.nodes[-1]] = last, "answer"
    for path in paths:
        column[path.nodes[0]], sides[path.nodes[0]] = 0, "question"
    return column, sides


def _left_first(edge: tuple[int, int], column: Mapping[int, int]) -> tuple[int, int]:
    a, b = sorted(edge, key=lambda node: (column[node], node))
    return a, b


def _positions(column: Mapping[int, int], edges: Sequence[tuple[int, int]]) -> dict[Any, tuple[int, float]]:
    """Return {node: (column, height)}, and {(edge, column): ...} for the columns that an edge passes through.

    An edge has a place of its own in each column that it passes, so that it does not run through a box there. A column
    is ordered by the mean height of the neighbours on its left.
    """
    columns: dict[int, list[Any]] = {}
    left: dict[Any, list[Any]] = {}
    for node, x in column.items():
        columns.setdefault(x, []).append(node)
    for edge in edges:
        chain = [edge[0], *((edge, x) for x in range(column[edge[0]] + 1, column[edge[1]])), edge[1]]
        for x, passing in enumerate(chain[1:-1], column[edge[0]] + 1):
            columns.setdefault(x, []).append(passing)
        for one, following in pairwise(chain):
            if column[edge[0]] != column[edge[1]]:
                left.setdefault(following, []).append(one)
    tallest = max(map(len, columns.values()), default=0)
    height: dict[Any, float] = {}
    for x in sorted(columns):
        wanted = {one: np.mean([height[n] for n in left[one]]) if one in left else 0.0 for one in columns[x]}
        order = sorted(columns[x], key=wanted.__getitem__)
        gap = tallest / len(order)
        height |= {one: gap * (i + 0.5) - 0.5 for i, one in enumerate(order)}
    return {one: (x, height[one]) for x, members in columns.items() for one in members}


def _line(start: tuple[float, float], bends: Sequence[tuple[float, float]], end: tuple[float, float]) -> np.ndarray:
    """Return the points of an edge, from the right of the left box to the left of the right box."""
    if end[0] - start[0] < 0.1:  # in one column: around the boxes
        side = start[0] + _BOX / 2
        return np.array([(side, start[1]), (side + 0.35, (start[1] + end[1]) / 2), (side, end[1])])
    flat = [(x + sign * _BOX / 2, y) for x, y in bends for sign in (-1, 1)]
    return np.array([(start[0] + _BOX / 2, start[1]), *flat, (end[0] - _BOX / 2, end[1])])


def _draw_edge(
    axes: Axes,
    relations: tuple[tuple[str, ...], tuple[str, ...]],
    line: np.ndarray,
    spots: list[tuple[float, float]],
    *,
    chosen: bool,
) -> None:
    """Draw an edge along its points, with its relations where there is room; those of a chosen edge always."""
    there, back = relations
    style = "<->" if there and back else "->" if there else "<-"
    colour, width = (RIGHT, 2.4) if chosen else (BASE, 0.9)
    arrow = FancyArrowPatch(path=Path(line), arrowstyle=style, mutation_scale=10, color=colour, linewidth=width)
    arrow.set(zorder=2 if chosen else 1, fill=False)
    axes.add_patch(arrow)
    # Labels of edges that cross would cover each other: each takes the first free spot on its edge.
    middles = [line[i] + share * (line[i + 1] - line[i]) for share in (0.5, 0.3, 0.7) for i in range(len(line) - 1)]
    for x, y in middles:
        if all(abs(x - other_x) > 1.1 or abs(y - other_y) > 0.17 for other_x, other_y in spots):
            break
    else:
        if not chosen:
            return
        x, y = middles[0]
    spots.append((x, y))
    text = wrap_text("; ".join(dict.fromkeys([*there, *back])), 24, 1)[0]
    label = axes.text(x, y, text, ha="center", va="center", size=7.5, zorder=4 if chosen else 3)
    label.set(color=INK if chosen else "#666666", weight="bold" if chosen else "normal")
    label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.9})


def _draw_node(axes: Axes, name: str, x: float, y: float, side: str) -> None:
    fill, edge = _SIDES[side]
    for grow in (0.0, 0.045) if side == "answer" else (0.0,):
        size = (_BOX - 0.1 + 2 * grow, 0.36 + 2 * grow)
        box = FancyBboxPatch((x - size[0] / 2, y - size[1] / 2), *size, boxstyle="round,pad=0.03")
        box.set(facecolor="none" if grow else fill, edgecolor=edge, linewidth=1.0, zorder=5)
        axes.add_patch(box)
    lines = wrap_text(name, _LETTERS, max_lines=2)
    axes.text(x, y, "\n".join(lines), ha="center", va="center", size=8, linespacing=1.05, zorder=6)


def marked_text(text: str, mentions: Sequence[Mention], graph: KnowledgeGraph) -> dict[str, Any]:
    """Return a text in parts, plain ones and mentions, and a row per mention with its node, for the template."""
    parts, place = [], 0
    for number, mention in enumerate(mentions, 1):
        parts.append({"text": text[place : mention.start], "number": 0, "negated": False})
        parts.append({"text": text[mention.start : mention.end], "number": number, "negated": mention.negated})
        place = mention.end
    parts.append({"text": text[place:], "number": 0, "negated": False})
    rows = []
    for number, mention in enumerate(mentions, 1):
        node = graph.nodes.loc[mention.node]
        found = {name: getattr(mention, name) for name in ("text", "rule", "score", "negated")}
        rows.append({"number": number} | found | {name: node[name] for name in ("name", "type", "id")})
    return {"parts": parts, "rows": rows}


def show_entities(text: str, mentions: Sequence[Mention], graph: KnowledgeGraph) -> HTML:
    """Show a text with its mentions marked and numbered, and a table of their nodes.

    A mention has brackets, a number and a colour; a denied one also has "not". Brackets and words stay where a viewer
    removes styles.
    """
    return HTML(page(piece("entities", marked_text(text, mentions, graph), True)))


def explore_paths(
    question: Question,
    graph: KnowledgeGraph,
    mentions: Sequence[Mention],
    paths: Sequence[KnowledgePath],
    chosen: Sequence[KnowledgePath],
) -> HTML:
    """Show a question in the graph: the stem with its entities, the gold option, the drawing, and the paths as text.

    Args:
        question: the question.
        graph: the graph.
        mentions: mentions in the stem (``knowledge.link_entities``).
        paths: all paths that were found (``knowledge.shortest_paths``).
        chosen: the chosen ones (``knowledge.choose_paths``).
    """
    others = [path for path in dict.fromkeys(paths) if path not in set(chosen)]
    figure = draw_paths(graph, paths, chosen, title=f"Question {question.question_id}")
    view = {
        **{"question_id": question.question_id, "text": marked_text(question.stem, mentions, graph)},
        **{
            "gold": question.gold,
            "option": question.options[question.gold],
            "picture": base64.b64encode(figure._repr_png_()).decode("ascii"),
        },
        "chosen": [describe_path(graph, path) for path in chosen],
        "others": [describe_path(graph, path) for path in others[:50]],
        "n_others": len(others),
    }
    return HTML(page(piece("knowledge", view)))
