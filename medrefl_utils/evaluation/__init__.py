"""Ask a benchmark, score the responses, and measure self-correction.

In: questions and the generators of base and adapter, or existing responses. Out: a table of responses (``evaluate``,
``read_responses``), scores with paired intervals and exact tests (``score_responses``), pass@k (``pass_rates``),
robustness (``compare_robustness``), net self-correction with its parts (``self_correction_rates``), second looks at
errors that the clinic knows (``second_look_rates``), the ablation of the kinds of pairs (``ablation_results``), and the
comparison of both methods on both bases (``compare_bases``).
"""

import lazy_loader

# Names are imported on first use, so that importing this package loads neither torch nor plots.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "protocols": ["PROTOCOLS", "Protocol", "make_protocol", "published_temperature", "published_top_p"],
        "responses": [
            "collect_responses",
            "drop_refused",
            "evaluate",
            "judge_answers",
            "question_identity",
            "response_row",
        ],
        "statistics": [
            "Difference",
            "Interval",
            "accuracy_interval",
            "by_gold_position",
            "detectable_gain",
            "holm",
            "interaction_interval",
            "mcnemar_exact",
            "paired_difference",
            "paired_gain",
            "response_rates",
            "score_responses",
            "share_interval",
        ],
        "self_correction": ["continue_from", "example_continuations", "starting_points"],
        "known_errors": ["known_beginnings", "second_look_rates", "second_looks"],
        "correction_rates": ["PLACES", "reconsiders", "self_correction_rates"],
        "composition": ["COMPOSITION_ARMS", "compare_bases"],
        "scoring": ["clinic_questions", "compare_runs", "read_responses"],
        "run_comparison": ["CHANGES", "changed_answers", "compare_with_first"],
        "repeated_samples": ["pass_at_k", "pass_rates"],
        "robustness": ["QUESTION_CHANGES", "changed_question", "compare_robustness"],
        "arms": ["CONTROLS", "draw_equal_arms", "shared_pairs"],
        "ablation": ["ablation_results", "compare_arms", "evaluate_arm", "pairs_lost", "run_arms", "train_arm"],
    },
)
