"""Models of published architectures with random weights, drawn where they run: a folder without a weights file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from medrefl_utils.models import device, loading
from medrefl_utils.models.generators import local
from medrefl_utils.training import dpo
from tests.benchmarks.bench_rollout import save_word_tokenizer

# The published config.json of each model; special tokens are those of the word tokenizer.
_ENDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama31_8b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 4096,
        "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "qwen25_7b": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 152_064, "hidden_size": 3584,
        "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "tiny": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
}  # fmt: skip


def save_architecture(folder: Path, name: str) -> str:
    """Save config and tokenizer of an architecture in ``folder``, without weights, and return the folder."""
    config = ARCHITECTURES[name] | _ENDS
    folder.mkdir(parents=True, exist_ok=True)
    save_word_tokenizer(folder, config["vocab_size"])
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return str(folder)


class Drawn:
    """A tensor of a checkpoint that is drawn when the loader asks for it, as a safetensors slice is read then."""

    def __init__(self, shape: torch.Size, seed: int):
        self.shape, self.seed = shape, seed

    def get_shape(self) -> list[int]:
        """Return the tensor's shape."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Return the name of its type in safetensors."""
        return "BF16"

    def __getitem__(self, whole: object) -> torch.Tensor:
        """Return the tensor, drawn on the device where models run."""
        drawn = torch.empty(self.shape, dtype=torch.bfloat16, device=device())
        # A norm of ones and matrices of 0.02 keep the activations of random models finite.
        if len(self.shape) == 1:
            return drawn.fill_(1.0)
        # A generator of its own: the loader's threads ask in any order.
        return drawn.normal_(std=0.02, generator=torch.Generator(device()).manual_seed(self.seed))


class _Loader:
    """``AutoModelForCausalLM`` for folders of ``save_architecture``."""

    @staticmethod
    def from_pretrained(name: str, *, trust_remote_code: bool = False, **options: Any) -> Any:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        tensors = {key: Drawn(tensor.shape, i) for i, (key, tensor) in enumerate(empty.state_dict().items())}
        return type(empty).from_pretrained(None, config=config, state_dict=tensors, **options)


@contextmanager
def drawn_weights() -> Iterator[None]:
    """Let ``load_model`` draw the weights of folders of ``save_architecture``, and name them without a hash."""

    def key(model: str, quantization: str) -> str:
        return f"{model} {quantization}"

    with (
        mock.patch.multiple(loading, AutoModelForCausalLM=_Loader, resolve_checked_model=str, model_key=key),
        mock.patch.object(dpo, "model_key", key),
        mock.patch.object(local, "model_key", key),
    ):
        yield
