"""Exam questions: load them, ask them, cut an answer into steps, and read its letter.

In: a file, a benchmark's name, a hub dataset or the built-in clinic. Out: ``Question`` records, the prompts that
ask them, the steps of a text (``split_into_steps``), and the letter that a response states (``extract_answer``).
``lint_questions`` checks an exam, and ``find_overlaps`` compares two exams. ``benchmark_registry`` also knows which
published models were trained on which benchmarks. No model runs here.
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
            "with_shuffled_options",
        ],
        "exam_files": ["read_rows"],
        "word_splitting": ["TokenEstimate", "estimate_tokens", "words"],
        "benchmarks": [
            "Benchmark",
            "benchmark_file",
            "benchmark_registry",
            "check_question_source",
            "lint_counts",
            "load_benchmark",
            "read_benchmark",
            "read_texts",
            "trained_questions",
        ],
        "lint": ["CONTEXT", "LintFinding", "content_key", "lint_questions", "longest_prompt", "stem_key"],
        "contamination": ["find_overlaps", "find_similar_stems", "remove_overlaps"],
        "answers.reader": ["extract_answer", "states_answer"],
        "answers.thinking": ["split_thinking"],
        "steps": ["STEP_KINDS", "split_into_steps", "step_end"],
        "prompts": ["STEP_BOUNDARY", "Messages", "split_steps"],
    },
)
