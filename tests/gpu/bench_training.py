"""``python -m tests.gpu.bench_training [GIB ...]``: what trains on a card of so much memory, and what was predicted.

An 8B Llama with random weights in NF4, LoRA of rank 64, a pair a forward pass with checkpointing, memory capped by
``set_per_process_memory_fraction``. For each cap: the longest ``max_length`` whose step fits (by bisection, in steps of
128), tokens a second, the peak, and ``memory.predict`` beside it (to be within 15%). Not yet run on any card.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from medrefl_utils.memory import GIB, predict
from medrefl_utils.shared_prefix import SharedPrefixCollator, attention_mask
from medrefl_utils.training import keep_adapter_in_32_bit

CAPS = (15, 22, 39)
LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=131072,
)  # fmt: skip
SETTINGS = {
    "quantization": "nf4", "rank": 64, "batch_size": 1, "shared_prefix": True, "gradient_checkpointing": True,
    "activation_offloading": False, "optimizer": "paged_adamw_8bit",
}  # fmt: skip


def build(folder: str) -> torch.nn.Module:
    """The model as 04 trains it; its random weights are written to ``folder`` once and loaded in NF4."""
    AutoModelForCausalLM.from_config(LLAMA_8B, dtype=torch.bfloat16).save_pretrained(folder)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, device_map="cuda")
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    tuned = get_peft_model(model, LoraConfig(r=64, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    keep_adapter_in_32_bit(tuned)
    return tuned.train()


def step(model: torch.nn.Module, length: int) -> tuple[float, float]:
    """Seconds and peak GiB of one forward and backward pass of a pair of two responses that fill ``length``."""
    prompt, side = [5] * 300, [7] * (length - 300)
    batch = SharedPrefixCollator(0)([{"prompt_ids": prompt, "chosen_ids": side, "rejected_ids": [8, *side[1:]]}])
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast("cuda", torch.bfloat16):
        hidden = model.get_base_model().model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False,
            attention_mask=attention_mask(batch["part"], torch.bfloat16),
        )[0]  # fmt: skip
    hidden.float().pow(2).mean().backward()
    torch.cuda.synchronize()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() / GIB


def longest(model: torch.nn.Module, gib: float) -> tuple[int, float, float]:
    """The longest length that trains under the cap, its seconds and its peak."""
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / torch.cuda.get_device_properties(0).total_memory))
    low, high, best = 3, 128, (0, float("nan"), float("nan"))
    while low < high:
        middle = (low + high + 1) // 2
        try:
            best = (128 * middle, *step(model, 128 * middle))
            low = middle
        except torch.OutOfMemoryError:
            high = middle - 1
        torch.cuda.empty_cache()
    return best


def main(caps: Sequence[float] = CAPS) -> None:
    """A line for each cap."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model = build(folder)
    print(torch.cuda.get_device_name())
    for gib in caps:
        length, seconds, peak = longest(model, gib)
        lengths = pd.DataFrame(
            {"prompt_tokens": [300], **dict.fromkeys(["chosen_tokens", "rejected_tokens"], [length])}
        )
        predicted = predict(LLAMA_8B, lengths, settings=SETTINGS | {"max_length": length}).gib
        rate = (2 * length - 300) / seconds
        print(f"{gib:g} GiB: max_length {length}, {rate:.0f} tokens/s, peak {peak:.1f} GiB, predicted {predicted:.1f}")


if __name__ == "__main__":
    main([float(word) for word in sys.argv[1:]] or CAPS)
