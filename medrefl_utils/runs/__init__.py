"""Runs: run a profile's notebooks in order, skip unchanged stages, resume, and record what was done.

In: a YAML profile and the notebooks of a checkout. Out: ``runs/<name>/`` with all tables, the executed notebooks and a
manifest. Nothing here changes what a stage computes.

- ``run_profile`` runs the chain of notebooks; ``make_missing_inputs`` prepares one notebook that is opened by hand.
- ``load_profile`` checks every parameter; ``check_inputs`` checks files and models before anything starts.
- ``Decision`` says whether a stage is skipped and why (module ``skipping``: hashes of code, parameters and inputs).
- ``execute_notebook`` executes one notebook; ``code_hashes`` and ``versions`` record where a result comes from.
- ``plan_run`` predicts cost and memory; ``check_machine`` is ``medrefl doctor``; ``train_profile`` is stage 04 on
  several GPUs. The command line is the module ``cli``.
"""

import lazy_loader

# A name is imported from its module at its first use, so that importing this room loads no torch and no matplotlib.
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
        "provenance": ["RUN_DATE", "code_hashes", "notebook_hash", "run_date", "versions"],
        "cost_plan": ["Cost", "Plan", "Work", "plan_run", "plan_table"],
        "doctor": ["Check", "Machine", "check_machine", "checks_table", "inspect_machine"],
        "run_overview": ["RunSummary", "StageState", "differing_parameters", "list_runs", "summarise_run"],
        "distributed_training": ["train_profile", "training_settings", "tuning_settings"],
    },
)
