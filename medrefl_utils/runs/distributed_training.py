"""Run stage 04 in several processes under a launcher, with the settings of its notebook in a profile.

    torchrun --nproc_per_node 2 -m medrefl_utils train params/llama31_8b.yaml
    accelerate launch --config_file params/accelerate/fsdp2.yaml -m medrefl_utils train params/llama31_8b.yaml

A notebook runs in one process. Here, each process of the launcher reads the same profile and the run's pairs. The first
process (rank 0) writes the adapter, the log and the manifest, as the notebook does. Continue the chain with
``medrefl run PROFILE --from 05``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import PAIRS, QUESTIONS, TRAINING
from medrefl_utils.core.store import open_stage, read_table, record_stage, write_table
from medrefl_utils.pairs.pair_table import select_kinds
from medrefl_utils.runs.preflight import check_inputs
from medrefl_utils.runs.profiles import load_profile
from medrefl_utils.runs.provenance import RUN_DATE, run_date
from medrefl_utils.runs.stages import CONTINUES, STAGES
from medrefl_utils.training.adapters import write_model_card
from medrefl_utils.training.dpo import DpoSettings, train_dpo
from medrefl_utils.training.settings import EfficiencySettings, MonitorSettings
from medrefl_utils.training.sft import SftSettings

STAGE = "04_dpo_lora_4bit"


def train_profile(profile: Path, *, root: Path, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """Train with the profile's parameters of stage 04 on the pairs of the profile's run; return the training log.

    Raises:
        MedReflError: the profile is wrong, ``check_inputs`` finds a problem, the pairs are missing (the message names
            the stage that makes them), or ``train_dpo`` fails.
    """
    notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    loaded = load_profile(profile, notebooks, root=root, overrides=overrides, continues=CONTINUES)
    values, files = loaded.parameters[STAGE], RunFiles(root / "runs" / loaded.run)
    check_inputs({STAGE: values}, files, given=("pairs",))
    os.environ[RUN_DATE] = run_date(files)  # chat templates may write the date into the prompts
    open_stage(files, STAGE, next(stage.reads for stage in STAGES if stage.name == STAGE), values)
    pairs = select_kinds(read_table(files.pairs, PAIRS), values["kinds"])
    dpo, efficiency, monitor = training_settings(values, files)
    log = train_dpo(
        pairs, values["model"], files.adapter, dpo=dpo, seed=values["seed"], economy=efficiency, upkeep=monitor
    )
    if os.environ.get("RANK", "0") == "0":
        write_table(files.training, log, TRAINING)
        settings = {"seed": values["seed"], "kinds": ", ".join(values["kinds"]), **vars(dpo), **vars(efficiency)}
        sources = list(read_table(files.questions, QUESTIONS)["source"].unique()) if files.questions.exists() else []
        write_model_card(
            files.adapter,
            pairs,
            log,
            base=values["model"],
            settings=settings,
            licences=values["licences"],
            sources=sources,
        )
        last = log.tail(max(1, len(log) // 5)).mean()[["loss", "margin", "accuracy"]].to_dict()
        record_stage(
            files, STAGE, [files.adapter, files.training], {"pairs": len(pairs), "optimizer_steps": len(log), **last}
        )
    return log


def training_settings(
    values: Mapping[str, Any], files: RunFiles
) -> tuple[DpoSettings, EfficiencySettings, MonitorSettings]:
    """Return the training settings that stage 04's parameters hold, matched by name; ``files`` is the run's."""
    dpo, efficiency = (
        kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})
        for kind in (DpoSettings, EfficiencySettings)
    )
    return dpo, efficiency, _monitor(values, files)


def tuning_settings(
    values: Mapping[str, Any], files: RunFiles
) -> tuple[SftSettings, EfficiencySettings, MonitorSettings]:
    """Return the settings that stage 09's parameters hold, matched by name; ``files`` is the run's."""
    sft, efficiency = (
        kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})
        for kind in (SftSettings, EfficiencySettings)
    )
    return sft, efficiency, _monitor(values, files)


def _monitor(values: Mapping[str, Any], files: RunFiles) -> MonitorSettings:
    references = values.get("cache_references", False)
    return MonitorSettings(
        checkpoint_folder=Path(values["checkpoint_folder"] or files.root / "checkpoints"),
        checkpoint_every=values["checkpoint_every"],
        references=files.root.parent / "references" if references else None,
        stop_on=values["stop_on"],
        report_to=values["report_to"],
    )
