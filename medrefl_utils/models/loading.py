"""Load a causal language model and its tokenizer, from a local folder or the hub: 16/32-bit or NF4 4-bit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import resolve_model
from medrefl_utils.core.store import content_hash
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.folder_checks import check_adapter_folder, resolve_checked_model

# The stages have bars of their own; and what two libraries say of one another is nothing that a user could mend.
disable_progress_bar()
warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)  # trl's and peft's use

QUANTIZATIONS = ("none", "nf4")


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; left padding is the generator's own affair, not the tokenizer's.

    Raises:
        MedReflError: no such folder or hub id, a folder that ``folders.check_model`` refuses, no tokenizer, no chat
            template, or one that does not render a user's turn.
    """
    name = resolve_checked_model(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # its readers of other formats raise what they like
        raise MedReflError(f"model {model}: its tokenizer does not load: {_first_line(error)}") from error
    if tokenizer.chat_template is None:
        raise MedReflError(f"model {model}: its tokenizer has no chat template, which every prompt goes through")
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise MedReflError(f"model {model}: its chat template fails: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise MedReflError(f"model {model}: its tokenizer has no end-of-sequence token, which ends every answer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str, quantization: str = "none", adapter: Path | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The model in ``eval`` mode on the GPU if there is one, else on the CPU; safetensors only, no remote code.

    ``quantization`` "nf4" loads the linear layers in 4-bit NF4 with double quantization; "none" keeps 16 bit on a
    GPU (bf16 where the card has it) and 32 bit on a CPU. ``adapter`` puts a PEFT adapter on top. ``dtype``, of what
    is not 4-bit and of the computation, is ``compute_dtype()`` unless given.

    Raises:
        MedReflError: unknown quantization, missing folder or hub id, a folder that ``folders.check_model`` refuses,
            weights that do not load or lack some of the model's, or an adapter that is missing or another model's.
    """
    if quantization not in QUANTIZATIONS:
        raise MedReflError(f"quantization is {quantization!r}, expected one of {', '.join(QUANTIZATIONS)}")
    name = resolve_checked_model(model)
    if adapter is not None:
        check_adapter_folder(adapter, model)
    dtype = dtype or compute_dtype()
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "device_map": _placement()}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        loaded, told = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MedReflError(f"model {model}: its weights do not load: {_first_line(error)}") from error
    if missing := sorted(told["missing_keys"]):  # transformers would draw them at random, and warn
        found = f"its weights lack {len(missing)} of the tensors of a {type(loaded).__name__}"
        raise MedReflError(f"model {model}: {found}, such as {missing[0]}: expected the weights of that model")
    disable_cpu_repacking(loaded)
    if adapter is not None:
        loaded = _with_adapter(loaded, adapter)
    return loaded.eval()


@dataclass(frozen=True)
class TokenCounter:
    """How long texts are for a model: the ``lengths.Counter`` of its tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def prompts(self, messages: Sequence[Messages]) -> list[int]:
        """Tokens of each prompt in the chat template, the header of the assistant's turn included."""
        render = self.tokenizer.apply_chat_template
        return self.texts([render(m, add_generation_prompt=True, tokenize=False) for m in map(list, messages)])

    def texts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        texts = list(texts)
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False).input_ids] if texts else []


def device() -> str:
    """Where models run: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _placement() -> str | dict[str, int] | None:
    """Where weights are loaded: each process of a launcher has a GPU of its own; one that shards places them itself."""
    if device() == "cpu" or "LOCAL_RANK" not in os.environ:
        return device()
    if os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        return None
    return {"": int(os.environ["LOCAL_RANK"])}


def compute_dtype() -> torch.dtype:
    """bf16 where the GPU has it, fp16 on older cards (T4), fp32 on the CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def disable_cpu_repacking(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit layers in an ``eval`` forward on AVX512-BF16 CPUs.

    The repacked layer's backward silently gives wrong gradients (loss unchanged); measured with bitsandbytes 0.50.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def model_key(model: str, quantization: str) -> str:
    """What names a model in a cache key: a folder's content, or a hub id with the commit that would be loaded."""
    name = resolve_model(model)
    if Path(name).is_dir():
        return f"{content_hash(Path(name))} {quantization}"
    from transformers import AutoConfig

    return f"{name}@{AutoConfig.from_pretrained(name, trust_remote_code=False)._commit_hash} {quantization}"


def _with_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter)
    except (RuntimeError, ValueError) as error:
        raise MedReflError(f"adapter {adapter}: does not fit the model: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
