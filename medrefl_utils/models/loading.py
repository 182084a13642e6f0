"""Load a causal language model and its tokenizer, from a local folder or the hub: 16/32-bit or NF4 4-bit."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import resolve_model
from medrefl_utils.core.store import content_hash
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.chat_templates import render_prompt, template_fault
from medrefl_utils.models.folder_checks import check_adapter_folder, resolve_checked_model

# The stages show their own progress bars. The warning is about trl and peft, which a user cannot change.
disable_progress_bar()
warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)

QUANTIZATIONS = ("none", "nf4")


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with a chat template that renders a prompt and keeps its question.

    A template in ``chat_template.json``, where multimodal models keep theirs, is used where the tokenizer has none.
    Padding is the end-of-sequence token where the tokenizer has none.

    Raises:
        MedReflError: no such folder or hub id, a folder that ``check_model_folder`` refuses, no tokenizer, no chat
            template, or a template that fails on a user's turn or drops its text.
    """
    name = resolve_checked_model(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # its readers of other formats raise what they like
        raise MedReflError(f"model {model}: its tokenizer does not load: {_first_line(error)}") from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processor_template(name)
    if tokenizer.chat_template is None:
        raise MedReflError(f"model {model}: its tokenizer has no chat template, which every prompt goes through")
    if fault := template_fault(tokenizer):
        raise MedReflError(f"model {model}: {fault}")
    if tokenizer.eos_token_id is None:
        raise MedReflError(f"model {model}: its tokenizer has no end-of-sequence token, which ends every answer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str, quantization: str = "none", adapter: Path | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Return the model in ``eval`` mode, on the GPU if there is one, else on the CPU.

    Only safetensors are read, and no code of the model is run.

    Args:
        model: a folder or hub id.
        quantization: "nf4" loads the linear layers in 4-bit NF4 with double quantization. "none" keeps 16 bit on a
            GPU (bf16 where the card has it) and 32 bit on a CPU. A base that bitsandbytes saved in 4 bit keeps its
            own 4-bit weights under "nf4", and is dequantized under "none".
        adapter: folder of a PEFT adapter to load on top.
        dtype: type of the computation and of all weights outside the 4-bit layers; ``compute_dtype()`` by default.

    Raises:
        MedReflError: unknown quantization, no such folder or hub id, a folder that ``check_model_folder`` refuses,
            weights that do not load or lack some of the model's tensors, or an adapter that is missing or belongs to
            another model.
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
        with warnings.catch_warnings():
            # Of a base that is saved in 4 bit: its own settings hold, as the docstring says.
            warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)
            loaded, report = AutoModelForCausalLM.from_pretrained(
                name, trust_remote_code=False, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise MedReflError(f"model {model}: its weights do not load: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would initialize them at random, and warn
        found = f"its weights lack {len(missing)} of the tensors of a {type(loaded).__name__}"
        raise MedReflError(f"model {model}: {found}, such as {missing[0]}: expected the weights of that model")
    if quantization == "none" and getattr(loaded, "is_loaded_in_4bit", False):
        loaded = loaded.dequantize(dtype).to(dtype)
    _set_up_4_bit_layers(loaded, dtype)
    if adapter is not None:
        loaded = _with_adapter(loaded, adapter)
    return loaded.eval()


@dataclass(frozen=True)
class TokenCounter:
    """Count tokens with a model's tokenizer: the ``Counter`` of ``pairs.lengths``."""

    tokenizer: PreTrainedTokenizerBase

    def prompts(self, messages: Sequence[Messages]) -> list[int]:
        """Return the tokens of each prompt in the chat template, the header of the assistant's turn included."""
        return self.texts([render_prompt(self.tokenizer, list(m)) for m in messages])

    def texts(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, without special tokens."""
        texts = list(texts)
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False).input_ids] if texts else []


def device() -> str:
    """Return where models run: "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _placement() -> str | dict[str, int] | None:
    """Return the device map for loading: a GPU per launched process; None where FSDP or DeepSpeed places weights."""
    if device() == "cpu" or "LOCAL_RANK" not in os.environ:
        return device()
    if os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        return None
    return {"": int(os.environ["LOCAL_RANK"])}


def compute_dtype() -> torch.dtype:
    """Return bf16 where the GPU has it, fp16 on older cards (T4), fp32 on the CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _set_up_4_bit_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let 4-bit layers compute in ``dtype``, and keep bitsandbytes from repacking them on AVX512-BF16 CPUs.

    The compute type saved with a 4-bit base need not be one that this card has. A repacked layer's backward pass gives
    wrong gradients without an error (the loss is unchanged); measured with bitsandbytes 0.50.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = dtype


def _processor_template(name: str) -> str | None:
    """Return the chat template in ``chat_template.json`` of a folder or hub id; None where there is none."""
    try:
        file = cached_file(name, "chat_template.json")
        return json.loads(Path(file).read_text(encoding="utf-8")).get("chat_template") if file else None
    except (OSError, ValueError, AttributeError):
        return None


def model_key(model: str, quantization: str) -> str:
    """Return the model's part of a cache key: a hash of the folder's content, or the hub id with its commit."""
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
