"""Look at the steps of trees that a server's model wrote."""

from __future__ import annotations

import pandas as pd

from medrefl_utils.exam.steps import has_content


def without_content(steps: pd.DataFrame) -> list[str]:
    """Return the steps that say nothing, such as blank lines or "Please go on:".

    The last text of a turn that ended without an answer may be one (``force_answer``): its only child is the answer.
    """
    leaves = steps[steps["kind"] == "leaf"]
    asked = leaves.loc[leaves["text"].str.lstrip().str.startswith("Answer:"), ["question_id", "parent_id"]]
    ended = set(asked.itertuples(index=False, name=None))
    inner = steps[steps["kind"] == "step"]
    return [
        step.text
        for step in inner.itertuples()
        if not has_content(step.text) and (step.question_id, step.node_id) not in ended
    ]
