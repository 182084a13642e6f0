"""Train on pairs with DPO (an adapter) or on chains with supervised fine-tuning (SFT); save, merge and publish.

In: a table of pairs or of chains, and a base model. Out: an adapter or a model folder, and its training log
(``train_dpo``, ``train_sft``). ``sft_examples`` chooses what SFT teaches: chains, or a control of equal size.
``dpo_loss`` is the loss of DPO. ``shared_prefix`` computes the common prefix of both sides once. ``reference_cache``
caches the log-probabilities of the reference. ``check_training_log`` and ``check_sft_log`` detect collapse and other
failures; ``why_nothing_learned`` says when an adapter is still its base. ``check_untaught`` refuses an evaluation on
questions of the training. ``merge_adapter`` and ``push_to_hub`` publish
the result.
"""

import lazy_loader

# Names are imported on first use, so that importing this package loads neither torch nor plots.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "settings": ["EfficiencySettings", "MonitorSettings"],
        "trainer_setup": ["split_held_out"],
        "dpo": ["DpoSettings", "train_dpo", "training_log"],
        "dpo_loss": ["sigmoid_dpo_loss"],
        "sft": ["SftSettings", "train_sft"],
        "sft_targets": ["TARGETS", "sft_examples"],
        "token_ids": [
            "chain_lengths",
            "end_of_turn",
            "generation_end_tokens",
            "pair_lengths",
            "row_tokens",
            "shared_prefix_length",
            "tokenize_chains",
            "tokenize_pairs",
        ],
        "shared_prefix": ["PairTrainer", "SharedPrefixCollator", "SharedPrefixTrainer"],
        "reference_cache": ["reference_logprobs"],
        "taught": ["check_untaught", "taught_questions", "write_taught_questions"],
        "learned": ["warmup_of", "why_nothing_learned"],
        "health_checks": ["TrainingFinding", "check_sft_log", "check_training_log"],
        "trackers": ["check_trackers"],
        "adapters": ["Agreement", "find_adapter", "merge_adapter", "push_to_hub", "write_model_card", "write_sft_card"],
    },
)
