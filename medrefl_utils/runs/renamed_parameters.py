"""Parameters that were renamed in version 0.2.0. A profile with an old name gets an error that names the new one."""

from __future__ import annotations

_BUDGET = {"price_in": "input_price", "price_out": "output_price"}
_TRAINING = {"rank": "lora_rank", "alpha": "lora_alpha", "accumulation": "gradient_accumulation"}
_EVALUATION = {"repair_questions": "self_correction_questions", "repair_branching": "self_correction_branching"}

RENAMED: dict[str, dict[str, str]] = {
    "01_tree_rollout": {
        **_BUDGET,
        "ease_chains": "screening_chains",
        "max_open": "max_frontier",
        "mode": "search_mode",
        "ask_answer": "force_answer",
    },
    "03_pair_construction": {
        **_BUDGET,
        "draws": "random_cot_draws",
        "least_score": "min_judge_score",
        "max_thought_tokens": "max_thinker_tokens",
        "over_limit": "overlong_pairs",
        "questions": "evaluation_questions",
        "split": "evaluation_split",
        "offset": "evaluation_offset",
        "n_questions": "n_evaluation_questions",
        "overlap": "overlap_threshold",
        "example": "example_pair",
    },
    "04_dpo_lora_4bit": {
        **_TRAINING,
        "held_out": "held_out_share",
        "compute": "compute_dtype",
        "checkpoints": "checkpoint_folder",
        "keep_references": "cache_references",
    },
    "05_benchmark_evaluation": {
        **_BUDGET,
        **_EVALUATION,
        "form": "answer_format",
        "runs": "n_runs",
        "samples": "n_votes",
        "budget": "thinking_budget",
    },
    "07_ablation": {**_TRAINING, **_EVALUATION, "n_pairs": "pairs_per_arm"},
}
"""{notebook: {old name: new name}}"""


def new_names(key: str, notebook: str | None = None) -> list[str]:
    """Return the current names of a renamed parameter, in one notebook or in all; empty if it was not renamed."""
    tables = RENAMED.values() if notebook is None else [RENAMED.get(notebook, {})]
    return sorted({table[key] for table in tables if key in table})
