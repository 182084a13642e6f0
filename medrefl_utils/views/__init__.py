"""Views: plots, interactive explorers, summary tables and the report.

In: the tables of a run. Out: matplotlib figures (``plots``), widgets for trees, pairs and responses (``explore_trees``,
``explore_pairs``, ``explore_responses``) with static twins, tables for notebook and terminal, and ``report.html``.
"""

import lazy_loader

# A name is imported from its module when it is first used, so that this room loads no torch and no plots by itself.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["plots"],
    submod_attrs={
        "explorers": ["explore_pairs", "explore_responses", "explore_trees", "is_live"],
        "static_html": ["Tables", "Tree", "read_tables"],
        "summary_tables": [
            "ablation_self_correction_table",
            "ablation_table",
            "key_figure_texts",
            "key_figures_table",
            "scores_table",
            "self_correction_table",
        ],
        "score_tables": [
            "comparison_table",
            "exam_lines",
            "findings_table",
            "overlaps_table",
            "rates_table",
            "trained_note",
        ],
        "result_files": ["compare_with_published", "evaluated_model", "published_text", "write_result_tables"],
        "report": ["write_report"],
    },
)
