"""Models: getting them, loading them, rendering their prompts, generating with them, and predicting their memory.

In: a model folder or hub id, a GGUF file, or the address of a server. Out: a ``Generator``, which continues prefixes
(``expand``) and answers messages (``chat``). Other rooms know this interface only, never what runs the model. The tiny
student, a Llama of 0.92 million parameters for tests and demos, is in ``tiny_student/``; ``get_smollm2`` makes a folder
of SmolLM2-135M-Instruct without a hub.
"""

import lazy_loader

# Each name is imported from its module at first use, so that importing this room imports no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["student"],
    submod_attrs={
        "loading": [
            "QUANTIZATIONS",
            "TokenCounter",
            "compute_dtype",
            "device",
            "load_model",
            "load_tokenizer",
            "model_key",
        ],
        "folder_checks": ["check_adapter_base", "check_adapter_folder", "check_model_folder", "resolve_checked_model"],
        "chat_templates": [
            "DATE_VARIABLE",
            "open_thinking",
            "prompt_date",
            "render_prompt",
            "thinking_is_open",
        ],
        "context_limit": ["context_length", "drop_too_long"],
        "gguf_conversion": ["convert_gguf", "describe_folder"],
        "smollm2": ["get_smollm2"],
        "model_shape": ["ModelShape"],
        "memory": [
            "GIB",
            "Fit",
            "Memory",
            "changes_that_fit",
            "fit_training",
            "free_bytes",
            "longest_chains",
            "longest_pairs",
            "predict_decoding",
            "predict_training",
            "rows_that_fit",
        ],
        "embeddings": ["Embedder", "open_embedder"],
        "asking": ["Reply", "ask_until_valid", "count_faults"],
        "generators.interface": ["Expansion", "Generator", "Prefix", "Usage", "derive_seed"],
        "generators.opening": ["ENGINES", "check_endpoint", "open_generator"],
        "generators.budget": ["Budget", "Spent"],
        "generators.call_log": ["CallLog"],
        "generators.local": ["LocalGenerator"],
        "generators.endpoint": ["EndpointGenerator"],
        "generators.servers.adapters": ["ServedAdapter"],
        "generators.servers.rate_limits": ["RateLimits"],
    },
)
