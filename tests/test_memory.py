"""The predicted memory of a training, held to what torch keeps; and what it is good for."""

from __future__ import annotations

import contextlib

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config

from medrefl_utils.memory import (
    GIB,
    MOST_ROWS,
    Memory,
    Shape,
    advice,
    kept_per_token,
    longest_that_fits,
    predict,
    rows_that_fit,
)
from medrefl_utils.records import MedReflError
from medrefl_utils.shared_prefix import attention_mask

SMALL = LlamaConfig(
    vocab_size=97, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
# The sizes of the models that the profiles name, as their configs on the hub state them.
LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip
QWEN_7B = Qwen2Config(
    vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4,
)  # fmt: skip
LENGTHS = pd.DataFrame({"prompt_tokens": [300, 200], "chosen_tokens": [500, 400], "rejected_tokens": [500, 400]})
SETTINGS = {
    "quantization": "nf4", "rank": 64, "batch_size": 1, "accumulation": 64, "max_length": 5000, "shared_prefix": True,
    "gradient_checkpointing": True, "activation_offloading": False, "optimizer": "paged_adamw_8bit",
}  # fmt: skip


def kept(config, rank, tokens, *, autocast):
    """Bytes that torch keeps for the backward pass, each storage once, weights left out."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16 if autocast else torch.float32)
    model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    ids = torch.randint(0, 97, (1, tokens))
    mask = attention_mask(torch.zeros(1, tokens, dtype=torch.int), torch.bfloat16 if autocast else torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), context:
        model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("autocast", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("rank", [2, 16])
def test_what_a_layer_keeps_of_a_token_is_what_torch_keeps(autocast, rank):
    # Between two lengths and two depths, so that all that does not grow with tokens and layers falls out.
    deeper = LlamaConfig(**{**SMALL.to_dict(), "num_hidden_layers": 5})
    # So does the mask, if the layers share it.
    found = [kept(deeper, rank, n, autocast=autocast) - kept(SMALL, rank, n, autocast=autocast) for n in (64, 192)]
    per_token = (found[1] - found[0]) / (192 - 64) / 2
    assert kept_per_token(Shape.of(SMALL), rank, 2 if autocast else 4) == pytest.approx(per_token, rel=0.01)


def test_weights_are_counted_as_the_models_have_them():
    model = LlamaForCausalLM(SMALL)
    shape = Shape.of(SMALL)
    assert shape.linear_weights + shape.other_weights == model.num_parameters()
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert shape.adapter(4) == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    # As published: 8.03 and 7.62 billion (the latter with biases, 0.1 million).
    assert Shape.of(LLAMA_8B).linear_weights + Shape.of(LLAMA_8B).other_weights == pytest.approx(8.03e9, rel=1e-3)
    assert Shape.of(QWEN_7B).linear_weights + Shape.of(QWEN_7B).other_weights == pytest.approx(7.62e9, rel=1e-3)


def test_four_bit_weights_take_what_bitsandbytes_says(tiny_student):
    from medrefl_utils.models import load_model

    model = load_model(tiny_student, "nf4")
    quantised = [m.weight for m in model.modules() if type(m).__name__ == "Linear4bit"]
    found = sum(w.nbytes + w.quant_state.absmax.nbytes + w.quant_state.state2.absmax.nbytes for w in quantised)
    shape = Shape.of(model.config)
    from medrefl_utils.memory import NF4_BYTES

    assert NF4_BYTES * shape.linear_weights == pytest.approx(found, rel=0.02)


def test_each_setting_moves_the_prediction_its_way():
    usual = predict(LLAMA_8B, LENGTHS, settings=SETTINGS).gib
    assert 5 < usual < 15  # the weights alone are 5.5 GiB; a T4 has 15

    def gib(**changed):
        return predict(LLAMA_8B, LENGTHS, settings=SETTINGS | changed).gib

    assert gib(batch_size=2) > usual and gib(shared_prefix=False) > usual
    assert gib(gradient_checkpointing=False) > 1.5 * usual
    assert gib(quantization="none") > usual + 9 and gib(optimizer="adamw") > usual + 0.5
    assert gib(rank=128) > usual and gib(max_length=400) < usual
    assert gib(gradient_checkpointing=False, activation_offloading=True) < gib(gradient_checkpointing=False)
    shared = LENGTHS.assign(shared_tokens=300)
    assert predict(LLAMA_8B, shared, settings=SETTINGS).gib < usual


def test_the_longest_that_fits_grows_with_the_card():
    long = LENGTHS * [4, 20, 20]
    found = [longest_that_fits(LLAMA_8B, long, settings=SETTINGS, gib=gib) for gib in (4, 10, 12, 39)]
    assert found[0] is None and 0 < found[1] < found[2] < found[3]
    assert predict(LLAMA_8B, long, settings=SETTINGS | {"max_length": found[1]}).gib <= 10


def test_advice_goes_from_what_costs_nothing_to_what_costs_tokens():
    ids = pd.DataFrame({f"{n}_ids": [[0] * 900, [0] * 800] for n in ("prompt", "chosen", "rejected")})

    def told(**settings):
        return advice(LLAMA_8B, ids, settings=SETTINGS | settings, gib=15)

    assert told(batch_size=4, accumulation=16) == (
        "lower batch_size to 2 and raise accumulation to 32, which trains the same"
    )
    assert told(gradient_checkpointing=False) == "set gradient_checkpointing to true"
    assert told(quantization="none") == "set quantization to nf4"
    assert told().startswith("lower max_length to ")


def test_rows_that_fit_follow_the_memory_and_what_a_row_takes():
    """By hand, of an 8B model in 16 bit: a token's keys and values take 2 x 32 x 8 x 128 numbers, 128 KiB."""
    one = {"prefix": 1024, "new": 1024, "k": 1, "width": 2}
    row = 2048 * 128 * 1024 + 64 * 128256
    reading = 1024 * (2 * 128 * 1024 + 2 * (3 * 14336 + 6 * 4096))
    for n in (1, 2, 8, 256):
        assert rows_that_fit(LLAMA_8B, **one, budget=n * (row + reading)) == n
        assert rows_that_fit(LLAMA_8B, **one, budget=2 * n * (row + reading) - 1) == n  # no jitter with what is free
    assert rows_that_fit(LLAMA_8B, **one, budget=0) == 1 and rows_that_fit(LLAMA_8B, **one, budget=1e15) == MOST_ROWS
    assert rows_that_fit(LLAMA_8B, **one | {"k": 4}, budget=4 * row + reading) == 4  # a prefix is read once for four
    assert rows_that_fit(SMALL, **one, budget=row) == 64


def test_parts_add_up_and_a_config_without_sizes_is_told():
    memory = Memory(weights=GIB, adapter=GIB, activations=GIB, working=GIB, context=0)
    assert memory.gib == pytest.approx(4.1)
    from transformers import ViTConfig

    with pytest.raises(MedReflError, match="memory: the config of a vit model lacks a size: .*vocab_size"):
        Shape.of(ViTConfig())
