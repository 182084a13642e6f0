"""Training: DPO of a LoRA adapter on a 4-bit base, and what becomes of the adapter.

In: a table of pairs and a base model. Out: an adapter folder and its training log (``train_dpo``). The loss is in
``dpo_loss``; ``shared_prefix`` reads what both sides of a pair share once; ``reference_cache`` keeps the reference's
log-probabilities; ``check_training_log`` looks for collapse and other failures; ``merge_adapter`` and ``push_to_hub``
publish the result.
"""

import lazy_loader

# A name is imported from its module when it is first used, so that this room loads no torch and no plots by itself.
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
        "adapters": ["Agreement", "find_adapter", "merge_adapter", "push_to_hub", "write_model_card"],
    },
)
