"""Reasoning trees: grow them, value their steps, and locate errors.

In: questions and a generator. Out: a table of steps, one row per step (``roll_out``), the step values V and solution
values S (``step_values``, ``paths``), and the corrections of wrong paths ranked by their action value A
(``locate_errors``, ``rank_corrections``). A tree is a table; ``values`` and ``corrections`` are pure functions of it.
"""

import lazy_loader

# A name is imported from its module at its first use, so that this room alone loads no torch and no plots.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "growing_tree": ["MODES", "UNFINISHED", "SearchSettings"],
        "search": ["grow_trees"],
        "rollout": ["roll_out", "screen_questions", "warn_of_limits"],
        "values": ["complete_steps", "paths", "remain_values", "step_values", "value_table", "values_and_paths"],
        "corrections": ["EQUAL_WEIGHTS", "locate_errors", "rank_corrections"],
        "locator_check": ["locator_precision"],
        "model_locator": ["locate_errors_by_model", "read_first_wrong_step"],
    },
)
