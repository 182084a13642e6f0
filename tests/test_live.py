"""Curves that are drawn while a cell runs: one picture, in its place, and nothing outside of a notebook."""

from __future__ import annotations

import base64

import nbclient
import nbformat
import pandas as pd

from medrefl_utils.views import plots

CELL = """
import pandas as pd
from medrefl_utils.views import plots
drawn = []
def draw(table):
    drawn.append(len(table))
    return plots.training_curves(table)
live = plots.Live(draw, seconds=SECONDS)
for n in (1, 2, 3):
    live(pd.DataFrame({"step": range(n), "loss": 0.6, "margin": 0.1, "accuracy": 0.5}))
print(drawn)
"""


def outputs(*cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=240, kernel_name="python3").execute()
    return [cell.outputs for cell in book.cells]


def test_curves_are_drawn_in_their_place_and_go_when_done(root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    told, _ = outputs(CELL.replace("SECONDS", "0"), "live2 = plots.Live(draw, seconds=3600)\nlive2.close()")
    pictures = [output for output in told if output.output_type == "display_data"]
    assert len(pictures) == 1 and base64.b64decode(pictures[0].data["image/png"]).startswith(b"\x89PNG")
    assert [output.text for output in told if output.output_type == "stream"] == ["[1, 2, 3]\n"]
    once, done = outputs(CELL.replace("SECONDS", "3600"), "live.close()")
    assert [output.text for output in once if output.output_type == "stream"] == ["[1]\n"]  # the time is not yet come
    assert [o.data for o in once if o.output_type == "display_data"] == [{"text/plain": ""}] and not done


def test_outside_of_a_notebook_nothing_is_drawn():
    drawn = []
    plots.Live(drawn.append, seconds=0)(pd.DataFrame())
    assert drawn == []
