"""Interactive explorers for a live notebook: trees, pairs, and responses of base and adapter.

``explore_trees``, ``explore_pairs`` and ``explore_responses`` return a widget in a live notebook, and otherwise static
HTML with the same content (``static_html``). Controls are ipywidgets. A tree may have a thousand steps, so it is one
HTML element with one listener (an anywidget). The templates of ``static_html`` make and escape all HTML.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import pandas as pd
import traitlets
from IPython import get_ipython
from IPython.display import HTML

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import RESPONSES
from medrefl_utils.core.store import read_table
from medrefl_utils.views import static_html
from medrefl_utils.views.plots import signed
from medrefl_utils.views.static_html import CHANGES, Tables, Tree

_FULL = {"width": "auto"}  # the width of the containing box, margins included
_LONGEST_LIST = 2000
"""Maximum entries of a list. Further matches of a search are counted, not listed."""


def is_live() -> bool:
    """Return whether the notebook runs in a front end that shows widgets.

    In Jupyter's message protocol, an execute request carries ``allow_stdin``. JupyterLab, Notebook, VS Code and Colab
    send true. papermill, nbconvert and other users of nbclient send false, because nobody could answer.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else {}
    return bool(parent.get("content", {}).get("allow_stdin", False))


def explore_trees(run: RunFiles | pd.DataFrame, *, start: int = 0, live: bool | None = None) -> TreeExplorer | HTML:
    """Explore the run's trees: choose a question, see its tree coloured by V, its paths, corrections and pairs.

    Args:
        run: the run's files; or a table of trees of your own, with the columns that ``trees.step_values`` needs.
        start: index of the first question to show, in order of the most even mix of correct and wrong leaves.
        live: return a widget (True) or static HTML (False); by default, ``is_live`` decides.

    Raises:
        MedReflError: the run has no trees or no values yet, or a tree of your own is malformed.
    """
    of_own = isinstance(run, pd.DataFrame)
    tables = static_html.tables_of(run) if of_own else static_html.read_tables(run)
    if not (is_live() if live is None else live):
        return HTML(static_html.trees_page(tables, start=start))
    return TreeExplorer(None if of_own else run, tables, start)


def explore_pairs(run: RunFiles, *, first: str = "", live: bool | None = None) -> PairBrowser | HTML:
    """Explore the run's pairs, side by side, with their trees.

    Args:
        run: the run's files.
        first: pair_id of the first pair to show; by default the first in the list.
        live: return a widget (True) or static HTML (False); by default, ``is_live`` decides.

    Raises:
        MedReflError: the run has no trees or no values yet.
    """
    tables = static_html.read_tables(run)
    if not (is_live() if live is None else live):
        return HTML(static_html.pairs_page(tables, first=first))
    return PairBrowser(run, tables, first)


def explore_responses(run: RunFiles, *, live: bool | None = None) -> ResponseBrowser | HTML:
    """Explore the responses of base and adapter to the same questions, by change of correctness and by protocol.

    Args:
        run: the run's files.
        live: return a widget (True) or static HTML (False); by default, ``is_live`` decides.

    Raises:
        MedReflError: the run has no responses yet.
    """
    table = read_table(run.responses, RESPONSES)
    if not (is_live() if live is None else live):
        return HTML(static_html.answers_page(table))
    return ResponseBrowser(run, table)


class Pane(anywidget.AnyWidget):
    """One HTML element whose parts can be selected by click or key.

    A selectable part has the attribute ``data-pick``; ``picked`` holds its value after a selection. ``current`` is the
    ``data-pick`` of the part that is shown as selected. ``marks`` maps ``data-mark`` of a part to CSS classes.
    """

    _esm = Path(__file__).with_name("explorers.js")
    _css = static_html.HERE.joinpath("static_html.css").read_text(encoding="utf-8") + static_html.HERE.joinpath(
        "explorers.css"
    ).read_text(encoding="utf-8")
    html = traitlets.Unicode().tag(sync=True)
    picked = traitlets.Unicode().tag(sync=True)
    current = traitlets.Unicode().tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)

    def on_pick(self, act: Callable[[str], None]) -> None:
        """Call ``act`` with the ``data-pick`` of each selected part; the same part can be selected again."""

        def picked(change: Mapping[str, Any]) -> None:
            if change["new"]:
                self.picked = ""
                act(change["new"])

        self.observe(picked, "picked")


class _WithStaticHtml(widgets.VBox):
    """A box of widgets with static HTML of the same content, shown when a saved notebook is opened without a kernel."""

    def __init__(self, children: Sequence[widgets.Widget], static: Callable[[], str]) -> None:
        super().__init__(children)
        self._static = static

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return super()._repr_mimebundle_(**options) | {"text/html": str(self._static())}


class RunChooser(widgets.Dropdown):
    """A list of the runs beside this one that have the needed tables; ``act`` is called with the chosen run's files."""

    def __init__(self, run: RunFiles, needed: Sequence[str], act: Callable[[RunFiles], None]) -> None:
        names = sorted({run.root.name, *(path.name for path in run.root.parent.glob("*") if _has(path, needed))})
        super().__init__(options=names, value=run.root.name, description="run")
        self.observe(lambda change: act(RunFiles(run.root.parent / change["new"])), "value")


def _has(folder: Path, needed: Sequence[str]) -> bool:
    """Return whether a run's folder has these artifacts (names of attributes of ``RunFiles``), with a table in each."""
    paths: list[Path] = [getattr(RunFiles(folder), artifact) for artifact in needed]
    return all(path.is_file() or any(path.glob("[!.]*.parquet")) for path in paths)


class Chooser(widgets.VBox):
    """A list with a search field; ``act`` is called with the key of the chosen entry."""

    def __init__(self, what: str, act: Callable[[str], None]) -> None:
        self.search = widgets.Text(placeholder=f"search {what} by words, option text or id", layout=_FULL)
        self.list = widgets.Select(rows=7, layout=_FULL)
        self.count = widgets.Label()
        self.what, self.act, self.entries, self._filling = what, act, [], False
        self.search.observe(lambda _: self._narrow(), "value")
        self.list.observe(lambda _: self._chosen(), "value")
        super().__init__([self.search, self.list, self.count])

    def offer(self, entries: Iterable[tuple[str, str, str]], first: str | None = None) -> None:
        """List the entries (label, key, searched text); choose ``first``, else the previous choice, else the first."""
        self.entries = [(label, key, f"{text} {key}".casefold()) for label, key, text in entries]
        self._fill(first or self.list.value)
        self._chosen()

    def _narrow(self) -> None:
        before = self.list.value
        self._fill(before)
        if self.list.value != before:
            self._chosen()

    def _fill(self, wanted: str | None) -> None:
        words = self.search.value.casefold().split()
        found = [(label, key) for label, key, text in self.entries if all(word in text for word in words)]
        shown = found[:_LONGEST_LIST]
        cut = f" (the first {_LONGEST_LIST:,} are listed)" if len(found) > len(shown) else ""
        none = " match the search" if self.entries and not found else ""
        self.count.value = f"{len(found):,} of {len(self.entries):,} {self.what}{none}{cut}"
        keys = [key for _, key in shown]
        self._filling = True  # assigning options also triggers the observer
        self.list.options = shown
        self.list.value = wanted if wanted in keys else next(iter(keys), None)
        self._filling = False

    def _chosen(self) -> None:
        if self.list.value is not None and not self._filling:
            self.act(self.list.value)


class TreePane(widgets.HBox):
    """A tree, and beside it the selected step. For the root: the question with its paths and pairs."""

    def __init__(self, on_pair: Callable[[str], None]) -> None:
        self.tree: Tree | None = None
        self.picture = Pane(label="tree", layout={"flex": "3 1 420px", "max_height": "480px", "overflow": "auto"})
        self.detail = Pane(label="step", layout={"flex": "2 1 310px", "max_height": "480px", "overflow": "auto"})
        self._on_pair = on_pair
        for pane in (self.picture, self.detail):
            pane.on_pick(self._picked)
        super().__init__([self.picture, self.detail], layout={"flex_flow": "row wrap", "width": "100%"})

    def show(self, tree: Tree) -> None:
        """Show a tree, with its best correct and its most confusing wrong path marked."""
        self.tree = tree
        picture = tree.picture()
        # As wide as the tree, but both panes must fit side by side in JupyterLab on a laptop (850 px).
        self.picture.layout.flex = f"3 1 {min(max(picture['width'] + 20, 300), 535)}px"
        with self.picture.hold_sync():
            self.picture.html = static_html.piece("picture", picture, tree.question_id)
            self.pick(tree.root)
        ends = {"chosen": tree.best(right=True), "rejected": tree.best(right=False)}
        self.mark({name: path["nodes"] for name, path in ends.items() if path})

    def pick(self, node: int) -> None:
        """Select a step and show it."""
        self.picture.current = f"node:{node}"
        root = node == self.tree.root
        shown = self.tree.summary() if root else self.tree.at(node)
        self.detail.html = static_html.piece("summary" if root else "step", shown, True)

    def mark(self, paths: Mapping[str, Sequence[int]]) -> None:
        """Mark paths in the tree: {"chosen", "rejected" or "left": node ids}."""
        marks: dict[str, str] = {}
        for name, nodes in paths.items():
            for node in nodes:
                marks[str(node)] = f"{marks.get(str(node), '')} {name}".strip()
        self.picture.marks = marks

    def _picked(self, part: str) -> None:
        kind, _, key = part.partition(":")
        if kind == "pair":
            self._on_pair(key)
        elif self.tree is not None:
            self.pick(int(key))


class TreeExplorer(_WithStaticHtml):
    """A widget to choose a run and a question, and see its tree, steps, paths, corrections and pairs.

    Without a ``run`` (trees of your own) there is no run to choose.
    """

    def __init__(self, run: RunFiles | None, tables: Tables, start: int = 0) -> None:
        self.tables = tables
        self.run = RunChooser(run or RunFiles(Path()), ("questions", "steps", "values"), self._open)
        self.run.layout.display = None if run else "none"
        self.questions = Chooser("questions", self._show)
        self.pane = TreePane(self._show_pair)
        self.pair = Pane(label="pair", layout=_FULL)
        super().__init__(
            [self.run, self.questions, _legend("best correct path", "most confusing wrong path"), self.pane, self.pair],
            lambda: static_html.trees_page(self.tables, start=start),
        )
        self._offer(start)

    def _open(self, run: RunFiles) -> None:
        try:
            self.tables = static_html.read_tables(run)
        except MedReflError as error:
            self.pane.detail.html = static_html.piece("message", str(error))
        else:
            self._offer(0)

    def _offer(self, start: int) -> None:
        order, first = self.tables.order, None
        if order:
            first = order[max(0, min(start, len(order) - 1))]
        self.questions.offer(map(self._entry, order), first)

    def _entry(self, question_id: str) -> tuple[str, str, str]:
        root, question = self.tables.roots.loc[question_id], self.tables.questions.get(question_id)
        stem = question.stem if question else ""
        label = (
            f"{signed(root['value']):>5}   {root['right']:.0f} ✓ {root['wrong']:.0f} ✗   {_short(stem or question_id)}"
        )
        return label, question_id, f"{stem} {' '.join(question.options.values()) if question else ''}"

    def _show(self, question_id: str) -> None:
        self.pair.html = ""
        self.pane.show(self.tables.tree(question_id))

    def _show_pair(self, pair_id: str) -> None:
        pairs = self.tables.pairs
        view = static_html.pair_view(pairs[pairs["pair_id"] == pair_id].iloc[0].to_dict())
        self.pair.html = static_html.piece("pair", view, None)
        self.pane.mark(view["nodes"])


class PairBrowser(_WithStaticHtml):
    """A widget with a run's pairs, filtered by kind, margin and length: both sides, and both paths in the tree."""

    def __init__(self, run: RunFiles, tables: Tables, first: str = "") -> None:
        self._filling = False
        self.run = RunChooser(run, ("questions", "steps", "values", "pairs"), self._open)
        self.kind = widgets.Dropdown(description="kind")
        wide = {"layout": {"width": "380px"}}
        self.margin = widgets.FloatRangeSlider(step=0.05, description="margin of S", **wide)
        self.length = widgets.IntRangeSlider(description="tokens", **wide)
        self.chooser = Chooser("pairs", self.show)
        self.pair = Pane(label="pair", layout=_FULL)
        self.pane = TreePane(self.show)
        filters = widgets.HBox([self.run, self.kind, self.margin, self.length], layout={"flex_flow": "row wrap"})
        super().__init__(
            [filters, self.chooser, self.pair, _legend("chosen", "rejected"), self.pane],
            lambda: static_html.pairs_page(self.tables, first=first),
        )
        self._read(tables)
        for control in (self.kind, self.margin, self.length):
            control.observe(lambda _: self._offer(), "value")
        self._offer(first)

    def _open(self, run: RunFiles) -> None:
        try:
            tables = static_html.read_tables(run)
        except MedReflError as error:
            self.pair.html = static_html.piece("message", str(error))
        else:
            self._filling = True  # each filter that gets another range calls _offer
            self._read(tables)
            self._filling = False
            self._offer()

    def _read(self, tables: Tables) -> None:
        """Take another run's tables, and set the filters to the whole range of its pairs."""
        length = tables.pairs[["chosen_tokens", "rejected_tokens"]].astype(float).max(axis=1).fillna(0)
        margin = (tables.pairs["chosen_value"] - tables.pairs["rejected_value"]).astype(float)
        self.tables = tables
        self.table = tables.pairs.assign(length=length, margin=margin).set_index("pair_id", drop=False)
        self.pane.tree = None
        self.kind.options = ["all kinds", *dict.fromkeys(self.table["kind"])]
        self.kind.value = "all kinds"
        for slider, (low, high) in ((self.margin, _span(margin, 0.1)), (self.length, map(int, _span(length, 1)))):
            with slider.hold_trait_notifications():
                slider.min, slider.max, slider.value = low, high, (low, high)

    def _offer(self, first: str | None = None) -> None:
        if self._filling:
            return
        table = self.table[
            self.table["margin"].between(*_around(self.margin)) & self.table["length"].between(*self.length.value)
        ]
        if self.kind.value != "all kinds":
            table = table[table["kind"] == self.kind.value]
        self.chooser.offer((self._entry(pair) for pair in table.itertuples()), first)

    def _entry(self, pair: Any) -> tuple[str, str, str]:
        question = self.tables.questions.get(pair.question_id)
        stem = question.stem if question else pair.question_id
        label = f"{pair.kind.replace('_', ' ')}   ΔS {signed(pair.margin)}   {pair.length:.0f} tokens   {_short(stem)}"
        return (
            label,
            pair.pair_id,
            f"{stem} {pair.question_id} {pair.chosen[0]['content']} {pair.rejected[0]['content']}",
        )

    def show(self, pair_id: str) -> None:
        """Show a pair, and its paths in the tree."""
        view = static_html.pair_view(self.table.loc[pair_id].to_dict())
        self.pair.html = static_html.piece("pair", view, self.tables.questions.get(view["question_id"]))
        if self.pane.tree is None or self.pane.tree.question_id != view["question_id"]:
            self.pane.show(self.tables.tree(view["question_id"]))
        self.pane.mark(view["nodes"])


class ResponseBrowser(_WithStaticHtml):
    """A widget with the responses of base and adapter to the same questions: by run, protocol and change."""

    def __init__(self, run: RunFiles, responses: pd.DataFrame) -> None:
        self.run = RunChooser(run, ("responses",), self._open)
        self.protocol = widgets.Dropdown(description="protocol")
        self.change = widgets.ToggleButtons(style={"button_width": "auto"})
        self.chooser = Chooser("responses", self.show)
        self.pane = Pane(label="answers", layout=_FULL)
        filters = widgets.HBox([self.run, self.protocol, self.change], layout={"flex_flow": "row wrap"})
        super().__init__([filters, self.chooser, self.pane], lambda: static_html.answers_page(self.responses))
        self._read(responses)
        self.protocol.observe(lambda _: self._count(), "value")
        self.change.observe(lambda _: self._offer(), "value")
        self._offer()

    def _open(self, run: RunFiles) -> None:
        try:
            responses = read_table(run.responses, RESPONSES)
        except MedReflError as error:
            self.pane.html = static_html.piece("message", str(error))
        else:
            self._read(responses)
            self._count()

    def _read(self, responses: pd.DataFrame) -> None:
        """Take another run's responses."""
        self.responses = responses
        self.table = static_html.paired_answers(responses).reset_index(drop=True)
        self.protocol.options = ["all protocols", *dict.fromkeys(self.table["protocol"])]
        self.protocol.value = "all protocols"
        chosen = self.change.value
        self.change.options = self._changes()  # this selects the first option
        found = set(self.table["change"])
        self.change.value = chosen or next((change for change in CHANGES if change in found), CHANGES[0])

    def _of_protocol(self) -> pd.DataFrame:
        every = self.protocol.value == "all protocols"
        return self.table if every else self.table[self.table["protocol"] == self.protocol.value]

    def _changes(self) -> list[tuple[str, str]]:
        counts = self._of_protocol()["change"].value_counts()
        return [(f"{change} ({counts.get(change, 0):,})", change) for change in CHANGES]

    def _count(self) -> None:
        chosen = self.change.value
        self.change.options = self._changes()  # this selects the first option
        self.change.value = chosen
        self._offer()

    def _offer(self) -> None:
        table = self._of_protocol()
        table = table[table["change"] == self.change.value]
        if table.empty:
            self.pane.html = static_html.piece(
                "message", f"No response changed from {self.change.value.replace(' → ', ' to ')}."
            )
        self.chooser.offer(self._entry(row) for row in table.itertuples())

    def _entry(self, row: Any) -> tuple[str, str, str]:
        answers = " → ".join(a if isinstance(a, str) else "?" for a in (row.answer_base, row.answer_ours))
        label = f"{answers} (gold {row.gold})   {row.protocol}, run {row.run}   {_short(row.stem)}"
        return label, str(row.Index), f"{row.stem} {row.question_id} {row.response_base} {row.response_ours}"

    def show(self, row: str) -> None:
        """Show the responses of one row of ``table``."""
        self.pane.html = static_html.piece("answer", static_html.answer_view(self.table.loc[int(row)].to_dict()))


def _legend(solid: str, dashed: str) -> widgets.HTML:
    return widgets.HTML(str(static_html.piece("legend", solid, dashed)))


def _short(text: str) -> str:
    return textwrap.shorten(text, 110, placeholder=" …")


def _span(values: pd.Series, step: float) -> tuple[float, float]:
    """Return the range of the values, rounded outwards to whole steps; at least one step wide, as a slider needs."""
    low, high = (0.0, 0.0) if values.empty else (values.min(), values.max())
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return round(low, 6), round(max(high, low + step), 6)


def _around(slider: widgets.FloatRangeSlider) -> tuple[float, float]:
    low, high = slider.value
    return low - 1e-9, high + 1e-9
