"""Limits of parameter values beyond their type, checked when a profile is read, before any stage starts.

A name has the same limit in every notebook, except for the entries of ``NOTEBOOK_LIMITS``. Choices are repeated here
instead of imported: otherwise every notebook would depend on the code of every stage. A test compares them with the
stages' own choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limit:
    """A limit: ``expected`` in words, and ``holds``, which tests a value of the right type."""

    expected: str
    holds: Callable[[Any], bool]


def limit_of(stage: str, name: str) -> Limit | None:
    """Return the limit of a notebook's parameter; None if every value of its type is valid."""
    return NOTEBOOK_LIMITS.get(stage, {}).get(name) or LIMITS.get(name)


def _at_least(least: float) -> Limit:
    return Limit(f"at least {least}", lambda value: least <= value < math.inf)


def _between(low: float, high: float) -> Limit:
    return Limit(f"{low} to {high}", lambda value: low <= value <= high)


def _one_of(*names: str) -> Limit:
    return Limit(f"one of {', '.join(names)}", lambda value: value in names)


def _some_of(*names: str, none: bool = False) -> Limit:
    return Limit(
        f"some of {', '.join(names)}" + (", or none" if none else ""),
        lambda values: (none or len(values) > 0) and all(value in names for value in values),
    )


def _each(limit: Limit) -> Limit:
    return Limit(
        f"one or more, each {limit.expected}", lambda values: len(values) > 0 and all(map(limit.holds, values))
    )


def _arms(kinds: Collection[str], controls: Collection[str]) -> Limit:
    def known(arm: str) -> bool:
        word, _, rest = arm.strip().partition(" ")
        return all(kind.strip() in kinds for kind in (rest if word in controls else arm).split("+"))

    return Limit(
        f"one or more, each some of {', '.join(kinds)}, joined by +, with {' or '.join(controls)} before for a control",
        lambda arms: len(arms) == len(set(arms)) > 0 and all(map(known, arms)),
    )


_ABOVE_0 = Limit("above 0", lambda value: 0 < value < math.inf)
_SHARE = Limit("above 0 and at most 1", lambda value: 0 < value <= 1)
_NATURAL, _POSITIVE = _at_least(0), _at_least(1)
_ADDRESS = Limit(
    "http(s)://host/v1, or an empty text", lambda value: not value or value.startswith(("http://", "https://"))
)
_KINDS = ("reasoning", "reflection_mid", "reflection_post", "reflection_keep", "random_cot")

_ANSWER_BASE = Limit("0, 1 or auto", lambda value: str(value) in ("0", "1", "auto"))

LIMITS: dict[str, Limit] = {
    # models and inference
    "quantization": _one_of("nf4", "none"),
    "engine": _one_of("local", "vllm"),
    "endpoint": _ADDRESS,
    "adapter_endpoint": _ADDRESS,
    "judge_endpoint": _ADDRESS,
    "workers": _NATURAL,
    "concurrency": _POSITIVE,
    "requests_per_minute": _NATURAL,
    "tokens_per_minute": _NATURAL,
    "max_wait": _NATURAL,
    "max_rows": _NATURAL,
    "max_calls": _NATURAL,
    "max_tokens": _NATURAL,
    "max_cost": _NATURAL,
    "input_price": _NATURAL,
    "output_price": _NATURAL,
    # questions
    "example": _NATURAL,
    "offset": _NATURAL,
    "n_questions": _NATURAL,
    "evaluation_offset": _NATURAL,
    "n_evaluation_questions": _NATURAL,
    "answer_base": _ANSWER_BASE,
    "evaluation_answer_base": _ANSWER_BASE,
    "overlap_threshold": _SHARE,
    "contaminated": _one_of("stop", "drop"),
    # trees
    "screening_chains": _NATURAL,
    "search_mode": _one_of("stepwise", "full-path"),
    "branching": _each(_POSITIVE),
    "max_frontier": _NATURAL,
    "max_leaves": _NATURAL,
    "target_right": _NATURAL,
    "target_wrong": _NATURAL,
    "max_depth": _POSITIVE,
    "max_step_tokens": _POSITIVE,
    "max_path_tokens": _POSITIVE,
    "unfinished": _one_of("wrong", "drop"),
    "steps": _one_of("line", "paragraph", "sentence"),
    "shard_size": _POSITIVE,
    # sampling
    "temperature": _NATURAL,
    "top_p": _SHARE,
    "max_new_tokens": _POSITIVE,
    "max_thinker_tokens": _POSITIVE,
    "repetition_penalty": _ABOVE_0,
    "seed": _NATURAL,
    "seeds": _each(_NATURAL),
    # pairs
    "kinds": _some_of(*_KINDS),
    "top_k": _POSITIVE,
    "min_margin": _between(-2, 2),
    "max_per_question": _POSITIVE,
    "max_per_kind": _NATURAL,
    "max_reflection_pairs": _NATURAL,
    "invalid_side": _one_of("astray", "fake"),
    "reflection_writer": _one_of("model", "clinic"),
    "random_cot_draws": _POSITIVE,
    "locator": _one_of("structure", "model"),
    "error_margin": _between(0, 2),
    "error_by_chance": _SHARE,
    "action_weights": Limit(
        "three of at least 0, not all 0",
        lambda weights: len(weights) == 3 and all(map(_NATURAL.holds, weights)) and any(weights),
    ),
    "min_action_margin": Limit("a finite number", math.isfinite),
    "min_judge_score": _between(1, 5),
    "max_dropped": _between(0, 1),
    "overlong_pairs": _one_of("drop", "truncate"),
    "length_tolerance": _NATURAL,
    # knowledge chains
    "linking": _one_of("offline", "model"),
    "embedder_endpoint": _ADDRESS,
    "nearest": _POSITIVE,
    "min_cosine": _between(0, 1),
    "sure_cosine": _between(0, 1),
    "max_hops": _POSITIVE,
    "max_paths": _POSITIVE,
    "path_targets": _one_of("gold", "options"),
    "path_choice": _one_of("rule", "model"),
    "paths_per_pair": _POSITIVE,
    "max_chosen": _POSITIVE,
    "writer": _one_of("rule", "model"),
    "chain_format": _one_of("steps", "huatuo", "medreason", "think"),
    "filter_samples": _POSITIVE,
    "filter_temperature": _NATURAL,
    "max_filter_tokens": _POSITIVE,
    "min_pass": _between(0, 1),
    "min_lift": _between(-1, 1),
    "max_contradicted": _NATURAL,
    # training
    "beta": _ABOVE_0,
    "lora_rank": _POSITIVE,
    "lora_alpha": _POSITIVE,
    "learning_rate": _ABOVE_0,
    "warmup_steps": _NATURAL,
    "epochs": _POSITIVE,
    "batch_size": _POSITIVE,
    "gradient_accumulation": _POSITIVE,
    "max_length": _POSITIVE,
    "held_out_share": Limit("a share from 0 to below 1", lambda value: 0 <= value < 1),
    "optimizer": _one_of("adamw", "paged_adamw_8bit"),
    "compute_dtype": _one_of("auto", "fp32", "bf16", "fp16"),
    "checkpoint_every": _POSITIVE,
    "stop_on": _some_of("not_finite", "flat_margin", "chance", "collapse", "length", none=True),
    "report_to": _some_of("tensorboard", "wandb", "trackio", none=True),
    # fine-tuning
    "targets": _one_of("chains", "letters", "own"),
    "n_examples": _NATURAL,
    "warmup_share": Limit("a share from 0 to below 1", lambda value: 0 <= value < 1),
    "weight_decay": _NATURAL,
    # evaluation and ablation
    "protocols": _some_of(
        *("published", "greedy", "sampled", "self-consistency", "budget", "misled", "shuffled", "none-of-the-others")
    ),
    "answer_format": _one_of("steps", "json"),
    "n_runs": _POSITIVE,
    "n_votes": _POSITIVE,
    "thinking_budget": _POSITIVE,
    "self_correction_questions": _NATURAL,
    "self_correction_branching": _each(_POSITIVE),
    "self_correction_samples": _POSITIVE,
    "arms": _arms((*_KINDS, "reflection"), ("shuffled", "swapped")),
    "pairs_per_arm": _NATURAL,
    "min_pairs_per_arm": _POSITIVE,
}
NOTEBOOK_LIMITS: dict[str, dict[str, Limit]] = {
    "01_tree_rollout": {"n_questions": _POSITIVE},  # in other notebooks 0 means all
    "09_sft_lora_4bit": {"stop_on": _some_of("not_finite", "flat_loss", "overfitting", none=True)},
}
