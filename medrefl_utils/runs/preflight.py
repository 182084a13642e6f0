"""Check the inputs of a run before anything starts, so that an invalid file fails in a second and not after hours.

Each check uses the loader that the stage will use, or reads file headers only. The error message is the loader's own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import PAIRS, TAUGHT
from medrefl_utils.core.store import read_table
from medrefl_utils.exam import prompts
from medrefl_utils.exam.benchmarks import check_question_source, load_benchmark
from medrefl_utils.exam.lint import CONTEXT, prompt_tokens
from medrefl_utils.models.folder_checks import check_adapter_base, resolve_checked_encoder, resolve_checked_model
from medrefl_utils.pairs.pair_table import check_pair_texts
from medrefl_utils.runs.overlap_check import check_overlaps
from medrefl_utils.training.sft_targets import sft_examples
from medrefl_utils.training.trackers import check_trackers
from medrefl_utils.trees.growing_tree import SearchSettings

MIN_FREE_BYTES = 200_000_000
"""Free bytes that a run needs on its disk: many times the artifacts of a smoke run."""

_CHAINS, _FINE_TUNING = "08_knowledge_chains", "09_sft_lora_4bit"
_TRAINING, _EVALUATION = "04_dpo_lora_4bit", "05_benchmark_evaluation"

_QUESTION_PARAMETERS = (
    ("questions", "split", "n_questions", "offset", "answer_base"),
    (
        "evaluation_questions",
        "evaluation_split",
        "n_evaluation_questions",
        "evaluation_offset",
        "evaluation_answer_base",
    ),  # fmt: skip
)
_NEW_TOKENS = {
    "01_tree_rollout": ("max_path_tokens", "max_step_tokens"),
    "05_benchmark_evaluation": ("max_new_tokens",),
    "07_ablation": ("max_new_tokens", "max_new_tokens"),
}
"""{stage: the parameters whose sum is what it writes after a question's prompt}"""

Parameters = Mapping[str, Any]


def check_inputs(stages: Mapping[str, Parameters], files: RunFiles, given: Container[str]) -> list[str]:
    """Check everything that the stages will read, and the folder that they write to.

    Args:
        stages: {stage that will run: its parameters}.
        files: the run's files.
        given: artifacts (attribute names of ``RunFiles``) that these stages read and that none of them writes.

    Returns:
        Notes on what stages will leave out: questions longer than the model's context, or in the evaluation.

    Raises:
        MedReflError: the first problem that would stop a stage.
    """
    notes: list[str] = []
    for stage, values in stages.items():
        _check_settings(stage, values)
    for model in dict.fromkeys(model for values in stages.values() for model in _models(values)):
        resolve_checked_model(model)
    for values in stages.values():
        if values.get("embedder") and not values["embedder_endpoint"]:
            resolve_checked_encoder(values["embedder"])
    loaded: dict[tuple[Any, ...], list[Question]] = {}
    for stage, values in stages.items():
        for names in _QUESTION_PARAMETERS:
            if names[0] in values:
                notes += _check_questions(stage, values, names, loaded)
    if _CHAINS in stages and stages[_CHAINS]["graph"] != "clinic":  # which the stage writes itself
        from medrefl_utils.knowledge.graph_source import load_graph

        check_disk_space(files.root)
        load_graph(stages[_CHAINS]["graph"], columns=stages[_CHAINS]["graph_columns"], folder=files.root)

    def load(stage: str, source: str) -> list[Question] | None:
        names = next(names for names in _QUESTION_PARAMETERS if names[0] == source)
        return loaded.get(_request(stages[stage], names))

    notes += check_overlaps(stages, files, given, load)
    if "pairs" in given and _TRAINING in stages:
        check_pair_texts(read_table(files.pairs, PAIRS))
    if _FINE_TUNING in stages and (chains := stages[_FINE_TUNING]["chains"] or ("chains" in given and files.chains)):
        sft_examples(read_table(Path(chains), TAUGHT))
    if "adapter" in given and "model" in stages.get(_EVALUATION, {}):
        check_adapter_base(files.adapter, stages[_EVALUATION]["model"])
    check_disk_space(files.root)
    return notes


def check_disk_space(folder: Path) -> None:
    """Check that a run's folder can be written and has ``MIN_FREE_BYTES`` free; nothing is created.

    Raises:
        MedReflError: the folder is a file, is not writable, or its disk is full.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise MedReflError(f"{existing}: is a file, expected a folder for the run")
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"medrefl")
    except OSError as error:
        raise MedReflError(f"{folder}: cannot be written: {error.strerror}") from None
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise MedReflError(f"{folder}: its disk has {free / 1e6:,.0f} MB free, expected {MIN_FREE_BYTES / 1e6:,.0f} MB")


def _check_settings(stage: str, values: Parameters) -> None:
    """Check what depends on several parameters together, or on this machine."""
    if "branching" in values:
        SearchSettings(
            tuple(values["branching"]), search_mode=values["search_mode"], max_frontier=values["max_frontier"]
        )
    if values.get("full_finetuning") and values["quantization"] != "none":
        raise MedReflError(
            f"{stage}: full_finetuning is true and quantization is {values['quantization']}: 4-bit weights cannot be "
            "trained; set quantization to none, or full_finetuning to false"
        )
    if values.get("targets") == "own" and not values["own_run"]:
        raise MedReflError(f"{stage}: targets is own, but own_run is empty: name a run's folder with trees there")
    _check_endpoint(stage, values)
    check_trackers(values.get("report_to", ()))
    if values.get("activation_offloading"):
        from medrefl_utils.training.settings import EfficiencySettings

        EfficiencySettings(activation_offloading=True)


def _check_endpoint(stage: str, values: Parameters) -> None:
    """Check the parameters of a server, without asking it: it may start later, for example after the training."""
    endpoint, model = values.get("endpoint", ""), values.get("endpoint_model", "")
    if endpoint and not model:
        raise MedReflError(f"{stage}: endpoint is {endpoint}, but endpoint_model is empty: give the model's name there")
    for name in ("endpoint_adapter", "adapter_endpoint"):
        if values.get(name) and not endpoint:
            raise MedReflError(f"{stage}: {name} is {values[name]}, but endpoint is empty: give the server of the base")
    if endpoint and values.get("adapter_endpoint", "").rstrip("/") == endpoint.rstrip("/"):
        raise MedReflError(f"{stage}: adapter_endpoint is the endpoint itself: leave it empty")
    if endpoint and values.get("endpoint_adapter") == model and not values.get("adapter_endpoint"):
        raise MedReflError(
            f"{stage}: endpoint_adapter and endpoint_model are both {model}: base and adapter are the same"
        )
    embedding = values.get("embedder_endpoint", "")
    if embedding and not values["embedder_endpoint_model"]:
        raise MedReflError(
            f"{stage}: embedder_endpoint is {embedding}, but embedder_endpoint_model is empty: give the name of the "
            "encoder there"
        )
    for name in ("embedder", "embedder_endpoint"):
        if values.get(name) and values["linking"] != "model":
            raise MedReflError(
                f"{stage}: {name} is {values[name]}, but linking is {values['linking']}, which asks no encoder: set "
                "linking to model"
            )
    judge, there = values.get("judge"), values.get("judge_endpoint")
    if there and judge in ("off", "self"):
        raise MedReflError(
            f"{stage}: judge_endpoint is {there}, but judge is {judge}: give the name of its model there"
        )


def _models(values: Parameters) -> list[str]:
    """Return the models that a stage loads: its own, and a judge or filter that runs here and is another model."""
    judge = values.get("judge", "off")
    judges = [judge] if judge not in ("off", "self") and not values.get("judge_endpoint") else []
    judges += [one for one in [values.get("filter_model", "off")] if one not in ("off", "self")]
    return [values["model"], *judges] if "model" in values else judges


def _check_questions(
    stage: str, values: Parameters, names: Sequence[str], loaded: dict[tuple[Any, ...], list[Question]]
) -> list[str]:
    """Load the questions that the stage's notebook will load, the same ones once; return notes on too long ones."""
    request = _request(values, names)
    questions, split, limit, offset, seed, answer_base = request
    if not check_question_source(questions):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stage itself will warn
        if request not in loaded:
            loaded[request] = load_benchmark(
                questions, split=split, limit=limit, offset=offset, seed=seed, answer_base=answer_base
            )
    return _too_long(stage, values, loaded[request])


def _request(values: Parameters, names: Sequence[str]) -> tuple[str, str, int | None, int, int, str]:
    """Return the arguments of ``load_benchmark`` that a stage's parameters give."""
    questions, split, limit, offset, answer_base = (values[name] for name in names)
    seed = values["seed"] if "seed" in values else values["seeds"][0]
    return questions, split, limit or None, offset, seed, str(answer_base)


def _too_long(stage: str, values: Parameters, questions: Sequence[Question]) -> list[str]:
    """Return a note on the questions that do not fit into the model's context beside what the stage writes.

    Tokens are counted only where an estimate from the characters says that a question may be too long: the tokenizer
    would cost every start some seconds.
    """
    parameters = _NEW_TOKENS.get(stage)
    if parameters is None or values.get("endpoint"):
        return []
    new_tokens = sum(values[name] for name in parameters)
    config = Path(values["model"]) / "config.json"
    context = (
        json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings") if config.is_file() else None
    )
    if all(prompt_tokens(question).high + new_tokens <= (context or CONTEXT) for question in questions):
        return []
    from medrefl_utils.models.context_limit import drop_too_long

    _, dropped = drop_too_long(questions, values["model"], prompt=prompts.exam, new_tokens=new_tokens)
    n = sum(dropped.values())
    example = next(iter(dropped.examples.values()), "")
    return [f"{stage} will leave out {n} of {len(questions)} questions that are too long; {example}"] if n else []
