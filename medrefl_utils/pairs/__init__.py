"""Preference pairs: selecting paths, writing and checking reflections, balancing lengths, exporting.

In: questions, steps, paths and corrections of the room ``trees``. Out: a table of pairs (``reasoning_pairs``,
``random_pairs``, ``reflection_pairs``), the reflections in it (``write_reflections``, ``check_reflection``), and the
same pairs in the shapes of TRL, LLaMA-Factory and the released dataset (``export_pairs``).
"""

import lazy_loader

# A name is imported from its module when it is first used, so that this room loads no torch and no plots by itself.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pair_table": [
            "PAIR_KINDS",
            "check_pair_texts",
            "check_sides",
            "pair_id",
            "replace_sides",
            "sample_at_most",
            "select_kinds",
        ],
        "reasoning": ["random_pairs", "reasoning_pairs"],
        "reflection": [
            "CorrectionKey",
            "CorrectionText",
            "correction_texts",
            "reflection_candidates",
            "reflection_pairs",
        ],
        "reflection_writing": ["accepted_reflections", "write_reflections"],
        "reflection_checks": ["check_reflection"],
        "judging": ["judge_pairs", "read_scores"],
        "thinker": ["rewrite_as_thought"],
        "lengths": ["apply_length_limit", "count_tokens", "length_imbalance", "length_warnings", "match_lengths"],
        "exports": ["export_pairs", "write_dataset_card"],
    },
)
