"""Train a LoRA adapter on a 4-bit base with DPO; save, merge and publish it.

In: a table of pairs and a base model. Out: an adapter folder and its training log (``train_dpo``). ``dpo_loss`` is the
loss. ``shared_prefix`` computes the common prefix of both sides once. ``reference_cache`` caches the log-probabilities
of the reference. ``check_training_log`` detects collapse and other failures. ``merge_adapter`` and ``push_to_hub``
publish the result.
"""

import lazy_loader

# Names are imported on first use, so that importing this package loads neither torch nor plots.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dpo": ["DpoSettings", "EfficiencySettings", "MonitorSettings", "split_held_out", "train_dpo", "training_log"],
        "dpo_loss": ["sigmoid_dpo_loss"],
        "token_ids": [
            "end_of_turn",
            "generation_end_tokens",
            "pair_lengths",
            "row_tokens",
            "shared_prefix_length",
            "tokenize_pairs",
        ],
        "shared_prefix": ["PairTrainer", "SharedPrefixCollator", "SharedPrefixTrainer"],
        "reference_cache": ["reference_logprobs"],
        "health_checks": ["TrainingFinding", "check_training_log"],
        "trackers": ["check_trackers"],
        "adapters": ["Agreement", "find_adapter", "merge_adapter", "push_to_hub", "write_model_card"],
    },
)
