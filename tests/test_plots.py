"""The figures have the marks that they are read by."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch

from medrefl_utils.core import MedReflError
from medrefl_utils.pairs import PAIR_KINDS
from medrefl_utils.trees import value_table
from medrefl_utils.views import plots

NAN = float("nan")

# Two right leaves of one step, a wrong one and an unreadable one, which stands for two.
STEPS = pd.DataFrame(
    [
        ("q", 0, None, 0, "", None, NAN, 1),
        ("q", 1, 0, 1, "Step 1: a rash\nand $x_1$ <b>fever</b>", None, NAN, 1),
        ("q", 2, 0, 1, "Answer: B", "B", -1.0, 1),
        ("q", 3, 1, 2, "Answer: A", "A", 1.0, 1),
        ("q", 4, 1, 2, "Answer: A!", "A", 1.0, 1),
        ("q", 5, 1, 2, "Who knows", None, -1.0, 2),
        ("all right", 0, None, 0, "", None, NAN, 1),
        ("all right", 1, 0, 1, "Answer: A", "A", 1.0, 1),
    ],
    columns=["question_id", "node_id", "parent_id", "depth", "text", "answer", "outcome", "weight"],
)


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def inside(figure: Figure) -> bool:
    """Nothing of the figure is cut off: its outermost pixels are bare."""
    pixels = imread(BytesIO(figure._repr_png_()))  # type: ignore[attr-defined]
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool((edge == 1).all()) and bool((pixels < 0.5).any())


def test_a_tree_shows_values_letters_marks_weights_and_short_texts() -> None:
    figure = plots.tree(STEPS, value_table(STEPS), "q")
    shown = texts(figure.axes[0])
    assert "q: 2 correct and 3 wrong leaves" in shown
    assert [t for t in shown if t in ("−0.20", "0", "+1")] == ["−0.20", "0"]
    assert [t for t in shown if "✓" in t or "✗" in t] == ["B ✗", "A ✓", "A ✓", "? ✗"]
    assert [t for t in shown if t.startswith("×")] == ["×2"]
    assert "Step 1: a rash and $x_1$ <b>fever</b>" in shown  # as it stands: no mathematics, no markup
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)
    assert inside(figure)


def test_a_trees_boxes_have_the_colour_of_their_value() -> None:
    figure = plots.tree(STEPS, value_table(STEPS), "q")
    boxes = [p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]
    colours = [to_hex(box.get_facecolor()) for box in boxes]
    neutral = to_hex(plots.VALUE_COLOURS(0.5))
    assert colours[1:] == [neutral, plots.WRONG, plots.RIGHT, plots.RIGHT, plots.WRONG]
    red, _, blue, _ = to_rgba(colours[0])
    assert red > blue  # V = -0.2 leans to orange


def test_a_small_tree_is_a_list_that_is_indented_by_depth() -> None:
    axes = plots.tree(STEPS, value_table(STEPS), "q").axes[0]
    boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    x, y = [box.get_x() for box in boxes], [box.get_y() for box in boxes]
    assert x[0] < x[1] == x[2] < x[3] == x[4] == x[5]
    assert sorted(range(6), key=y.__getitem__) == [0, 1, 3, 4, 5, 2]  # a step, then what continues it
    assert len(axes.lines) == 5


def test_a_larger_tree_runs_left_to_right_with_every_leaf_on_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_SMALL_TREE", 0)
    axes = plots.tree(STEPS, value_table(STEPS), "q").axes[0]
    boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    x, y = [box.get_x() for box in boxes], [box.get_y() for box in boxes]
    assert x[0] < x[1] == x[2] < x[3] == x[4] == x[5]
    assert len({y[i] for i in (2, 3, 4, 5)}) == 4
    assert y[1] == pytest.approx((y[3] + y[5]) / 2)  # a step stands in the middle of its children
    assert not any("rash" in text for text in texts(axes))


@pytest.mark.parametrize("n", [5, 16, 17, 60])
def test_trees_of_any_size_are_whole_and_only_small_ones_show_their_texts(n: int) -> None:
    parent = [None, *[(i - 1) // 2 for i in range(1, n)]]
    leaf = [i not in set(parent) for i in range(n)]
    steps = pd.DataFrame(
        {
            **{"question_id": "a question with a rather long name", "node_id": range(n), "parent_id": parent},
            **{"text": "word " * 40, "answer": "A", "weight": 1, "outcome": np.where(leaf, 1.0, NAN)},
        }
    )
    figure = plots.tree(steps, value_table(steps), "a question with a rather long name")
    assert inside(figure)
    assert any("word" in text for text in texts(figure.axes[0])) == (n <= 16)
    words = [text.get_window_extent() for text in figure.axes[0].texts if "word" in text.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(words) for b in words[:i])
    boxes = [p.get_window_extent() for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) == n
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_question_without_a_tree_is_refused() -> None:
    with pytest.raises(MedReflError, match="question 'nobody' has no tree"):
        plots.tree(STEPS, value_table(STEPS), "nobody")


def test_a_tree_that_has_values_has_a_picture() -> None:
    """The four columns that step_values needs, as in the README."""
    rows = {"node_id": range(6), "parent_id": [None, 0, 0, 1, 1, 2], "outcome": [None, None, None, 1, -1, -1]}
    own = pd.DataFrame(rows).assign(question_id="mine")
    drawn = texts(plots.tree(own, value_table(own), "mine").axes[0])
    assert "mine: 1 correct and 2 wrong leaves" in drawn and sorted(drawn).count("? ✗") == 2 and "? ✓" in drawn


def test_a_pairs_tree_draws_each_of_its_paths_in_a_line_of_its_own() -> None:
    pair = pd.Series({"question_id": "q", "chosen_nodes": [1, 3], "rejected_nodes": [2], "left_nodes": None})
    pair["kind"] = "reflection_mid"
    figure = plots.pair_tree(STEPS, value_table(STEPS), pair)
    assert "reflection mid, q: 2 correct and 3 wrong leaves" in texts(figure.axes[0])
    drawn = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines if len(line.get_xdata())]
    assert drawn.count((plots.RIGHT, "-")) == 2 and drawn.count((plots.WRONG, "--")) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chosen", "rejected"]
    assert inside(figure)
    pair["left_nodes"] = np.array([1, 5])  # as it is read from a file
    figure = plots.pair_tree(STEPS, value_table(STEPS), pair)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["wrong path", "chosen", "rejected"]
    assert sum(line.get_linestyle() == ":" for line in figure.axes[0].lines if len(line.get_xdata())) == 2


def test_values_by_depth_shows_shares_means_and_numbers() -> None:
    figure = plots.values_by_depth(value_table(STEPS), STEPS)
    axes = figure.axes[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert heights["−1: all wrong"] == pytest.approx([1 / 3, 1 / 3])
    assert heights["0"] == pytest.approx([1 / 3, 0])
    assert heights["+1: all correct"] == pytest.approx([1 / 3, 2 / 3])
    assert texts(axes) == ["0\nn 3", "+0.33\nn 3"]
    assert "67% of steps at depth 1, 100% at depth 2" in figure.get_suptitle()
    assert inside(figure)


def test_outcomes_count_questions_by_their_share_of_right_leaves() -> None:
    figure = plots.outcomes(STEPS)
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.containers[0]] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert axes.get_title("left").startswith("1 of 2 questions have both correct and wrong leaves")
    assert inside(figure)


@pytest.mark.parametrize("kinds", [["reasoning"], ["reasoning", "reflection_mid", "reflection_post", "random_cot"]])
def test_pair_margins_count_every_pair_by_kind(kinds: list[str]) -> None:
    pairs = pd.DataFrame({"chosen_value": 1.0, "rejected_value": [0.5, 0.0, -1.0, 1.2], "kind": (kinds * 4)[:4]})
    figure = plots.pair_margins(pairs)
    axes = figure.axes[0]
    assert [sum(b.get_height() for b in bars) for bars in axes.containers] == [4 // len(kinds)] * len(kinds)
    assert axes.get_title("left") == "In 75% of 4 pairs the chosen path has the higher S"
    labels = axes.get_legend_handles_labels()[1]
    assert "median +0.75" in labels and set(kinds) <= set(labels)
    assert inside(figure)


def test_pair_margins_tell_all_kinds_apart() -> None:
    pairs = pd.DataFrame({"chosen_value": 1.0, "rejected_value": 0.5, "kind": PAIR_KINDS})
    drawn = plots.pair_margins(pairs).axes[0].containers
    looks = {(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in drawn}
    assert len(looks) == len(drawn) == len(PAIR_KINDS)


def test_no_pairs_are_a_figure_that_says_so() -> None:
    pairs = pd.DataFrame({"chosen_value": [], "rejected_value": [], "kind": []})
    assert plots.pair_margins(pairs).axes[0].get_title("left") == "No pairs"


def test_pair_lengths_show_each_kinds_surplus_and_means() -> None:
    pairs = pd.DataFrame(
        {
            "kind": ["reasoning"] * 3 + ["reflection_mid"],
            "chosen_tokens": [30, 40, 20, 90],
            "rejected_tokens": [20, 30, 30, 100],
        }
    )
    figure = plots.pair_lengths(pairs)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "reasoning\n30 vs. 27",
        "reflection_mid\n90 vs. 100",
    ]
    assert axes.get_title(loc="left") == "In 50% of 4 pairs the chosen side is longer"
    assert inside(figure)
    assert plots.pair_lengths(pairs.head(0)).axes[0].get_title(loc="left") == "No pairs"


def test_training_curves_leave_out_what_was_not_logged() -> None:
    log = pd.DataFrame(
        {
            **{"step": [1, 2, 3], "loss": [0.69, 0.5, NAN]},
            **{"margin": [0.0, 1.0, 2.0], "accuracy": [0.5, 0.75, 1.0]},
        }
    )
    figure = plots.training_curves(log)
    loss, margin, accuracy = figure.axes
    assert loss.lines[1].get_xydata().tolist() == [[1, 0.69], [2, 0.5]]
    assert margin.lines[1].get_ydata().tolist() == [0, 1, 2]
    assert loss.get_title("left") == "DPO loss: 0.69 → 0.50"
    assert accuracy.get_title("left") == "reward accuracy: 50% → 100%"
    log = pd.DataFrame({"step": range(20), "loss": [1.0, 0.0] * 10, "margin": 0.0, "accuracy": 0.5})
    loss = plots.training_curves(log).axes[0]
    assert loss.lines[2].get_ydata()[1:].tolist() == [0.5] * 19  # the mean of two steps
    assert loss.get_title("left") == "DPO loss: 1.00 → 0.50"  # the last four
    assert [axes.get_xlabel() for axes in figure.axes] == ["training step"] * 3
    assert inside(figure)


def test_rounding_errors_of_one_step_are_no_curve() -> None:
    log = pd.DataFrame({"step": [1], "loss": [0.6931471805], "margin": [-1e-8], "accuracy": [0.5]})
    loss, margin, _ = plots.training_curves(log).axes
    assert loss.get_ylim() == pytest.approx((np.log(2) - 0.02, np.log(2) + 0.02))
    assert margin.get_ylim() == pytest.approx((-0.02, 0.02))
    loss.figure.canvas.draw()
    assert loss.yaxis.get_offset_text().get_text() == ""  # the ticks are the values themselves


def test_a_loss_curve_shows_each_step_and_their_mean() -> None:
    figure = plots.loss_curve(pd.DataFrame({"step": range(1, 41), "loss": [4.0] * 20 + [1.0, 0.0] * 10}))
    each, mean = figure.axes[0].lines
    assert each.get_ydata()[:20].tolist() == [4.0] * 20
    assert mean.get_ydata()[-1] == 0.5
    assert figure.axes[0].get_title("left") == "Loss: 4.00 → 0.50"
    assert inside(figure)


def test_a_figure_is_saved_as_png_in_a_folder_of_its_own(tmp_path: Path) -> None:
    file = plots.save(plots.outcomes(STEPS), tmp_path / "figures" / "outcomes")
    assert file == tmp_path / "figures" / "outcomes.png"
    assert imread(file).shape[:2] == (540, 1080)  # 7.2 x 3.6 inches at 150 dots an inch
    vector = file.with_suffix(".svg")
    first = file.read_bytes(), vector.read_bytes()
    assert b"<svg" in first[1]
    plots.save(plots.outcomes(STEPS), tmp_path / "figures" / "outcomes")
    assert (file.read_bytes(), vector.read_bytes()) == first


def test_accuracy_bars_show_values_intervals_and_gains() -> None:
    scores = pd.DataFrame(
        [
            ("clinic", "sampled", "base", 1000, 0.600, 0.57, 0.63, NAN),
            ("clinic", "sampled", "medrefl", 1000, 0.671, 0.64, 0.70, 0.071),
            ("clinic", "greedy", "base", 1000, 0.80, 0.78, 0.82, NAN),
            ("clinic", "greedy", "medrefl", 1000, 0.79, 0.77, 0.81, -0.01),
        ],
        columns=["source", "protocol", "model", "n", "accuracy", "accuracy_low", "accuracy_high", "gain"],
    )
    figure = plots.accuracy_bars(scores)
    (axes,) = figure.axes
    assert axes.get_title("left") == "clinic: 1,000 questions"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["sampled\n+7.1 points", "greedy\n−1.0 points"]
    assert texts(axes) == ["60.0%", "80.0%", "67.1%", "79.0%"]
    bars = [c for c in axes.containers if hasattr(c, "patches")]
    assert [bar.get_height() for c in bars for bar in c] == pytest.approx([0.6, 0.8, 0.671, 0.79])
    whiskers = [seg[:, 1] for c in bars for seg in c.errorbar.lines[2][0].get_segments()]
    assert np.array(whiskers) == pytest.approx(np.array([[0.57, 0.63], [0.78, 0.82], [0.64, 0.70], [0.77, 0.81]]))
    assert inside(figure)


def test_a_figure_is_a_cells_value_and_leaves_no_settings_behind() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figure = plots.outcomes(STEPS)
    assert dict(mpl.rcParams) == before
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"), [(0.2, "+0.20"), (-1 / 3, "−0.33"), (1.0, "+1"), (-1, "−1"), (0.001, "0"), (-0.0, "0")]
)
def test_a_value_has_its_sign(value: float, text: str) -> None:
    assert plots.signed(value) == text
