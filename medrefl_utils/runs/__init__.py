"""Runs: one YAML profile becomes a chain of notebooks that skips, resumes and records.

In: a profile and the notebooks of a checkout. Out: ``runs/<name>/`` with every table, the executed notebooks and a
manifest. ``run_profile`` runs the chain; ``make_missing_inputs`` does the same for one notebook opened by hand;
``plan_run`` predicts cost and memory; ``check_machine`` is ``medrefl doctor``. Nothing here changes what a stage
computes.
"""

import lazy_loader

# A name is imported from its module when it is first used, so that this room loads no torch and no plots by itself.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "stages": ["DEFAULT_STAGES", "STAGES", "Stage", "enter_repository", "repository_root"],
        "chain": ["Chain", "make_missing_inputs", "run_profile"],
        "skipping": ["Decision"],
        "execution": ["StageFailed", "execute_notebook"],
        "profiles": ["Parameter", "Profile", "load_profile", "notebook_parameters"],
        "parameter_limits": ["Limit", "limit_of"],
        "preflight": ["check_disk_space", "check_inputs"],
        "provenance": ["code_hashes", "notebook_hash", "versions"],
        "cost_plan": ["Cost", "Plan", "Work", "plan_run", "plan_table"],
        "doctor": ["Check", "Machine", "check_machine", "checks_table", "inspect_machine"],
        "distributed_training": ["train_profile", "training_settings"],
    },
)
