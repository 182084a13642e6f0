"""The sizes of a model that its memory depends on, read from its config without its weights.

Parameters are counted on the model that transformers builds from the config on torch's meta device, where tensors
have shapes and no data. So the count is exact for every architecture, mixtures of experts and their shared experts
included.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import one_line, resolve_model

_ROUTED = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "top_k_experts",
)
_ROUTED_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
_SHARED_WIDTH = ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size")
_SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


@dataclass(frozen=True)
class WeightCounts:
    """The parameters of a model by what happens to them under NF4 and LoRA."""

    linear: int
    """weights of linear maps other than the output head: 4 bit under NF4"""
    experts: int
    """weights of fused experts (one tensor per layer): 16 bit under NF4, as bitsandbytes quantizes linear maps only"""
    other: int
    """embeddings, head, norms, biases and routers: 16 bit"""
    lora: int
    """parameters of a LoRA of rank 1 on all linear maps but the head, and on what else PEFT then adapts"""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder that memory depends on.

    ``intermediate`` is the width that one token uses: of a mixture of experts, that of its active experts together.
    Without ``counts`` the parameters follow from the other sizes as in a Llama.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    counts: WeightCounts | None = None

    @classmethod
    def named(cls, model: str) -> ModelShape:
        """Return the shape of a model folder or a hub id.

        Raises:
            MedReflError: no such model, or a config that does not load or lacks a size.
        """
        name = resolve_model(model)
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            found = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MedReflError(f"model {model}: its config does not load: {found}") from error
        return cls.of(config)

    @classmethod
    def of(cls, config: PreTrainedConfig, *, count: bool = True) -> ModelShape:
        """Return the shape that a transformers config describes.

        Args:
            config: of a causal language model.
            count: count the parameters; without it no model is built, which a caller in a loop needs.

        Raises:
            MedReflError: the config lacks a size, or transformers cannot build its model.
        """
        text = config.get_text_config()
        try:
            return cls(
                hidden=text.hidden_size,
                layers=text.num_hidden_layers,
                heads=text.num_attention_heads,
                kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
                head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                intermediate=_active_width(text),
                vocabulary=text.vocab_size,
                tied=bool(getattr(text, "tie_word_embeddings", False)),
                counts=count_weights(config) if count else None,
            )
        except AttributeError as error:
            raise MedReflError(f"memory: the config of a {config.model_type} model lacks a size: {error}") from error

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a Llama layer's seven linear maps: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, m = self.hidden, self.intermediate
        return [(h, q), (h, kv), (h, kv), (q, h), (h, m), (h, m), (m, h)]

    @property
    def linear_weights(self) -> int:
        """Weights of all linear maps but the head: those that NF4 holds in 4 bit."""
        return self.counts.linear if self.counts else self.layers * sum(i * o for i, o in self.linears)

    @property
    def expert_weights(self) -> int:
        """Weights of experts that stay in 16 bit under NF4; they are part of ``other_weights``."""
        return self.counts.experts if self.counts else 0

    @property
    def other_weights(self) -> int:
        """Weights that stay in 16 bit under NF4: embeddings, head, norms, biases, routers and fused experts."""
        if self.counts:
            return self.counts.other + self.counts.experts
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def weights(self) -> int:
        """All parameters."""
        return self.linear_weights + self.other_weights

    @property
    def cached(self) -> int:
        """Numbers in the cache per token: keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def adapter(self, rank: int) -> int:
        """Return the parameters of a LoRA of this rank on all linear maps but the head."""
        return rank * (self.counts.lora if self.counts else self.layers * sum(i + o for i, o in self.linears))


def count_weights(config: PreTrainedConfig) -> WeightCounts:
    """Count the parameters of the causal language model of a config, on the meta device.

    Raises:
        MedReflError: transformers cannot build the model.
    """
    return _count(type(config), config.to_json_string(use_diff=False), _Config(config))


@dataclass(frozen=True, eq=False)
class _Config:
    """A config beside its JSON in the cache's key; it is equal to any other, since the JSON tells configs apart."""

    config: PreTrainedConfig

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=32)
def _count(kind: type, text: str, held: _Config) -> WeightCounts:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = deepcopy(held.config)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # each architecture's own code raises what it likes
        raise MedReflError(
            f"memory: a {config.model_type} model cannot be built from its config: {one_line(error)}"
        ) from error
    head, total = model.get_output_embeddings(), model.num_parameters()
    linear = experts = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            linear += module.weight.numel()
        experts += sum(p.numel() for p in module.parameters(recurse=False) if p.dim() == 3)
    # PEFT adapts the fused experts of some architectures and not of others, so it is asked.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says which settings it changes for an architecture
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    lora = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return WeightCounts(linear, experts, total - linear - experts, lora)


def _active_width(text: Any) -> int:  # noqa: ANN401 (a config, which has any attributes)
    """Return the width of a layer's feed-forward part that one token uses."""
    dense = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    dense = max(dense) if isinstance(dense, list | tuple) else dense
    routed = _first(text, _ROUTED)
    if not routed:
        return dense
    width = _first(text, _ROUTED_WIDTH)
    shared = _first(text, _SHARED_WIDTH) or (_first(text, _SHARED_EXPERTS) or 0) * width
    return routed * width + shared


def _first(text: Any, names: tuple[str, ...]) -> int | None:  # noqa: ANN401
    found = (getattr(text, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value), None)
