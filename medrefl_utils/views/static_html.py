"""Trees, pairs and responses as static HTML: parts of the report, and the static form of the explorers.

The HTML needs no script and no network; trees and lists open and close as ``<details>``. Its structure is in the
elements (nested lists, tables, line breaks), since GitHub, nbviewer and an untrusted notebook drop the style. The
explorers use the same parts. All text of a model or a file is untrusted: the templates escape every value, and MathJax
is told to ignore it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.colors import to_hex

from medrefl_utils.core.records import Question
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import PAIRS, QUESTIONS, STEPS, VALUES
from medrefl_utils.core.store import read_table
from medrefl_utils.exam.prompts import STEP_BOUNDARY
from medrefl_utils.exam.questions import questions_from_table
from medrefl_utils.trees.corrections import KINDS as CORRECTIONS
from medrefl_utils.trees.corrections import locate_errors, rank_corrections
from medrefl_utils.trees.values import complete_steps, paths, value_table
from medrefl_utils.views.plots import VALUE_COLOURS, signed
from medrefl_utils.views.tree_layout import places

HERE = Path(__file__).parent
COLUMN, LINE, BOX = 74, 25, 46
"""Pixels of a drawn tree: distance of two depths, distance of two leaves, width of a step's box."""
CHANGES = ("wrong → right", "right → wrong", "right → right", "wrong → wrong")
"""Change of a response's correctness from base to adapter."""
_TOP = 3  # corrections to show per path, effective and invalid each


def environment() -> jinja2.Environment:
    """Return the template environment: it escapes every value and replaces control characters by a visible mark."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    made.filters |= {"signed": signed, "lines": _lines}
    return made


def _visible(value: object) -> object:
    """Replace control characters, which a browser drops or a page must not contain, by a visible mark."""
    # Only plain text: the template's own output has the type Markup.
    if type(value) is str:
        return "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in value)
    return value


def _lines(text: str) -> Markup:
    """Return a text whose line ends are also line ends where a page's style is dropped, as in an untrusted notebook."""
    return Markup("<br>").join(escape(_visible(line)) for line in text.split("\n"))


@cache
def _parts() -> Any:
    return environment().get_template("static_html.html.j2").module


def piece(name: str, *values: object, **named: object) -> str:
    """Return the HTML of a macro of ``static_html.html.j2``, without style. Templates do not escape it again."""
    return getattr(_parts(), name)(*values, **named)


def page(body: str) -> str:
    """Return HTML with its style, as the output of a notebook's cell."""
    return piece("framed", body)


@dataclass(frozen=True)
class Tables:
    """The tables of a run's trees, in the schemas STEPS, VALUES and PAIRS; ``pairs`` is empty before stage 03."""

    questions: Mapping[str, Question]
    steps: pd.DataFrame
    values: pd.DataFrame
    pairs: pd.DataFrame

    @cached_property
    def order(self) -> list[str]:
        """Question ids, those with the most even mix of correct and wrong leaves first."""
        return list(by_mixture(self.values))

    @cached_property
    def roots(self) -> pd.DataFrame:
        """The root's row of VALUES per question: its correct and wrong leaves (C, W) and V."""
        values = self.values
        return values.loc[(values["right"] + values["wrong"]).groupby(values["question_id"]).idxmax()].set_index(
            "question_id"
        )

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        tables = {"steps": self.steps, "values": self.values, "pairs": self.pairs}
        return {name: table.groupby("question_id").indices for name, table in tables.items()}

    def tree(self, question_id: str) -> Tree:
        """Return the tree of a question with its values and pairs; raise KeyError if it has no tree."""
        steps, values = (getattr(self, name).iloc[self._rows[name][question_id]] for name in ("steps", "values"))
        pairs = self.pairs.iloc[self._rows["pairs"].get(question_id, [])]
        return Tree(question_id, self.questions.get(question_id), steps, values, pairs, len(self.pairs) > 0)


def read_tables(run: RunFiles) -> Tables:
    """Read a run's questions, steps, values and, after stage 03, pairs.

    Pairs of earlier trees (stage 01 ran again since) are left out.

    Raises:
        MedReflError: a table is missing; the message names the file and the notebook that makes it.
    """
    questions = {q.question_id: q for q in questions_from_table(read_table(run.questions, QUESTIONS))}
    steps, values = read_table(run.steps, STEPS), read_table(run.values, VALUES)
    pairs = read_table(run.pairs, PAIRS) if run.pairs.exists() else pd.DataFrame(columns=PAIRS.names)
    return Tables(questions, steps, values, _of_these_trees(pairs, steps))


def tables_of(steps: pd.DataFrame) -> Tables:
    """Return the tables of trees of your own, without questions and pairs.

    Args:
        steps: trees; the columns that ``trees.step_values`` needs are enough.

    Raises:
        MedReflError: a tree is malformed; names the question and the node.
    """
    return Tables({}, complete_steps(steps), value_table(steps), pd.DataFrame(columns=PAIRS.names))


def _of_these_trees(pairs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs whose two sides are paths of these trees with the same S."""
    if pairs.empty:
        return pairs
    chains = paths(steps)
    chains["leaf"] = [nodes[-1] for nodes in chains["nodes"]]
    known = dict(zip(zip(chains["question_id"], chains["leaf"], strict=True), chains["value"], strict=True))

    def fits(pair: Any) -> bool:
        sides = ((pair.chosen_nodes, pair.chosen_value), (pair.rejected_nodes, pair.rejected_value))
        return all(np.isclose(known.get((pair.question_id, nodes[-1]), np.nan), value) for nodes, value in sides)

    return pairs[[fits(pair) for pair in pairs.itertuples()]]


def by_mixture(values: pd.DataFrame) -> pd.Index:
    """Return question ids, those with the most even mix of correct and wrong leaves first, then small trees first."""
    leaves = values["right"] + values["wrong"]
    roots = values.loc[leaves.groupby(values["question_id"]).idxmax()].set_index("question_id")
    table = pd.DataFrame({"off": roots["value"].abs().round(1), "size": values.groupby("question_id").size()})
    return table.reset_index().sort_values(["off", "size", "question_id"]).set_index("question_id").index


@dataclass(frozen=True)
class Tree:
    """One tree for display: its rows by node id, its edges, paths and corrections. ``paired``: its run has pairs."""

    question_id: str
    question: Question | None
    steps: pd.DataFrame
    values: pd.DataFrame
    pairs: pd.DataFrame
    paired: bool

    @cached_property
    def rows(self) -> dict[int, Any]:
        """{node id: row with the columns of STEPS and VALUES}, in the order of the ids."""
        table = self.steps.merge(self.values, on=["question_id", "node_id"]).sort_values("node_id")
        return {int(row.node_id): row for row in table.itertuples()}

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """{node id: ids of its children}."""
        below: dict[int, list[int]] = {node: [] for node in self.rows}
        for node, row in self.rows.items():
            if not pd.isna(row.parent_id):
                below[int(row.parent_id)].append(node)
        return below

    @cached_property
    def root(self) -> int:
        """The node id of the root, which is the question."""
        return next(node for node, row in self.rows.items() if pd.isna(row.parent_id))

    def mark(self, node: int) -> dict[str, Any]:
        """Return what a node's badge shows: V with its sign, or a leaf's answer and ✓ or ✗; and its colour."""
        row, leaf = self.rows[node], not self.children[node]
        text = signed(row.value)
        if leaf:
            text = f"{row.answer if isinstance(row.answer, str) else '?'} {'✓' if row.outcome > 0 else '✗'}"
        return {
            **{"node": node, "mark": text, "leaf": leaf, "right": int(row.right), "wrong": int(row.wrong)},
            **{"colour": to_hex(VALUE_COLOURS((row.value + 1) / 2)), "light": abs(row.value) > 0.75},
            **{"text": row.text.strip() or "The question", "weight": int(row.weight), "value": row.value},
        }

    def path_to(self, node: int) -> list[int]:
        """Return the node ids from the root's child to this node."""
        found = []
        while node != self.root:
            found.append(node)
            node = int(self.rows[node].parent_id)
        return found[::-1]

    @cached_property
    def chains(self) -> pd.DataFrame:
        """The tree's paths (``trees.paths``), highest S first."""
        return paths(self.steps).sort_values(["value", "node_id"], ascending=[False, True], ignore_index=True)

    def best(self, right: bool) -> dict[str, Any] | None:
        """Return the correct path with the highest S, or the wrong one (the most confusing); None if there is none."""
        ends = self.chains[(self.chains["outcome"] > 0) == right]
        if ends.empty:
            return None
        nodes = [int(node) for node in ends["nodes"].iloc[0]]
        return {"value": float(ends["value"].iloc[0]), "nodes": nodes, "steps": [self.mark(node) for node in nodes]}

    @cached_property
    def corrections(self) -> pd.DataFrame:
        """The top corrections of the wrong paths, of both kinds; located by structure, with equal action weights."""
        located = locate_errors(self.steps)
        tables = [
            rank_corrections(self.steps, located, kind=kind, top_k=_TOP)[0].assign(kind=kind) for kind in CORRECTIONS
        ]
        return pd.concat(tables, ignore_index=True)

    def corrections_at(self, node: int) -> list[dict[str, Any]]:
        """Return the corrections of the wrong path that ends here, else those that leave a path or continue here."""
        table = self.corrections
        here = table[table["wrong_leaf"] == node]
        if here.empty:
            here = table[(table["left"] == node) | (table["taken"] == node)]
        ranked = here.sort_values(["effective", "action"], ascending=False, kind="stable").head(4 * _TOP)
        names = ("kind", "left", "taken", "leaf", "effective", "action", "gain_step", "gain_path", "gain_rest")
        shown = [{name: row[name] for name in names} for row in ranked.to_dict("records")]
        return [row | {name: self.mark(row[name]) for name in ("left", "taken", "leaf")} for row in shown]

    def at(self, node: int) -> dict[str, Any]:
        """Return a step with its path from the root, its corrections, and the pairs whose paths contain it."""
        row, way = self.rows[node], self.path_to(node)
        through = [
            view
            for pair in self.pairs.to_dict("records")
            if node in sum((view := pair_view(pair))["nodes"].values(), [])
        ]
        values = [self.rows[step].value for step in way]
        return self.mark(node) | {
            **{
                "depth": len(way),
                "stop": row.stop if isinstance(row.stop, str) else "",
                "solution": float(np.mean(values)),
                "root": self.root,
            },
            **{"way": [self.mark(step) for step in way], "corrections": self.corrections_at(node), "pairs": through},
        }

    def outline(self, opened: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yield the steps in depth-first order, each with the number of open elements that end after it.

        The root and the steps in ``opened`` are shown open. There is no recursion, so a deep tree is no problem.
        """
        opened = {self.root, *opened}
        stack = [(self.root, 0)]
        while stack:
            node, ends = stack.pop()
            below = self.children[node]
            yield self.mark(node) | {"open": node in opened, "ends": 0 if below else ends}
            # The last child closes its parent, and each ancestor of which the parent is the last child.
            stack += [(child, ends + 1 if child == below[-1] else 0) for child in reversed(below)]

    def picture(self) -> dict[str, Any]:
        """Return the position of each step in a drawing of the tree, in pixels, left to right; one line per leaf."""
        at = {node: (8 + COLUMN * x, 4 + round(LINE * y)) for node, (x, y) in places(self.children, self.root).items()}
        parent = {child: node for node, below in self.children.items() for child in below}
        steps = []
        for node, (x, y) in at.items():
            edge = None
            if node in parent:
                (x0, y0), turn = at[parent[node]], x - 7
                start = x0 + BOX + (20 if self.rows[parent[node]].weight > 1 else 0)
                edge = f"M{start} {y0 + 10}H{turn}V{y + 10}H{x}"
            steps.append(
                self.mark(node) | {"x": x, "y": y, "level": x // COLUMN + 1, "edge": edge, "parent": parent.get(node)}
            )
        # The order of the keyboard and of a screen reader: top to bottom, then left to right.
        steps.sort(key=lambda step: (step["x"], step["y"]))
        width, height = max(x for x, _ in at.values()) + COLUMN, max(y for _, y in at.values()) + 28
        return {"steps": steps, "width": width, "height": height}

    def summary(self) -> dict[str, Any]:
        """Return the question, the best and the most confusing path, the corrections of the latter, and the pairs."""
        confusing = self.best(right=False)
        return {
            **{"question": self.question, "question_id": self.question_id, "root": self.mark(self.root)},
            **{"best": self.best(right=True), "confusing": confusing, "n": len(self.rows) - 1},
            "corrections": self.corrections_at(confusing["nodes"][-1]) if confusing else [],
            "pairs": [pair_view(pair) for pair in self.pairs.to_dict("records")],
            "paired": self.paired,
        }


def pair_view(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pair for display: the lines that both sides begin with, and the rest of each side."""
    texts = [pair[side][0]["content"] for side in ("chosen", "rejected")]
    shared, rests = _split_at_divergence(texts)
    sides = []
    for side, rest in zip(("chosen", "rejected"), rests, strict=True):
        action, tokens = pair[f"{side}_action"], pair[f"{side}_tokens"]
        notes = [f"S = {signed(pair[f'{side}_value'])}"]
        notes += [] if pd.isna(action) else [f"A = {signed(action)}"]
        notes += [] if pd.isna(tokens) else [f"{int(tokens):,} tokens"]
        sides.append({"title": side, "good": side == "chosen", "notes": notes} | _lit(rest, pair[f"{side}_reflection"]))
    return {
        **{"kind": str(pair["kind"]), "pair_id": pair["pair_id"], "question_id": pair["question_id"]},
        # Two identical reflections are part of the lines that both sides begin with.
        **{
            "shared": _lit(shared, pair["chosen_reflection"]),
            "sides": sides,
            "margin": float(pair["chosen_value"] - pair["rejected_value"]),
        },
        "nodes": {
            name: [] if (nodes := pair[f"{name}_nodes"]) is None else [int(node) for node in nodes]
            for name in ("left", "chosen", "rejected")
        },
    }


def _split_at_divergence(texts: Sequence[str]) -> tuple[str, list[str]]:
    """Return the lines that two texts begin with, and the rest of each."""
    lines = [text.split(STEP_BOUNDARY) for text in texts]
    same = len(os.path.commonprefix(lines))
    return STEP_BOUNDARY.join(lines[0][:same]), [STEP_BOUNDARY.join(rest[same:]) for rest in lines]


def _lit(text: str, reflection: object) -> dict[str, str]:
    """Split a text into what precedes the reflection, the reflection (empty if it is not in the text), and the rest."""
    passage = " ".join(reflection.split()) if isinstance(reflection, str) else ""
    before, found, after = text.partition(passage) if passage else (text, "", "")
    return {"before": before, "reflection": found, "after": after.removeprefix(STEP_BOUNDARY) if found else after}


def paired_answers(responses: pd.DataFrame) -> pd.DataFrame:
    """Join the responses of base and adapter: one row per question, protocol and run, with ``change``.

    ``responses`` has the columns of RESPONSES. In the result, the columns of the models end in ``_base`` and ``_ours``,
    and ``change`` is one of ``CHANGES``.
    """
    key = ["source", "question_id", "protocol", "run"]
    own = ["model", "response", "answer", "rule", "correct", "n_tokens"]
    table = responses[[*key, *own, "stem", "options", "gold"]]
    base = table[table["model"] == "base"]
    ours = table.loc[table["model"] == "medrefl", [*key, *own]]
    both = base.merge(ours, on=key, suffixes=("_base", "_ours"))
    words = [both[f"correct_{model}"].astype(bool).map({True: "right", False: "wrong"}) for model in ("base", "ours")]
    return both.assign(change=(words[0] + " → " + words[1]).astype(str))


def answer_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of ``paired_answers`` for display: the question, and both responses, split where they diverge."""
    shared, rests = _split_at_divergence([row[f"response_{model}"].strip() for model in ("base", "ours")])
    sides = []
    for model, name, rest in zip(("base", "ours"), ("base", "Med-REFL"), rests, strict=True):
        answer, good = row[f"answer_{model}"], bool(row[f"correct_{model}"])
        said = answer if isinstance(answer, str) else "no readable answer"
        notes = [f"answer read by rule: {row[f'rule_{model}']}"] if row[f"rule_{model}"] else []
        tokens = row[f"n_tokens_{model}"]
        notes += [] if pd.isna(tokens) else [f"{int(tokens):,} tokens"]
        sides.append({"title": f"{name}: {said}", "good": good, "notes": notes} | _lit(rest, None))
    stem = row["stem"] if isinstance(row["stem"], str) else ""
    question = Question(row["question_id"], stem, dict(row["options"]), row["gold"], row["source"])
    names = ("question_id", "source", "protocol", "run", "change")
    return {name: row[name] for name in names} | {"question": question, "shared": _lit(shared, None), "sides": sides}


def trees_page(tables: Tables, *, n: int = 3, start: int = 0) -> str:
    """Return HTML of the ``n`` trees from index ``start`` of ``Tables.order``, each with its paths and pairs."""
    place = max(0, min(start, len(tables.order) - 1))
    trees = [tables.tree(question_id) for question_id in tables.order[place : place + n]]
    views = [tree.summary() | {"outline": list(tree.outline(_on_paths(tree)))} for tree in trees]
    return page(piece("trees", views, len(tables.order)))


def _on_paths(tree: Tree) -> set[int]:
    """Return the node ids of the best and of the most confusing path."""
    return {node for right in (True, False) if (path := tree.best(right)) for node in path["nodes"]}


def pairs_page(tables: Tables, *, n: int = 2, first: str = "") -> str:
    """Return HTML of ``n`` pairs per kind, the pair ``first`` (a pair_id) first, then those with the widest margin."""
    pairs = tables.pairs
    margin = pairs["chosen_value"].astype(float) - pairs["rejected_value"].astype(float)
    ranked = pairs.assign(margin=margin, other=pairs["pair_id"] != first).sort_values(
        ["other", "margin", "pair_id"], ascending=[True, False, True]
    )
    kinds = list(dict.fromkeys(pairs["kind"]))
    shown = {kind: ranked[ranked["kind"] == kind] for kind in kinds}
    views = [
        (kind, len(of_kind), [
            pair_view(pair) | {"question": tables.questions.get(pair["question_id"])}
            for pair in of_kind.head(n).to_dict("records")
        ])
        for kind, of_kind in shown.items()
    ]  # fmt: skip
    return page(piece("pairs", views))


def answers_page(responses: pd.DataFrame, *, n: int = 3) -> str:
    """Return HTML per protocol: the counts of each change, and ``n`` responses that became correct or wrong."""
    both = paired_answers(responses)
    views = []
    for (source, protocol), rows in both.groupby(["source", "protocol"], sort=False):
        counts = [(change, int((rows["change"] == change).sum())) for change in CHANGES]
        shown = [
            (change, [answer_view(row) for row in rows[rows["change"] == change].head(n).to_dict("records")])
            for change in CHANGES[:2]
        ]
        views.append({"source": source, "protocol": protocol, "counts": counts, "n": len(rows), "shown": shown})
    return page(piece("answers", views))
