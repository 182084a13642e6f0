"""Tables, records, files and errors that every other room uses.

In: nothing. Out: the frozen records (``Question``, ``Answer``, ``Sampling``, ``Continuation``), the schema of every
table (``describe(STEPS)`` prints its columns), the places of a run's files (``RunFiles``), Parquet tables, hashes and
the manifest on disk, and ``MedReflError``, the error of wrong input.
"""

import lazy_loader

# Each name is imported from its module at first use, so that importing this room imports no torch and no matplotlib.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "source_code": ["code_hash"],
        "dropped_rows": ["DropCounts", "check_dropped", "check_some_left"],
        "errors": ["MedReflError"],
        "records": ["LETTERS", "Answer", "Continuation", "Question", "Sampling"],
        "schemas": [
            "ABLATION",
            "ASKED",
            "CHAINS",
            "CONTINUATIONS",
            "CONTRASTS",
            "OVERLAPS",
            "PAIRS",
            "PASS_AT_K",
            "QUESTIONS",
            "REFERENCES",
            "REFLECTIONS",
            "RESPONSES",
            "ROBUSTNESS",
            "SCORES",
            "SCREENING",
            "SELF_CORRECTION",
            "SFT_TRAINING",
            "STEPS",
            "TAUGHT",
            "TRAINING",
            "VALUES",
            "describe",
        ],
        "run_files": ["RunFiles"],
        "freshness": ["OutOfDate", "find_out_of_date"],
        "store": [
            "MADE_BY",
            "content_hash",
            "lock_run",
            "open_stage",
            "read_manifest",
            "read_table",
            "record_stage",
            "table_key",
            "table_notes",
            "whole_folder",
            "write_manifest",
            "write_table",
            "write_text",
            "write_whole",
        ],
        "hub": ["has_cached_dataset", "hub_refusal", "is_offline", "refusal_text", "resolve_model"],
    },
)
