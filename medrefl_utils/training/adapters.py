"""Write model cards, merge a LoRA adapter into its 16-bit base, and publish either on the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import AutoConfig

from medrefl_utils import __version__
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import one_line, resolve_model
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import PAIRS, TAUGHT
from medrefl_utils.core.store import read_table, whole_folder, write_text
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.exam.benchmarks import card_licence, licence_of
from medrefl_utils.models.folder_checks import is_saved_in_4_bit
from medrefl_utils.models.loading import load_model, load_tokenizer
from medrefl_utils.training.taught import TAUGHT_QUESTIONS, write_taught_questions
from medrefl_utils.training.token_ids import end_of_turn, tokenize_chains

AGREEMENT = 0.98
"""Least share of tokens on which merged model and adapter agree (ours): 16-bit rounding changes close ties."""
CHECKED, CHECKED_TOKENS = 16, 4096
"""Number of examples that the check of a merged model reads, and the tokens that it reads of each."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of a merged model with base plus adapter, over ``tokens`` tokens of responses.

    ``same``: share of tokens with the same most probable token. ``difference``: mean absolute difference of the
    response tokens' log-probabilities, in nats.
    """

    tokens: int
    same: float
    difference: float

    def line(self) -> str:
        """Return one line with both figures."""
        return (
            f"merged and adapter agree on {self.same:.2%} of {self.tokens} tokens; "
            f"mean log-probability difference {self.difference:.4f} nats"
        )


def write_model_card(
    folder: Path,
    pairs: pd.DataFrame,
    log: pd.DataFrame,
    *,
    base: str,
    settings: Mapping[str, Any],
    licences: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
) -> Path:
    """Write the model card ``README.md`` into the adapter's folder, and return its path.

    The card states data, settings, training metrics and licences.

    Args:
        folder: of the adapter, with its adapter_config.json.
        pairs: the training pairs (columns of ``schemas.PAIRS``).
        log: the training log (columns of ``schemas.TRAINING``).
        base: folder or hub id of the base.
        settings: {parameter: value}, as the card lists them.
        licences: {base or question source: licence}; the card says "not stated" where one is missing.
        sources: the question sources of the pairs.
    """
    licences = licences or {}
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return _write_card(
        folder,
        "adapters.md.j2",
        log,
        base=base,
        licences=licences,
        sources=sources,
        settings=settings,
        rank=config["r"],
        modules=", ".join(sorted(config["target_modules"])),
        kinds=pairs["kind"].value_counts(sort=False).to_dict(),
        n_pairs=len(pairs),
        n_questions=pairs["question_id"].nunique(),
    )


def write_sft_card(
    folder: Path,
    log: pd.DataFrame,
    *,
    base: str,
    targets: str,
    n_examples: int,
    merged: str,
    settings: Mapping[str, Any],
    licences: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
) -> Path:
    """Write the model card ``README.md`` of a fine-tuned model or of its adapter, and return its path.

    Args:
        folder: of the model or the adapter.
        log: the training log (columns of ``schemas.SFT_TRAINING``).
        base: folder or hub id of the base.
        targets: what was taught, one of ``sft_targets.TARGETS``.
        n_examples: number of examples.
        merged: how well the merged model agrees with base and adapter; "" after a full fine-tuning.
        settings: {parameter: value}, as the card lists them.
        licences: {base or question source: licence}; the card says "not stated" where one is missing.
        sources: the question sources of the examples.
    """
    config = folder / "adapter_config.json"
    adapter = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else None
    return _write_card(
        folder,
        "adapters.sft.md.j2",
        log,
        base=base,
        licences=licences or {},
        sources=sources,
        settings=settings,
        adapter=adapter,
        modules=", ".join(sorted(adapter["target_modules"])) if adapter else "",
        targets=targets,
        n_examples=n_examples,
        merged=merged,
    )


def _write_card(
    folder: Path,
    template: str,
    log: pd.DataFrame,
    *,
    base: str,
    licences: Mapping[str, str],
    sources: Sequence[str],
    **facts: Any,  # noqa: ANN401 (what the template needs)
) -> Path:
    held_out = log.dropna(subset=["held_out_loss"]).tail(1)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    card = environment.get_template(template).render(
        version=__version__,
        licence=card_licence(licence_of(name, licences) for name in (base, *sources)),
        base=base,
        base_licence=licence_of(base, licences),
        hub=base if "/" in base and not Path(base).exists() else None,
        sources={source: licence_of(source, licences) for source in sources},
        steps=len(log),
        end=log.tail(max(1, len(log) // 5)).mean(numeric_only=True),
        held_out=None if held_out.empty else held_out.iloc[0],
        **facts,
    )
    return write_text(folder / "README.md", card)


def merge_adapter(
    adapter: Path, out: Path, *, base: str | None = None, examples: pd.DataFrame | None = None
) -> Agreement:
    """Merge an adapter into its 16-bit base, write the merged model to ``out``, and check it against the adapter.

    The merge is never into 4-bit weights: quantizing the sum again changes the logits by half their standard
    deviation. A base that is saved in 4 bit is dequantized first. ``out`` gets safetensors, tokenizer, chat template
    and, where the adapter has one, a model card.

    Args:
        adapter: the adapter's folder.
        out: a new or empty folder.
        base: folder or hub id; the base that the adapter names by default.
        examples: what the adapter was trained on, which the check reads: columns ``question_id``, ``prompt`` and
            ``completion`` (messages); the check reads the clinic's chains by default.

    Raises:
        MedReflError: no adapter there, a base that is missing or does not fit, a folder ``out`` that is not empty, or
            a merged model that agrees with the adapter on less than ``AGREEMENT`` of the tokens.
    """
    base = base or adapter_base(adapter)
    if out.exists() and any(out.iterdir()):
        raise MedReflError(f"merge: {out} is not empty; name a new folder")
    tokenizer = load_tokenizer(base)
    trained_on = None if examples is None or examples.empty else examples
    examples = _clinic_chains() if trained_on is None else trained_on.head(CHECKED)
    ids, _ = tokenize_chains(examples, tokenizer, end=end_of_turn(tokenizer), max_length=sys.maxsize)
    if ids.empty:
        raise MedReflError(f"merge: none of {len(examples)} examples has a prompt and a completion to check with")
    tuned = load_model(base, "none", adapter, dtype=torch.bfloat16)
    from_4_bit = is_saved_in_4_bit(AutoConfig.from_pretrained(resolve_model(base), trust_remote_code=False).to_dict())
    before = _read(tuned, ids)
    merged = tuned.merge_and_unload()
    with whole_folder(out) as folder:
        # transformers cannot write a dequantized model under the names of the original checkpoint.
        merged.save_pretrained(folder, save_original_format=not from_4_bit)
        tokenizer.save_pretrained(folder)
        del tuned, merged
        after = _read(load_model(str(folder), "none", dtype=torch.bfloat16), ids)
        agreement = Agreement(
            tokens=len(before),
            same=float((before[:, 0] == after[:, 0]).float().mean()),
            difference=float((before[:, 1] - after[:, 1]).abs().mean()),
        )
        if agreement.same < AGREEMENT:
            raise MedReflError(f"merge: {agreement.line()}; expected at least {AGREEMENT:.0%}: nothing is written")
        write_taught_questions(folder, trained_on, base=base)
        if (adapter / "README.md").is_file():
            card = (adapter / "README.md").read_text(encoding="utf-8")
            card = card.replace("library_name: peft", "library_name: transformers")
            kind = "dequantized 4-bit base" if from_4_bit else "16-bit base"
            merged_how = f"This is the {kind} with the adapter merged in: {agreement.line()}."
            write_text(folder / "README.md", f"{card}\n## Merged\n\n{merged_how}\n")
    return agreement


def adapter_base(adapter: Path) -> str:
    """Return the base that an adapter's config names.

    Raises:
        MedReflError: no adapter_config.json there, or it names no base.
    """
    file = adapter / "adapter_config.json"
    if not file.is_file():
        raise MedReflError(f"{adapter}: no adapter_config.json there: expected an adapter's folder, or a run's")
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        raise MedReflError(f"{file}: is not a JSON object, expected an adapter's config") from None
    if not base:
        raise MedReflError(f"{file}: names no base model; give it with --base")
    return base


def find_adapter(place: Path) -> tuple[Path, pd.DataFrame | None]:
    """Return the adapter's folder of ``place``, an adapter's or a run's folder, and what it was trained on, if known.

    The examples have the columns that ``merge_adapter`` reads: the chosen sides of the run's pairs, or its chains.

    Raises:
        MedReflError: there is no adapter.
    """
    files = RunFiles(place)
    if (files.adapter / "adapter_config.json").is_file():
        pairs = read_table(files.pairs, PAIRS) if files.pairs.exists() else None
        return files.adapter, None if pairs is None else pairs.assign(completion=pairs["chosen"])
    adapter_base(place)
    files = RunFiles(place.parent)
    return place, read_table(files.chains, TAUGHT) if place == files.sft_adapter and files.chains.exists() else None


def push_to_hub(folder: Path, hub_id: str, *, private: bool = True) -> str:
    """Upload the folder of an adapter or a merged model to the hub, private by default, and return its address.

    Raises:
        MedReflError: a folder without a model or without a card, a malformed hub id, or an error of the hub.
    """
    from huggingface_hub import HfApi

    if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise MedReflError(f"push: {folder} holds neither an adapter nor a model")
    if not (folder / "README.md").is_file():
        raise MedReflError(
            f"push: {folder} has no card (README.md); 04_dpo_lora_4bit, 09_sft_lora_4bit and medrefl merge write one"
        )
    if hub_id.count("/") != 1:
        raise MedReflError(f"push: {hub_id!r} is not a hub id of the form owner/name")
    try:
        api = HfApi()
        made = api.create_repo(hub_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=f"medrefl {__version__}",
            ignore_patterns=[TAUGHT_QUESTIONS],  # exams ask that their questions are not published
        )
    except Exception as error:  # the HTTP client's errors have no common base class
        raise MedReflError(f"push: {hub_id}: {one_line(error)}") from error
    return str(made)


@torch.inference_mode()
def _read(model: torch.nn.Module, ids: pd.DataFrame) -> torch.Tensor:
    """Return [response tokens, 2]: the most probable token, and the log-probability of the response's own token."""
    read = []
    for row in ids.itertuples():
        tokens = torch.tensor([(row.prompt_ids + row.completion_ids)[:CHECKED_TOKENS]], device=model.device)
        logps = model(tokens).logits[0, len(row.prompt_ids) - 1 : -1].float().log_softmax(-1)
        response = tokens[0, len(row.prompt_ids) :, None]
        read.append(torch.stack([logps.argmax(-1).float(), logps.gather(1, response)[:, 0]], 1).cpu())
    return torch.cat(read)


def _clinic_chains() -> pd.DataFrame:
    rows = []
    for case in clinic.make_cases(CHECKED, seed=0):
        chain = [{"role": "assistant", "content": "\n".join(clinic.solve(case))}]
        name = case.question.question_id
        rows.append({"question_id": name, "prompt": prompts.exam(case.question), "completion": chain})
    return pd.DataFrame(rows)
