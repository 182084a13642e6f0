"""Every number of every notebook has a limit, every default keeps it, and the choices are those of the stages."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.evaluation import protocols
from medrefl_utils.exam import prompts, steps
from medrefl_utils.models import loading
from medrefl_utils.models.generators import opening
from medrefl_utils.pairs import lengths, pair_table
from medrefl_utils.runs import STAGES, limit_of, notebook_parameters
from medrefl_utils.runs.parameter_limits import LIMITS, NOTEBOOK_LIMITS
from medrefl_utils.training import dpo, health_checks, settings
from medrefl_utils.trees import growing_tree

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PARAMETERS = {stage.name: notebook_parameters(NOTEBOOKS / f"{stage.name}.ipynb") for stage in STAGES}


def test_every_number_and_list_has_a_limit_that_its_default_keeps() -> None:
    for stage, parameters in PARAMETERS.items():
        for name, parameter in parameters.items():
            limit = limit_of(stage, name)
            if parameter.annotation.startswith(("int", "float", "list")):
                assert limit is not None, f"{stage}.{name}"
            assert limit is None or limit.holds(parameter.default), f"{stage}.{name}"


def test_no_limit_is_of_a_parameter_that_there_is_not() -> None:
    assert LIMITS.keys() <= {name for parameters in PARAMETERS.values() for name in parameters}
    assert all(NOTEBOOK_LIMITS[stage].keys() <= PARAMETERS[stage].keys() for stage in NOTEBOOK_LIMITS)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("quantization", loading.QUANTIZATIONS),
        ("engine", opening.ENGINES),
        ("search_mode", growing_tree.MODES),
        ("unfinished", growing_tree.UNFINISHED),
        ("steps", steps.STEP_KINDS),
        ("overlong_pairs", lengths.OVERLONG_PAIRS),
        ("answer_format", prompts.FORMS),
        ("compute_dtype", ("auto", *settings.DTYPES)),
        ("kinds", pair_table.PAIR_KINDS),
        ("protocols", protocols.PROTOCOLS),
        ("stop_on", health_checks.KINDS),
    ],
)
def test_a_choice_is_one_of_the_stages_own(name: str, theirs: tuple[str, ...]) -> None:
    several = name in ("kinds", "protocols", "stop_on")
    told = LIMITS[name].expected.removesuffix(", or none").split(" of ")[1].split(", ")
    assert sorted(told) == sorted(theirs)
    assert all(LIMITS[name].holds([one] if several else one) for one in theirs)
    assert not LIMITS[name].holds(["other"] if several else "other")


def test_what_training_refuses_is_refused_before() -> None:
    for field in fields(dpo.DpoSettings):
        for value in (-1, 0, 1):
            if field.name == "quantization":
                continue
            try:
                dpo.DpoSettings(**{field.name: value})
            except MedReflError:
                assert not LIMITS[field.name].holds(value), (field.name, value)
    with pytest.raises(MedReflError):
        dpo.EfficiencySettings(optimizer="other")
    for optimizer in ("adamw", "paged_adamw_8bit"):
        assert dpo.EfficiencySettings(optimizer=optimizer) and LIMITS["optimizer"].holds(optimizer)
    assert not LIMITS["optimizer"].holds("other")


@pytest.mark.parametrize("nothing", [float("nan"), float("inf"), float("-inf")])
def test_no_number_is_endless_or_none(nothing: float) -> None:
    for stage, parameters in PARAMETERS.items():
        for name, parameter in parameters.items():
            if parameter.annotation == "float":
                assert not limit_of(stage, name).holds(nothing), name
