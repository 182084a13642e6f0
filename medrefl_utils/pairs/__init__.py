"""Preference pairs: select paths, write and check reflections, balance lengths, export.

In: questions, and the steps, paths and corrections of ``medrefl_utils.trees``. Out: a table of pairs
(``reasoning_pairs``, ``random_pairs``, ``reflection_pairs``), its reflections (``write_reflections``), and the pairs in
the formats of TRL, LLaMA-Factory and the released dataset (``export_pairs``). A row that fails a check is dropped and
counted by reason (``core.DropCounts``).
"""

import lazy_loader

# Names are imported on first use, so that importing this package loads neither torch nor plots.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pair_table": [
            "PAIR_FAULTS",
            "PAIR_KINDS",
            "check_pair_texts",
            "pair_id",
            "prompt_states_answer",
            "replace_sides",
            "sample_at_most",
            "select_kinds",
            "side_fault",
        ],
        "path_forms": ["PathForm", "insert_reflection", "split_form"],
        "reasoning": ["random_pairs", "reasoning_pairs"],
        "reflection": [
            "CorrectionKey",
            "CorrectionText",
            "candidates_of",
            "correction_texts",
            "reflection_candidates",
            "reflection_pairs",
            "restraint_candidates",
        ],
        "reflection_writing": ["accepted_reflections", "write_by_truth", "write_reflections"],
        "reflection_checks": ["check_reflection"],
        "judging": ["judge_pairs", "read_scores"],
        "thinker": ["rewrite_as_thought"],
        "lengths": ["apply_length_limit", "count_tokens", "length_imbalance", "length_warnings", "match_lengths"],
        "exports": ["export_pairs", "write_dataset_card"],
    },
)
