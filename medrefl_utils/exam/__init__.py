"""Exam questions: where they come from, how they are asked, how a text is cut into steps, how an answer is read.

In: a file, a benchmark's name, a hub dataset or the built-in clinic. Out: ``Question`` records, the prompts that ask
them, the steps of a text (``split_into_steps``), and the letter that a response states (``extract_answer``).
``lint_questions`` checks an exam and ``find_overlaps`` compares two. No model runs here.
"""

import lazy_loader

# A name is imported from its module when it is first used, so that this room loads no torch and no plots by itself.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["clinic", "prompts"],
    submod_attrs={
        "questions": [
            "Rows",
            "load_questions",
            "merge_repeats",
            "question_from_row",
            "questions_from_table",
            "questions_table",
            "read_questions",
            "read_rows",
        ],
        "benchmarks": [
            "Benchmark",
            "benchmark_registry",
            "check_question_source",
            "lint_counts",
            "load_benchmark",
            "read_benchmark",
            "with_shuffled_options",
        ],
        "lint": ["LintFinding", "content_key", "lint_questions", "stem_key"],
        "contamination": ["find_overlaps", "remove_overlaps"],
        "answers": ["extract_answer", "split_thinking", "states_answer"],
        "steps": ["STEP_KINDS", "split_into_steps", "step_end"],
        "prompts": ["STEP_BOUNDARY", "Messages", "split_steps"],
    },
)
