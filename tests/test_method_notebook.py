"""The notebook of the method runs without a model, and every value it prints is the one computed by hand."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import papermill
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]

# By hand, from the method figure: left child 1 with the values 0 (leaves +1, -1) and -1; right child 6 with 0 (-1, +1),
# -1 and +1 (+1, +1).
VALUES = {0: "0", 1: "-1/3", 2: "0", 3: "1", 4: "-1", 5: "-1", 6: "1/5", 7: "0", 8: "-1", 9: "1", 10: "-1", 11: "1"}
VALUES |= {12: "1", 13: "1"}
SOLUTIONS = {12: "11/15", 13: "11/15", 9: "2/5", 3: "2/9", 8: "-4/15", 10: "-2/5", 4: "-4/9", 5: "-2/3"}
ERRORS = {4: 1, 5: 1, 8: 7, 10: 10}
# Of path 6-7-8, left at 7: the step and the leaf of the other path -> effective, gains of V, S and R, and A.
CORRECTIONS = {
    (11, 12): ("True", "1", "1", "3/2", "7/6"),
    (11, 13): ("True", "1", "1", "3/2", "7/6"),
    (1, 3): ("True", "-1/3", "22/45", "13/18", "79/270"),
    (1, 4): ("False", "-1/3", "-8/45", "1/18", "-41/270"),
    (1, 5): ("False", "-1/3", "-2/5", "-1/6", "-3/10"),
    (10, 10): ("False", "-1", "-2/15", "-1/2", "-49/90"),
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    picture = tmp_path_factory.mktemp("method") / "tree.png"
    book = papermill.execute_notebook(
        ROOT / "notebooks/method.ipynb",
        None,
        {"picture": str(picture)},
        cwd=ROOT,
        kernel_name="python3",
        progress_bar=False,
    )
    book.metadata["picture"] = str(picture)
    return book


def printed(book: NotebookNode, cell_id: str) -> str:
    return "".join(output["text"] for output in cell_of(book, cell_id).outputs if output.output_type == "stream")


def rows(book: NotebookNode, cell_id: str) -> list[list[str]]:
    """The cells of a table as the notebook shows it, index first; a merged index cell is repeated."""
    page = next(o.data["text/html"] for o in cell_of(book, cell_id).outputs if "text/html" in o.get("data", {}))
    body = page.partition("<tbody>")[2]
    found: list[list[str]] = []
    spans: list[list[tuple[int, str]]] = []
    for line in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
        cells = re.findall(r'<(?:th|td)(?: rowspan="(\d+)")?[^>]*>(.*?)</(?:th|td)>', line, re.DOTALL)
        carried = [(left - 1, text) for left, text in (spans[-1] if spans else []) if left > 1]
        own = [(int(span or 1), text) for span, text in cells]
        spans.append([*carried, *[cell for cell in own if cell[0] > 1]])
        found.append([*(text for _, text in carried), *(text for _, text in own)])
    return found


def cell_of(book: NotebookNode, cell_id: str) -> NotebookNode:
    return next(cell for cell in book.cells if cell.id == cell_id)


def prose(book: NotebookNode, cell_id: str) -> str:
    """A text with its bold marks left out."""
    return cell_of(book, cell_id).source.replace("**", "")


def test_nothing_is_printed_that_a_reader_would_take_for_an_error(executed: NotebookNode) -> None:
    errors = [o for c in executed.cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
    assert errors == []


def test_v_of_every_step(executed: NotebookNode) -> None:
    assert {int(row[0]): row[-1] for row in rows(executed, "method-v-code")} == VALUES
    for node in (2, 1, 7, 11, 6):
        assert re.search(rf"^\| {node} \|.* = {VALUES[node]} \|$", prose(executed, "method-v"), re.MULTILINE)


def test_s_of_every_path_and_their_order(executed: NotebookNode) -> None:
    found = [(int(row[0]), row[-1]) for row in rows(executed, "method-s-code")]
    assert found == list(SOLUTIONS.items())
    for leaf, value in SOLUTIONS.items():
        assert re.search(rf"^\| (\d+, )+{leaf} \(.*\|(.* =)? {value} \|$", prose(executed, "method-s"), re.MULTILINE)


def test_the_first_wrong_step_of_every_wrong_path(executed: NotebookNode) -> None:
    assert {int(leaf): int(step) for leaf, step in rows(executed, "method-locator-code")} == ERRORS
    for leaf, step in ERRORS.items():
        assert re.search(rf"^\| (\d+, )+{leaf} \|.*\| step {step}\b", prose(executed, "method-locator"), re.MULTILINE)


def test_r_of_a_switch(executed: NotebookNode) -> None:
    lines = printed(executed, "method-r-code").splitlines()
    assert [line.partition(" = ")[2] for line in lines] == ["-1/2", "1", "2/9"]
    assert all(f"= {value}" in prose(executed, "method-r") for value in ("-1/2", "1", "2/9"))


def test_the_corrections_of_one_path_with_their_gains_best_first(executed: NotebookNode) -> None:
    found = {(int(row[1]), int(row[2])): tuple(row[3:]) for row in rows(executed, "method-a-code")}
    assert list(found.items()) == list(CORRECTIONS.items())
    for gains in CORRECTIONS.values():
        of_v, of_s, of_r, action = map(Fraction, gains[1:])
        assert action == (of_v + of_s + of_r) / 3
    for value in ("7/6", "-41/270", "-8/45", "1/18"):
        assert f"= {value} |" in prose(executed, "method-a")
    dropped = {name: int(n) for name, n in rows(executed, "method-a-dropped-code")}
    assert dropped == {"unreadable": 0, "no_error": 0, "error_ends_path": 1, "same_error": 1}


def test_the_four_kinds_of_pairs(executed: NotebookNode) -> None:
    assert rows(executed, "method-reasoning")[0][1:3] == ["[6, 11, 12]", "[6, 7, 8]"]
    assert printed(executed, "method-mid-code").count("fault: none") == 2
    mid, post = (printed(executed, f"method-{kind}-code") for kind in ("mid", "post"))
    for text, ends in ((mid, 0), (post, 2)):
        chosen, _, rejected = text.partition("--- rejected")
        assert chosen.rstrip().endswith("Answer: B") and rejected.rstrip().endswith("Answer: A")
        assert "I named a nodule, but no finding" in chosen and "I named a nodule, but that may" in rejected
        assert text.count("Answer: C") == ends  # post-reasoning: the wrong path is finished on both sides
    assert post.splitlines()[0] == "A of the chosen side: 5/3"
    control = rows(executed, "method-random-code")[0]
    assert control[1] in ("[6, 11, 12]", "[6, 11, 13]", "[6, 7, 9]", "[1, 2, 3]")
    assert control[1:3] != ["[6, 11, 12]", "[6, 7, 8]"]  # else it would show nothing that the reasoning pair has not


def test_the_picture_of_the_readme_is_made_here_and_is_small(executed: NotebookNode) -> None:
    committed = ROOT / "notebooks/images/method.png"
    for picture in (Path(executed.metadata["picture"]), committed):
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 100_000
