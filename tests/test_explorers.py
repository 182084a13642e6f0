"""The explorers and their static twins: what they show, what a pick does, and that text stays text."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from IPython.display import HTML
from matplotlib.colors import to_hex

from medrefl_utils.core import PAIRS, QUESTIONS, RESPONSES, STEPS, VALUES, MedReflError, Question, RunFiles, write_table
from medrefl_utils.exam import questions_table
from medrefl_utils.pairs import correction_texts, reasoning_pairs, reflection_candidates, reflection_pairs
from medrefl_utils.runs import code_hashes
from medrefl_utils.trees import locate_errors, paths, rank_corrections, value_table
from medrefl_utils.views import explorers, plots, static_html
from tests.test_report import HOSTILE, IMAGE, SCRIPT, Page, grown, response, step

NAN = float("nan")
QUESTION = Question("q1", f"A rash {SCRIPT}", {"A": "zelorin", "B": IMAGE, "C": "oxpril"}, "A", "clinic", "train")
CLEAR = Question("q2", "A fever after supper.", {"A": "marvutide", "B": "zelorin"}, "A", "clinic", "train")

# V by hand: 1: 1/3 (leaves A, A, B), 2: -1; the question: (2 - 2) / 4 = 0.
TREE = [
    step(0, None, 0, "", None, NAN),
    step(1, 0, 1, f"Step 1: {HOSTILE}\n", None, NAN),
    step(2, 0, 1, "Step 1: nothing.\n", None, NAN),
    step(3, 1, 2, "Answer: A\n", "A", 1.0, weight=2),
    step(4, 1, 2, "Answer: B\n", "B", -1.0),
    step(5, 2, 2, "Answer: C\n", "C", -1.0),
]
STEPS_TABLE = pd.DataFrame(
    TREE
    + [row | {"question_id": "q2"} for row in (step(0, None, 0, "", None, NAN), step(1, 0, 1, "Answer: A", "A", 1.0))]
)


def asked(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.stem}]


def reflected() -> pd.DataFrame:
    """The one reflection pair of the tree: leaf 4 is left, for leaf 3 (right) or for leaf 5 (wrong)."""
    chains = paths(STEPS_TABLE)
    ranked, _ = rank_corrections(STEPS_TABLE, locate_errors(STEPS_TABLE), kind="post")
    candidates, _ = reflection_candidates(ranked, top_k=1, min_margin=0.0, max_per_question=1)
    written = {
        key: f"Wait, it is not so: {key[2]}."
        for key in correction_texts([QUESTION, CLEAR], STEPS_TABLE, chains, candidates)
    }
    table, _ = reflection_pairs(
        [QUESTION, CLEAR], STEPS_TABLE, chains, candidates, written, kind="reflection_post", prompt=asked
    )
    return table


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    run = grown(tmp_path / "demo", [QUESTION, CLEAR], STEPS_TABLE)
    made, _ = reasoning_pairs(
        [QUESTION, CLEAR],
        STEPS_TABLE,
        paths(STEPS_TABLE),
        prompt=asked,
        top_k=2,
        min_margin=0.0,
        max_per_question=2,
    )
    pairs = pd.concat([made, reflected()], ignore_index=True)
    pairs["chosen_tokens"] = [10, 12, 40]
    pairs["rejected_tokens"] = [11, 11, 44]
    write_table(run.pairs, pairs, PAIRS)
    responses = [
        response(QUESTION, "base", "B", f"So.\nAnswer: B {SCRIPT}"),
        response(QUESTION, "medrefl", "A", f"So.\nI see {IMAGE}.\nAnswer: A"),
        response(CLEAR, "base", "A", "Answer: A"),
        response(CLEAR, "medrefl", None, "Who knows"),
    ]
    greedy = [row | {"protocol": "greedy"} for row in responses[:2]]
    write_table(run.responses / "clinic.parquet", pd.DataFrame(responses + greedy), RESPONSES)
    return run


def shown(html: str) -> Page:
    page = Page(str(html))
    assert page.balanced and not page.open
    assert not page.all("script") and not page.all("img") and not page.all("b", "bold")
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    return page


def words(html: str) -> str:
    return " ".join(shown(html).text.split())


class TestStatic:
    """The page of a notebook that is executed, and of the report."""

    def test_trees_are_nested_details_with_paths_corrections_and_pairs(self, run: RunFiles) -> None:
        twin = explorers.explore_trees(run, live=False)
        assert isinstance(twin, HTML)
        page, text = shown(twin.data), words(twin.data)
        assert text.startswith("Examples from 2 trees: the questions with the most even mix")
        assert "Best correct path: S = +0.67 +0.33 Step 1: <script>" in text
        assert "Most confusing wrong path: S = −0.33" in text
        # From leaf 4 (V = -1, S = -1/3, R = -1) to leaf 3 (V = 1, S = 2/3, R = 1): 2, 1 and 2, A their mean.
        assert "✓ effective, post B ✗ A ✓ A ✓ +1.67 +2 +1 +2" in text
        # To step 2 (V = -1, S = -1, R = -1): 0, -2/3 and 0.
        assert "✗ invalid, post B ✗ −1 C ✗ −0.22 0 −0.67 0" in text
        assert "reasoning: chosen S = +0.67; rejected S = −0.33" in text
        assert "reflection post: chosen S = +0.67, A = +1.67; rejected S = −1, A = −0.22" in text
        assert page.all("div", "mathjax_ignore") and page.all("div", "tex2jax_ignore")

    def test_nothing_of_it_needs_a_script_or_the_network(self, run: RunFiles) -> None:
        for twin in (explorers.explore_trees(run), explorers.explore_pairs(run), explorers.explore_responses(run)):
            page = shown(twin.data)
            assert not {name for _, a in page.elements for name in a} & {"src", "href", "srcset", "data"}
            assert "url(" not in twin.data and "@import" not in twin.data and not page.all("button")

    def test_pairs_stand_side_by_side(self, run: RunFiles) -> None:
        text = words(explorers.explore_pairs(run, live=False).data)
        assert "reasoning: 2 pairs" in text and "reflection post: 1 pair " in text
        page = shown(explorers.explore_pairs(run, live=False).data)
        assert len(page.all("mark", "reflection")) == 2
        assert text.count("Wait, it is not so: 3.") == 1 and text.count("◆ the two sides diverge here") == 2
        narrow = static_html.read_tables(run).pairs["pair_id"].iloc[0]  # chosen +0.67, rejected -0.33
        assert "reasoning: 2 pairs reasoning: chosen S = +0.67; rejected S = −1 " in text.replace("−1A", "−1 A")
        text = words(explorers.explore_pairs(run, first=narrow, live=False).data)
        assert "reasoning: 2 pairs reasoning: chosen S = +0.67; rejected S = −0.33" in text

    def test_a_reflection_that_both_sides_share_is_highlighted_too(self, run: RunFiles) -> None:
        pair = static_html.read_tables(run).pairs.iloc[2].to_dict() | {"chosen_reflection": "So I go on."}
        for side in ("chosen", "rejected"):
            pair[side] = [{"role": "assistant", "content": f"Answer: B\nSo I go on.\nThen.\nAnswer: {side}"}]
        page = shown(static_html.piece("sides", static_html.pair_view(pair)))
        assert len(page.all("mark", "reflection")) == 1
        assert page.text.split("◆")[0].strip() == "Answer: B So I go on. Then."

    def test_responses_are_counted_by_how_they_changed(self, run: RunFiles) -> None:
        text = words(explorers.explore_responses(run, live=False).data)
        counts = "wrong → right: 1, right → wrong: 1, right → right: 0, wrong → wrong: 0"
        assert f"clinic, sampled: 2 responses {counts}" in text
        assert "So. ◆ the two sides diverge here ✗ base: B" in text  # what both say stands once
        assert "clinic, greedy: 1 response " in text and "right → wrong: no response." in text
        assert "✗ Med-REFL: no readable answer" in text

    def test_hostile_text_is_text(self, run: RunFiles) -> None:
        for twin in (explorers.explore_trees(run), explorers.explore_pairs(run), explorers.explore_responses(run)):
            page = shown(twin.data)
            assert SCRIPT in page.text and IMAGE in page.text and "\x07" not in page.text
        assert (
            "{{ 7 * 7 }}" in shown(explorers.explore_trees(run).data).text
            and "$x^2$" in shown(explorers.explore_trees(run).data).text
        )


class TestWithoutStyle:
    """GitHub, nbviewer and an untrusted notebook drop <style>, and GitHub all attributes: the elements must suffice."""

    def test_the_tree_is_a_nested_list(self, run: RunFiles) -> None:
        page = shown(static_html.piece("outline", list(static_html.read_tables(run).tree("q1").outline(set()))))
        tags = [tag for tag, _ in page.elements if tag in ("ul", "li", "details")]
        # The root; step 1 with its leaves 3 and 4; step 2 with leaf 5.
        inner = ["li", "details", "ul"]
        assert tags == ["ul", *inner, *inner, "li", "li", *inner, "li"]

    def test_a_line_of_a_text_is_a_line(self, run: RunFiles) -> None:
        for twin in (explorers.explore_pairs(run), explorers.explore_responses(run)):
            inside = twin.data.split("</style>")[1]
            assert "<br>" in inside
            texts = [part.split("</div>")[0] for part in inside.split('class="text" dir="auto">')[1:]]
            assert texts and not any("\n" in text.strip() for text in texts)

    def test_the_two_sides_are_cells_and_a_reflection_is_marked(self, run: RunFiles) -> None:
        page = shown(explorers.explore_pairs(run).data)
        assert len(page.all("table", "sides")) == 3 and len(page.all("td", "side")) == 6
        assert len(page.all("mark", "reflection")) == 2

    def test_an_option_has_its_letter_and_no_number(self, run: RunFiles) -> None:
        page = shown(static_html.piece("question_box", QUESTION, "q1"))
        tags = [tag for tag, _ in page.elements]
        assert "ol" not in tags and tags.count("li") == 3 and tags.count("b") == 1
        assert "A. zelorin ✓" in " ".join(page.text.split())


class TestTreeExplorer:
    """The widget, as Python sees it: what the front end sends is a change of ``picked`` or of a control."""

    def test_questions_come_most_mixed_first_and_are_searched(self, run: RunFiles) -> None:
        it = explorers.explore_trees(run, live=True)
        assert [key for _, key in it.questions.list.options] == ["q1", "q2"]
        assert it.questions.list.options[0][0].split()[:5] == ["0", "2", "✓", "2", "✗"]
        assert it.questions.count.value == "2 of 2 questions"
        it.questions.search.value = "SUPPER fever"
        assert it.questions.count.value == "1 of 2 questions" and it.pane.tree.question_id == "q2"
        it.questions.search.value = "nothing has this"
        assert it.questions.list.options == () and it.questions.list.value is None
        it.questions.search.value = ""
        it.questions.list.value = "q1"
        assert it.pane.tree.question_id == "q1"
        assert explorers.explore_trees(run, start=1, live=True).pane.tree.question_id == "q2"

    def test_the_tree_is_one_element_with_values_signs_and_shapes(self, run: RunFiles) -> None:
        it = explorers.explore_trees(run, live=True)
        page = shown(it.pane.picture.html)
        nodes = page.all("g", "node")
        assert [node["data-pick"] for node in nodes] == ["node:0", "node:1", "node:2", "node:3", "node:4", "node:5"]
        assert [node["aria-label"] for node in nodes][2:4] == ["step 2, −1", "step 3, A ✓, weight 2"]
        boxes = page.all("rect")
        assert boxes[2]["fill"] == plots.WRONG and boxes[3]["fill"] == plots.RIGHT
        assert boxes[0]["fill"] == to_hex(plots.VALUE_COLOURS(0.5))
        assert [box["rx"] for box in boxes] == ["9", "9", "9", "9", "3", "3"]  # wrong leaves have corners
        assert it.pane.picture.marks == {"1": "chosen rejected", "3": "chosen", "4": "rejected"}

    def test_a_picked_step_shows_text_value_weight_and_outcome(self, run: RunFiles) -> None:
        it = explorers.explore_trees(run, live=True)
        assert "Best correct path: S = +0.67" in words(it.pane.detail.html)
        it.pane.picture.picked = "node:3"
        text = words(it.pane.detail.html)
        assert it.pane.picture.current == "node:3" and it.pane.picture.picked == ""
        assert text.startswith("Step 3, depth 2 A ✓ ×2 V = +1: 2 correct and 0 wrong leaves below this step. Weight 2")
        assert "Outcome +1; stop reason: answer. S of the path is +0.67" in text
        it.pane.picture.picked = "node:2"
        assert "Step 1: nothing." in words(it.pane.detail.html)
        it.pane.detail.picked = "node:0"
        assert "Most confusing wrong path" in words(it.pane.detail.html)
        it.pane.picture.picked = "node:1"
        assert SCRIPT in words(it.pane.detail.html)

    def test_a_pair_is_opened_from_its_question_and_its_nodes_are_marked(self, run: RunFiles) -> None:
        it = explorers.explore_trees(run, live=True)
        pair = it.tables.pairs[it.tables.pairs["kind"] == "reflection_post"].iloc[0]
        parts = [a["data-pick"] for a in shown(it.pane.detail.html).all("button", "pick")]
        assert f"pair:{pair['pair_id']}" in parts
        for _ in range(2):  # the same part can be picked again
            it.pair.html = ""
            it.pane.detail.picked = f"pair:{pair['pair_id']}"
            assert "Wait, it is not so: 3." in words(it.pair.html)
        assert it.pane.picture.marks == {
            "1": "left chosen",
            "4": "left",
            "3": "chosen",
            "2": "rejected",
            "5": "rejected",
        }
        it.pane.detail.picked = "node:5"
        through = [a["data-pick"] for a in shown(it.pane.detail.html).all("button", "pick")]
        assert f"pair:{pair['pair_id']}" in through

    def test_pairs_of_trees_that_were_grown_again_are_left_out(self, run: RunFiles) -> None:
        other = STEPS_TABLE.copy()
        other.loc[3, ["answer", "outcome"]] = ["C", -1.0]
        write_table(run.steps / "part-00000.parquet", other, STEPS)
        write_table(run.values, value_table(other), VALUES)
        assert static_html.read_tables(run).pairs.empty
        run.pairs.unlink()
        assert "No pairs yet: notebook 03 makes them" in words(explorers.explore_trees(run, live=True).pane.detail.html)

    def test_another_run_is_chosen_and_one_that_cannot_be_read_says_why(self, run: RunFiles) -> None:
        other = RunFiles(run.root.parent / "other")
        questions = STEPS_TABLE[STEPS_TABLE["question_id"] == "q2"]
        write_table(other.questions, questions_table([CLEAR]), QUESTIONS)
        write_table(other.steps / "part-00000.parquet", questions, STEPS)
        write_table(other.values, value_table(questions), VALUES)
        it = explorers.explore_trees(run, live=True)
        RunFiles(run.root.parent / "only_begun").steps.mkdir(parents=True)
        it = explorers.explore_trees(run, live=True)
        assert it.run.options == ("demo", "other")
        it.run.value = "other"
        assert it.questions.count.value == "1 of 1 questions" and it.pane.tree.question_id == "q2"
        it.run.value = "demo"
        other.questions.unlink()
        it.run.value = "other"
        assert "questions.parquet is missing: 01_tree_rollout makes it" in words(it.pane.detail.html)

    def test_a_saved_notebook_shows_the_twin(self, run: RunFiles) -> None:
        it = explorers.explore_trees(run, live=True)
        bundle = it._repr_mimebundle_()
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == it.model_id
        assert bundle["text/html"] == explorers.explore_trees(run, live=False).data

    def test_a_tree_of_a_thousand_steps_is_one_widget_and_quick(self, run: RunFiles) -> None:
        n = 1023
        parent = [None, *[(i - 1) // 2 for i in range(1, n)]]
        ends = [("AB"[i % 2], [1.0, -1.0][i % 2]) if i >= n // 2 else (None, NAN) for i in range(n)]
        rows = [step(i, parent[i], int(np.log2(i + 1)), f"Step {i}", *ends[i]) for i in range(n)]
        big = pd.DataFrame(rows)
        tables = static_html.Tables({"q1": QUESTION}, big, value_table(big), pd.DataFrame(columns=PAIRS.names))
        start = time.perf_counter()
        it = explorers.TreeExplorer(run, tables)
        built = time.perf_counter() - start
        assert it.pane.picture.html.count('role="treeitem"') == n
        start = time.perf_counter()
        for node in range(n - 20, n):
            it.pane.picture.picked = f"node:{node}"
        assert (time.perf_counter() - start) / 20 < 0.25 and built < 8


class TestPairBrowser:
    """Filters and the pair that is shown."""

    def test_filters_by_kind_margin_length_and_words(self, run: RunFiles) -> None:
        it = explorers.explore_pairs(run, live=True)
        assert it.chooser.count.value == "3 of 3 pairs"
        it.kind.value = "reflection_post"
        assert it.chooser.count.value == "1 of 1 pairs" and "Wait, it is not so: 3." in words(it.pair.html)
        it.kind.value = "all kinds"
        margins = sorted(static_html.pair_view(pair)["margin"] for pair in it.tables.pairs.to_dict("records"))
        assert margins == pytest.approx([1.0, 5 / 3, 5 / 3])
        it.margin.value = (1.2, it.margin.max)
        assert it.chooser.count.value == "2 of 2 pairs"
        it.margin.value = (it.margin.min, it.margin.max)
        it.length.value = (0, 12) if it.length.min == 0 else (it.length.min, 12)
        assert it.chooser.count.value == "2 of 2 pairs"
        it.length.value = (it.length.min, it.length.max)
        it.chooser.search.value = "it is not so"
        assert it.chooser.count.value == "1 of 3 pairs"

    def test_the_pair_and_its_nodes(self, run: RunFiles) -> None:
        table = static_html.read_tables(run).pairs
        it = explorers.explore_pairs(run, first=table["pair_id"].iloc[2], live=True)
        page = shown(it.pair.html)
        assert len(page.all("mark", "reflection")) == 2 and len(page.all("div", "shared")) == 1
        assert "A = +1.67, 40 tokens" in words(it.pair.html)
        assert it.pane.tree.question_id == "q1" and it.pane.picture.marks["4"] == "left"
        it.chooser.list.value = table["pair_id"].iloc[0]
        assert "left" not in " ".join(it.pane.picture.marks.values())

    def test_another_runs_pairs_are_chosen_with_their_own_filters(self, run: RunFiles) -> None:
        other = RunFiles(run.root.parent / "other")
        grown(other.root, [QUESTION, CLEAR], STEPS_TABLE)
        it = explorers.explore_pairs(run, live=True)
        assert it.run.options == ("demo",)  # the other run has no pairs yet
        long = reflected().assign(chosen_tokens=[900], rejected_tokens=[905])
        write_table(other.pairs, long, PAIRS)
        it = explorers.explore_pairs(run, live=True)
        assert it.run.options == ("demo", "other") and it.length.max == 44
        it.kind.value = "reasoning"
        it.run.value = "other"
        assert it.kind.options == ("all kinds", "reflection_post") and it.kind.value == "all kinds"
        assert it.length.value == (it.length.min, it.length.max) == (905, 906)
        assert it.chooser.count.value == "1 of 1 pairs" and long["pair_id"][0] in words(it.pair.html)
        assert "left" in " ".join(it.pane.picture.marks.values())
        assert it._repr_mimebundle_()["text/html"] == explorers.explore_pairs(other, live=False).data
        it.run.value = "demo"
        assert it.chooser.count.value == "3 of 3 pairs" and it.length.max == 44
        other.values.unlink()
        it.run.value = "other"
        assert "values.parquet is missing: 02_step_valuation makes it" in words(it.pair.html)

    def test_a_run_without_pairs_says_so(self, run: RunFiles) -> None:
        write_table(run.pairs, pd.DataFrame(columns=PAIRS.names), PAIRS)
        assert explorers.explore_pairs(run, live=True).chooser.count.value == "0 of 0 pairs"
        assert "The run has no pairs." in words(explorers.explore_pairs(run, live=False).data)


def test_the_response_browser_by_change_and_protocol(run: RunFiles) -> None:
    it = explorers.explore_responses(run, live=True)
    assert it.chooser.count.value == "2 of 2 responses"
    assert [label for label, _ in it.change.options][:2] == ["wrong → right (2)", "right → wrong (1)"]
    assert "✗ base: B" in words(it.pane.html) and "✓ Med-REFL: A" in words(it.pane.html)
    it.protocol.value = "greedy"
    assert it.chooser.count.value == "1 of 1 responses"
    it.change.value = "right → wrong"
    assert words(it.pane.html) == "No response changed from right to wrong."
    it.protocol.value = "all protocols"
    assert "✗ Med-REFL: no readable answer" in words(it.pane.html)


def test_the_responses_open_on_a_change_that_there_is(run: RunFiles) -> None:
    rows = [response(CLEAR, model, "A", "Answer: A") for model in ("base", "medrefl")]
    write_table(run.responses / "clinic.parquet", pd.DataFrame(rows), RESPONSES)
    it = explorers.explore_responses(run, live=True)
    assert it.change.value == "right → right" and it.chooser.count.value == "1 of 1 responses"


def test_another_runs_responses_are_chosen(run: RunFiles) -> None:
    other = RunFiles(run.root.parent / "other")
    rows = [response(CLEAR, model, answer, f"Answer: {answer}") for model, answer in (("base", "B"), ("medrefl", "B"))]
    rows = [row | {"protocol": "budget"} for row in rows]
    write_table(other.responses / "clinic.parquet", pd.DataFrame(rows), RESPONSES)
    RunFiles(run.root.parent / "only_begun").responses.mkdir(parents=True)
    it = explorers.explore_responses(run, live=True)
    assert it.run.options == ("demo", "other")
    it.protocol.value = "greedy"
    it.run.value = "other"
    assert it.protocol.options == ("all protocols", "budget") and it.protocol.value == "all protocols"
    assert it.change.value == "wrong → right" and "No response changed from wrong to right." in words(it.pane.html)
    it.change.value = "wrong → wrong"
    assert it.chooser.count.value == "1 of 1 responses" and "✗ Med-REFL: B" in words(it.pane.html)
    it.run.value = "demo"
    assert it.chooser.count.value == "0 of 0 responses"
    it.change.value = "wrong → right"
    assert it.chooser.count.value == "2 of 2 responses"


def test_a_run_without_its_tables_is_an_error_that_names_the_maker(tmp_path: Path) -> None:
    with pytest.raises(MedReflError, match="questions.parquet is missing: 01_tree_rollout makes it"):
        explorers.explore_trees(RunFiles(tmp_path / "nothing"))
    with pytest.raises(MedReflError, match="responses is missing: 05_benchmark_evaluation makes it"):
        explorers.explore_responses(RunFiles(tmp_path / "nothing"))


def test_another_look_of_the_explorer_runs_no_stage_again_but_the_report(root: Path) -> None:
    hashed = {
        name: set(code_hashes(root / "notebooks" / f"{name}.ipynb", root / "medrefl_utils"))
        for name in ("02_step_valuation", "05_benchmark_evaluation", "06_report")
    }
    looks = {f"views/explorers.{kind}" for kind in ("py", "js", "css")}
    twin = {f"views/static_html.{kind}" for kind in ("py", "css", "html.j2")}
    looks |= twin
    assert not hashed["02_step_valuation"] & looks and not hashed["05_benchmark_evaluation"] & looks
    assert hashed["06_report"] & looks == twin


def test_a_plain_papermill_gives_the_twin_and_no_widget(run: RunFiles, tmp_path: Path) -> None:
    source = (
        "from pathlib import Path\nfrom medrefl_utils.core import RunFiles\n"
        "from medrefl_utils.views import explore_trees\n"
        f"explore_trees(RunFiles(Path({str(run.root)!r})))"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(book, tmp_path / "n.ipynb")
    done = papermill.execute_notebook(tmp_path / "n.ipynb", None, kernel_name="python3", progress_bar=False)
    (output,) = done.cells[0].outputs
    assert set(output.data) == {"text/html", "text/plain"}
    assert "Most confusing wrong path" in output.data["text/html"]


def test_trees_of_ones_own_are_explored_without_a_run() -> None:
    """The four columns that step_values needs, as in the README."""
    rows = {"node_id": range(6), "parent_id": [None, 0, 0, 1, 1, 2], "outcome": [None, None, None, 1, -1, -1]}
    own = pd.DataFrame(rows).assign(question_id="mine")
    page = explorers.explore_trees(own, live=False).data
    assert "mine" in page and "None" not in page and "nan" not in page
    widget = explorers.explore_trees(own, live=True)
    assert widget.run.layout.display == "none" and widget.questions.list.value == "mine"
    widget.pane.pick(3)
    assert "None" not in widget.pane.detail.html and "Outcome +1" in widget.pane.detail.html
    with pytest.raises(MedReflError, match="question 'mine', node 1: outcome 1 on an inner step"):
        explorers.explore_trees(own.assign(outcome=[None, 1, None, 1, -1, -1]))
