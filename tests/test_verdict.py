"""What a run shows, in sentences."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medrefl_utils.core import PAIRS, SELF_CORRECTION, RunFiles, write_manifest, write_table
from medrefl_utils.views import cautions, verdicts
from tests.test_learned import adapter
from tests.test_report import NAN, score


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.071, "answers more questions correctly than its base (60.0% to 67.1%, +7.1 points [+5.1, +9.1], 1,000 "),
        (
            -0.05,
            "answers fewer questions correctly than its base (60.0% to 55.0%, −5.0 points [−7.0, −3.0], 1,000 ",
        ),
        (0.015, "no difference between adapter and base is shown (60.0% to 61.5%, +1.5 points [−0.5, +3.5], 1,000 "),
        (
            0.0,
            "(60.0% to 60.0%, 0.0 points [−2.0, +2.0], 1,000 questions, which can show gains of about 3 points).",
        ),
    ],
)
def test_the_verdict_says_more_fewer_or_no_difference(gain: float, words: str) -> None:
    (sentence,) = verdicts(pd.DataFrame([score("base", 0.6, NAN), score("medrefl", 0.6 + gain, gain)]))
    assert sentence.startswith("clinic, sampled: ") and words in sentence


def test_a_run_without_an_adapter_has_no_verdict() -> None:
    assert verdicts(pd.DataFrame([score("base", 0.6, NAN)])) == []


def test_too_few_questions_and_a_training_that_changed_nothing_are_said(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    adapter(run.adapter, [0.0], b=0.0)
    few = score("medrefl", 0.7, 0.1) | {"n": 1, "detectable": 0.456}
    enough = score("medrefl", 0.7, 0.1) | {"protocol": "greedy", "detectable": 0.1}
    assert cautions(run, pd.DataFrame([score("base", 0.6, NAN), few, enough])) == [
        "Nothing may have been learned: every LoRA matrix B of the adapter is 0, so base and adapter are the same "
        "model; the training had 1 optimizer step, all with learning rate 0.",
        "clinic, sampled: 1 question can show only gains of about 46 points or more.",
    ]
    adapter(run.adapter, [1e-4] * 20, b=0.1)
    assert cautions(run, pd.DataFrame([enough])) == []


def test_kinds_that_were_hardly_trained_and_rates_of_few_texts_are_said(tmp_path: Path) -> None:
    run, scores = RunFiles(tmp_path), pd.DataFrame([score("medrefl", 0.7, 0.1) | {"detectable": 0.05}])
    kinds = ["reasoning"] * 95 + ["reflection_post"] * 4 + ["random_cot"] * 50
    empty = dict.fromkeys(PAIRS.names)
    write_table(
        run.pairs, pd.DataFrame([empty | {"kind": kind, "pair_id": str(i)} for i, kind in enumerate(kinds)]), PAIRS
    )
    entry = {"parameters": {"kinds": ["reasoning", "reflection_mid", "reflection_post"]}}
    write_manifest(run, {"stages": {"04_dpo_lora_4bit": entry}})
    said = "Of 99 training pairs, 0 reflection_mid and 4 reflection_post: this run does not show what they teach."
    assert cautions(run, scores) == [said]
    for n in (29, 30):
        rate = dict.fromkeys(SELF_CORRECTION.names) | {"model": "base", "figure": "net self-correction", "n": n}
        write_table(run.self_correction, pd.DataFrame([rate]), SELF_CORRECTION)
        few = ["Self-correction rests on 29 texts, which is too few to tell."] if n == 29 else []
        assert cautions(run, scores) == [said, *few]
