"""Views: plots, interactive explorers, summary tables and the report of a run.

In: the tables of a run. Out: what a person looks at.

- ``plots``: matplotlib figures, such as ``plots.tree`` (a tree coloured by V) and ``plots.training_curves``.
- ``explore_trees``, ``explore_pairs``, ``explore_responses``: widgets in a live notebook, static HTML elsewhere.
- ``show_entities``, ``draw_paths``, ``explore_paths``: a question's entities and paths in a knowledge graph.
- ``scores_table``, ``self_correction_table``, ``ablation_table``, ``contrasts_table``, ``composition_table``,
  ``comparison_table``: tables for a terminal; ``pass_at_k_table`` and ``robustness_table`` too.
- ``verdicts`` and ``cautions`` say in sentences what a run shows, and why it may show nothing.
- ``write_report`` writes ``report.html``; ``write_result_tables`` writes the results as CSV and Markdown.
"""

import lazy_loader

# A name is imported from its module at its first use, so that importing this room loads no torch and no matplotlib.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["chain_plots", "plots"],
    submod_attrs={
        "explorers": ["explore_pairs", "explore_responses", "explore_trees", "is_live"],
        "knowledge_views": ["draw_paths", "explore_paths", "show_entities"],
        "static_html": ["Tables", "Tree", "read_tables", "tables_of"],
        "summary_tables": [
            "ablation_self_correction_table",
            "ablation_table",
            "composition_table",
            "contrasts_table",
            "pass_at_k_table",
            "robustness_table",
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
        "run_comparison": ["runs_side_by_side", "training_of_runs"],
        "result_files": [
            "compare_with_medreason",
            "compare_with_published",
            "evaluated_model",
            "published_text",
            "write_result_tables",
        ],
        "verdict": ["cautions", "verdicts"],
        "report": ["write_report"],
    },
)
