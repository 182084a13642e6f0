"""The predicted memory of a training, held to what torch keeps; and what it is good for."""

from __future__ import annotations

import contextlib
import re
import weakref
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config

from medrefl_utils.core import MedReflError
from medrefl_utils.models import (
    GIB,
    Memory,
    ModelShape,
    changes_that_fit,
    fit_training,
    longest_chains,
    longest_pairs,
    predict_training,
    rows_that_fit,
)
from medrefl_utils.models.memory import MOST_ROWS, kept_per_token, longest_that_fits, memory_advice
from medrefl_utils.training import EfficiencySettings, SftSettings, chain_lengths, sft, train_sft
from medrefl_utils.training.shared_prefix import attention_mask
from tests.models import save_model

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
    "quantization": "nf4", "lora_rank": 64, "batch_size": 1, "gradient_accumulation": 64, "max_length": 5000,
    "shared_prefix": True,
    "gradient_checkpointing": True, "activation_offloading": False, "optimizer": "paged_adamw_8bit",
}  # fmt: skip


def tuned(config, rank, *, autocast):
    """A base in 16 bit for autocast, or in 32, with an adapter in 32."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16 if autocast else torch.float32)
    model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def read(model, tokens, *, autocast):
    """A forward pass of the model's body; returns the last hidden states."""
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    mask = attention_mask(torch.zeros(1, tokens, dtype=torch.int), torch.bfloat16 if autocast else torch.float32)
    ids = torch.randint(0, 97, (1, tokens))
    with context:
        return model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False)[0]


class Counted(TorchDispatchMode):
    """Bytes of the tensors that live, each storage once, those of ``known`` tensors left out; and their most."""

    def __init__(self, known):
        super().__init__()
        self.live = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.bytes = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.live:
                self.live[storage._cdata] = storage.nbytes()
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata)
        self.most = max(self.most, self.bytes)
        return out

    def free(self, name):
        self.bytes -= self.live.pop(name)


def kept(config, rank, tokens, *, autocast):
    """Bytes that torch keeps for the backward pass, each storage once, weights left out."""
    model = tuned(config, rank, autocast=autocast)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with saved, disable_input_dtype_casting(model, active=autocast):
        read(model, tokens, autocast=autocast)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("autocast", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("rank", [2, 16])
def test_what_a_layer_keeps_of_a_token_is_what_torch_keeps(autocast, rank):
    # Between two lengths and two depths, so that all that does not grow with tokens and layers falls out.
    deeper = LlamaConfig(**{**SMALL.to_dict(), "num_hidden_layers": 5})
    # So does the mask, if the layers share it.
    found = [kept(deeper, rank, n, autocast=autocast) - kept(SMALL, rank, n, autocast=autocast) for n in (64, 192)]
    per_token = (found[1] - found[0]) / (192 - 64) / 2
    assert kept_per_token(ModelShape.of(SMALL), rank, 2 if autocast else 4) == pytest.approx(per_token, rel=0.01)


@pytest.mark.parametrize("autocast", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(("layers", "tokens"), [(4, 1024), (8, 512)])
def test_the_peak_of_a_step_is_what_torch_takes(autocast, checkpointing, layers, tokens):
    # The proportions of Llama 3.1 8B, an eighth as wide.
    config = LlamaConfig(
        vocab_size=97, hidden_size=512, intermediate_size=1792, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=1,
    )  # fmt: skip
    model = tuned(config, 8, autocast=autocast)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    with Counted(model.parameters()) as counted, disable_input_dtype_casting(model, active=autocast):
        read(model, tokens, autocast=autocast).float().pow(2).mean().backward()
    settings = SETTINGS | {"quantization": "none", "lora_rank": 8, "gradient_checkpointing": checkpointing}
    half = tokens // 2 - 2
    lengths = pd.DataFrame({"prompt_tokens": [2], "chosen_tokens": [half], "rejected_tokens": [half]})
    found = predict_training(ModelShape.of(config), lengths, settings=settings, width=2 if autocast else 4)
    gradients = 4 * ModelShape.of(config).adapter(8)
    # To the safe side, if at all.
    assert 0.95 < (found.activations + found.working + gradients) / counted.most < 1.15


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_the_peak_of_a_full_fine_tuning_is_what_torch_takes(autocast):
    """With checkpointing, at the second of two accumulated passes: the gradients of the first are there."""
    config = LlamaConfig(
        vocab_size=97, hidden_size=256, intermediate_size=896, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    ids = torch.randint(0, 97, (1, 512))
    with Counted(model.parameters()) as counted:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
                last = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
            last.float().pow(2).mean().backward()
            del last
    settings = SETTINGS | {"quantization": "none", "optimizer": "adamw", "full_finetuning": True}
    shape = ModelShape.of(config)
    found = predict_training(shape, longest_chains(512, 1), settings=settings, width=2 if autocast else 4)
    copies = found.weights - 4 * shape.weights  # of the linear maps, in 16 bit
    assert copies == (2 * shape.linear_weights if autocast else 0)
    assert 0.9 < (found.activations + found.working + 4 * shape.weights + copies) / counted.most < 1.15


@pytest.mark.parametrize(
    ("compute_dtype", "checkpointing", "rows"),
    [("fp32", False, 1), ("bf16", False, 1), ("bf16", True, 1), ("fp32", True, 2), ("bf16", False, 2)],
)
def test_the_peak_of_fine_tuning_an_adapter_is_what_torch_takes(
    tmp_path, monkeypatch, compute_dtype, checkpointing, rows
):
    """TRL's own trainer, with its loss, at the trial of the longest batch, which checkpoints as the training does."""
    # A small vocabulary, as TRL copies the used part of its tile of logits several times where there is no Triton. The
    # tile itself has room for 32,768 entries, whatever the vocabulary.
    sizes = {"hidden": 256, "layers": 4, "intermediate_size": 896, "num_key_value_heads": 1}
    save_model(tmp_path, "llama31", **sizes)
    said = "The fever speaks for it, and the cough does not. "
    turns = [[{"role": role, "content": said * n}] for role, n in (("user", 2), ("assistant", 14), ("assistant", 12))]
    examples = pd.DataFrame({"question_id": ["a", "b"], "prompt": [turns[0]] * 2, "completion": turns[1:]})
    seen, trial = {}, sft.try_longest_batch

    class Measured(Exception):
        pass

    def counted(trainer, ids, settings, economy):
        with Counted(trainer.model.parameters()) as seen["counted"]:
            trial(trainer, ids, settings, economy)
        seen["lengths"] = chain_lengths(ids)
        raise Measured

    monkeypatch.setattr(sft, "try_longest_batch", counted)
    settings = SftSettings(lora_rank=8, batch_size=rows, gradient_accumulation=1, quantization="none")
    economy = EfficiencySettings(compute_dtype=compute_dtype, gradient_checkpointing=checkpointing)
    with pytest.raises(Measured):
        train_sft(
            examples, str(tmp_path), tmp_path / "m", adapter=tmp_path / "a", sft=settings, seed=0, economy=economy
        )
    told = SETTINGS | {"quantization": "none", "lora_rank": 8, "batch_size": rows, "optimizer": "adamw"}
    told |= {"gradient_checkpointing": checkpointing}
    shape = replace(ModelShape.named(str(tmp_path)), vocabulary=32768)
    found = predict_training(shape, seen["lengths"], settings=told, width=4 if compute_dtype == "fp32" else 2)
    trained = 12 * shape.adapter(8)  # gradients and AdamW's states
    # The copies of the tile that are made without Triton are not predicted: here up to a tenth.
    assert 0.87 < (found.activations + found.working + trained) / seen["counted"].most < 1.25


def test_a_full_fine_tuning_takes_16_bytes_a_weight():
    """By hand: 4 of the weight, 4 of its gradient, 8 of AdamW's states, and 2 of the 16-bit copy of linear maps."""
    shape = ModelShape.of(LLAMA_8B)
    settings = SETTINGS | {"full_finetuning": True, "quantization": "none", "optimizer": "adamw"}
    found = predict_training(shape, longest_chains(8192, 1), settings=settings)
    assert found.weights == 4 * shape.weights + 2 * shape.linear_weights and found.adapter == 12 * shape.weights
    small = predict_training(shape, longest_chains(8192, 1), settings=settings | {"optimizer": "paged_adamw_8bit"})
    assert small.adapter == 6 * shape.weights
    fit = fit_training(
        shape, longest_chains(8192, 4), settings=settings | {"batch_size": 4, "compute_dtype": "bf16"}, card=80
    )
    assert fit.changes == {"batch_size": 1, "gradient_accumulation": 256, "full_finetuning": False}
    told = memory_advice(shape, longest_chains(900, 1), settings=SETTINGS | {"full_finetuning": False}, gib=80)
    assert told == "set max_length to 674: longer chains are left out"


def test_weights_are_counted_as_the_models_have_them():
    model = LlamaForCausalLM(SMALL)
    shape = ModelShape.of(SMALL)
    assert shape.linear_weights + shape.other_weights == model.num_parameters()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert shape.adapter(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    # As published: 8.03 and 7.62 billion (the latter with biases, 0.1 million).
    assert ModelShape.of(LLAMA_8B).linear_weights + ModelShape.of(LLAMA_8B).other_weights == pytest.approx(
        8.03e9, rel=1e-3
    )
    assert ModelShape.of(QWEN_7B).linear_weights + ModelShape.of(QWEN_7B).other_weights == pytest.approx(
        7.62e9, rel=1e-3
    )


TINY = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
LATENT = {
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4,
}  # fmt: skip
# Family: its own config keys, and the width that a token uses of a layer's experts.
FAMILIES = {
    "mixtral": ({"num_local_experts": 4, "num_experts_per_tok": 2}, 2 * 96),
    "phimoe": ({"num_local_experts": 4, "num_experts_per_tok": 2}, 2 * 96),
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2}, 2 * 96),
    "olmoe": ({"num_experts": 4, "num_experts_per_tok": 2}, 2 * 96),
    "qwen3_moe": (EXPERTS, 2 * 32),
    "qwen2_moe": (EXPERTS | {"shared_expert_intermediate_size": 48, "mlp_only_layers": [0]}, 2 * 32 + 48),
    "deepseek_v2": (ROUTED | LATENT | {"n_shared_experts": 2, "q_lora_rank": None}, 4 * 32),
    "deepseek_v3": (
        ROUTED | LATENT | {"n_shared_experts": 1, "q_lora_rank": 16, "n_group": 2, "topk_group": 1},
        3 * 32,
    ),
    "glm4_moe": (ROUTED | {"n_shared_experts": 1}, 3 * 32),
    "llama4_text": ({"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 128}, 96),
    "gemma2": ({}, 96),
    "gpt_neox": ({}, 96),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_of_each_family_are_those_of_its_model(family):
    own, width = FAMILIES[family]
    config = AutoConfig.for_model(family, **TINY | own)
    shape, model = ModelShape.of(config), AutoModelForCausalLM.from_config(config)
    assert shape.weights == shape.linear_weights + shape.other_weights == sum(p.numel() for p in model.parameters())
    fused = {name: p.numel() for name, p in model.named_parameters() if p.dim() == 3}
    assert shape.expert_weights == sum(fused.values()) and bool(fused) == bool(own)
    assert shape.intermediate == width
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert shape.adapter(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_mixtral_has_46_7_billion_parameters_and_nf4_leaves_its_experts_in_16_bit():
    """By hand: 32 layers of 8 experts of three maps of 4096 x 14336."""
    config = AutoConfig.for_model(
        "mixtral", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    shape = ModelShape.of(config)
    experts = 32 * 8 * 3 * 4096 * 14336
    assert shape.weights == 46_702_792_704 and shape.expert_weights == experts == 45_097_156_608
    settings = SETTINGS | {"compute_dtype": "bf16"}
    fit = fit_training(shape, LENGTHS, settings=settings, card=80)
    assert fit.memory.weights > 2 * experts and fit.changes is None
    assert "GiB for 46.7 billion parameters (weights " in fit.line()
    assert "of 80 on the card (45.1B weights of fused experts stay in 16 bit under nf4)" in fit.line()
    plain = fit_training(shape, LENGTHS, settings=settings | {"quantization": "none"}, card=80)
    assert "fused experts" not in plain.line()


def test_nf4_leaves_fused_experts_in_16_bit(tmp_path):
    """What the prediction says of experts is what loading does."""
    from medrefl_utils.models import load_model
    from tests.models import save_tokenizer

    tokenizer = save_tokenizer(tmp_path, "qwen25")
    own = {"vocab_size": len(tokenizer), "num_local_experts": 4, "num_experts_per_tok": 2}
    config = AutoConfig.for_model("mixtral", **TINY | own)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model, shape = load_model(str(tmp_path), "nf4", dtype=torch.bfloat16), ModelShape.of(config)
    packed = [p for p in model.parameters() if p.dtype == torch.uint8]
    assert 2 * sum(p.numel() for p in packed) == shape.linear_weights
    assert sum(p.numel() for p in model.parameters() if p.dim() == 3) == shape.expert_weights
    assert all(p.dtype == torch.bfloat16 for p in model.parameters() if p.dim() == 3)


def test_a_shape_in_a_loop_builds_no_model():
    assert ModelShape.of(SMALL, count=False).counts is None
    assert ModelShape.of(SMALL, count=False).weights == ModelShape.of(SMALL).weights


def test_four_bit_weights_take_what_bitsandbytes_says(tiny_student):
    from medrefl_utils.models import load_model

    model = load_model(tiny_student, "nf4")
    quantised = [m.weight for m in model.modules() if type(m).__name__ == "Linear4bit"]
    found = sum(w.nbytes + w.quant_state.absmax.nbytes + w.quant_state.state2.absmax.nbytes for w in quantised)
    shape = ModelShape.of(model.config)
    from medrefl_utils.models.memory import NF4_BYTES

    assert NF4_BYTES * shape.linear_weights == pytest.approx(found, rel=0.02)


def test_each_setting_moves_the_prediction_its_way():
    usual = predict_training(ModelShape.of(LLAMA_8B), LENGTHS, settings=SETTINGS).gib
    assert 5 < usual < 15  # the weights alone are 5.5 GiB; a T4 has 15

    def gib(**changed):
        return predict_training(ModelShape.of(LLAMA_8B), LENGTHS, settings=SETTINGS | changed).gib

    assert gib(batch_size=2) > usual and gib(shared_prefix=False) > usual
    assert gib(gradient_checkpointing=False) > 1.5 * usual
    assert gib(quantization="none") > usual + 9 and gib(optimizer="adamw") > usual + 0.5
    assert gib(lora_rank=128) > usual and gib(max_length=400) < usual
    assert gib(gradient_checkpointing=False, activation_offloading=True) < gib(gradient_checkpointing=False)
    shared = LENGTHS.assign(shared_tokens=300)
    assert predict_training(ModelShape.of(LLAMA_8B), shared, settings=SETTINGS).gib < usual


def test_the_longest_that_fits_grows_with_the_card():
    long = LENGTHS * [4, 20, 20]
    found = [longest_that_fits(ModelShape.of(LLAMA_8B), long, settings=SETTINGS, gib=gib) for gib in (4, 10, 12, 39)]
    assert found[0] is None and 0 < found[1] < found[2] < found[3]
    assert predict_training(ModelShape.of(LLAMA_8B), long, settings=SETTINGS | {"max_length": found[1]}).gib <= 10


ALL_PUBLISHED = SETTINGS | {
    "batch_size": 4, "gradient_accumulation": 16, "gradient_checkpointing": False, "quantization": "none",
    "optimizer": "adamw",
}  # fmt: skip


def test_advice_goes_from_what_costs_nothing_to_what_costs_tokens():
    lengths = pd.DataFrame({f"{n}_tokens": [900, 800] for n in ("prompt", "chosen", "rejected")})

    def told(gib=15, **settings):
        return memory_advice(ModelShape.of(LLAMA_8B), lengths, settings=SETTINGS | settings, gib=gib)

    assert (
        told(batch_size=4, gradient_accumulation=16)
        == "set batch_size to 2, gradient_accumulation to 32, which trains the same"
    )
    assert told(gradient_checkpointing=False) == "set gradient_checkpointing to true, which trains the same"
    assert told(quantization="none") == "set quantization to nf4"
    # Whatever was predicted, these 1,800 tokens did not fit: what is advised must be shorter than they are.
    for gib in (15, 80, 8.5):
        shorter = int(told(gib).removeprefix("set max_length to ").split(":")[0])
        assert 64 <= shorter <= 1350
    assert (
        told(8.5) != told(80) == told(15) == "set max_length to 1350: longer pairs are truncated, or left out by 03's"
    )
    assert told(max_length=1000).startswith("set max_length to 750:")  # what was tried is what the limit let through


def test_changes_go_on_until_it_fits():
    def found(gib, **settings):
        return changes_that_fit(
            ModelShape.of(LLAMA_8B), longest_pairs(5000, 4), settings=ALL_PUBLISHED | settings, gib=gib
        )

    assert found(300) == {}
    assert found(40) == {"batch_size": 1, "gradient_accumulation": 64, "gradient_checkpointing": True}
    assert found(22) == found(40) | {"quantization": "nf4"}
    short = found(12.5)
    assert short.items() >= found(22).items() and 2000 < short["max_length"] < 5000
    assert predict_training(ModelShape.of(LLAMA_8B), longest_pairs(5000, 4), settings=ALL_PUBLISHED | short).gib <= 12.5
    assert found(6) is None


def test_a_fit_tells_the_peak_its_parts_and_what_to_change():
    shape, settings = ModelShape.of(LLAMA_8B), ALL_PUBLISHED | {"compute_dtype": "bf16"}
    there = fit_training(shape, longest_pairs(5000, 4), settings=SETTINGS | {"compute_dtype": "fp16"}, card=22)
    assert there.changes == {} and there.line() == (
        "predicted peak memory 12.8 GiB for 8.03 billion parameters (weights 5.3, adapter 1.6, activations 4.5, "
        "working 0.6, context 0.6) of 22 on the card"
    )
    large = fit_training(shape, longest_pairs(5000, 4), settings=settings, card=40)
    assert large.line().endswith(
        "of 40 on the card: to fit, set batch_size to 1, gradient_accumulation to 64, gradient_checkpointing to true, "
        "which trains the same"
    )
    assert (
        fit_training(shape, longest_pairs(5000, 4), settings=settings, card=3)
        .line()
        .endswith("does not fit, whatever is changed")
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here")
def test_without_a_card_the_main_memory_has_to_do_in_32_bit(monkeypatch):
    monkeypatch.setattr("medrefl_utils.models.memory.free_bytes", lambda: 7 * GIB)
    shape = ModelShape.of(SMALL)
    auto, half = (fit_training(shape, LENGTHS, settings=SETTINGS | {"compute_dtype": c}) for c in ("auto", "bf16"))
    assert auto.gib == 7 and auto.line().endswith("of 7 free here, without a card")
    assert auto.memory == predict_training(shape, LENGTHS, settings=SETTINGS, width=4) != half.memory
    assert fit_training(shape, LENGTHS, settings=SETTINGS | {"compute_dtype": "auto"}, card=7).memory == half.memory


@pytest.mark.parametrize("name", ["colab_t4_session", "colab_t4", "colab_l4", "colab_a100"])
def test_what_the_colab_profiles_say_of_memory_is_what_is_predicted(name, root):
    """Of pairs that fill max_length, or 5,000 tokens."""
    text = (root / "params" / f"{name}.yaml").read_text()
    assert yaml.safe_load(text)["shared"]["model"] == "Qwen/Qwen2.5-7B-Instruct"
    values = yaml.safe_load(text)["04_dpo_lora_4bit"]
    usual = SETTINGS | {"optimizer": "adamw"} | {k: v for k, v in values.items() if k in SETTINGS}

    def gib(length, **changed):
        settings = usual | {"max_length": length} | changed
        pairs = longest_pairs(length, usual["batch_size"])
        return f"{predict_training(ModelShape.of(QWEN_7B), pairs, settings=settings).gib:.3g}"

    limit = values["max_length"]
    peaks = re.findall(r"predicted peak (\S+) GiB", text)
    without = re.findall(r"without it (\S+) GiB are predicted", text)
    assert set(peaks) == {gib(limit)} and without == [gib(limit, gradient_checkpointing=False)]
    assert set(re.findall(r"published 5000 is predicted at (\S+) of", text)) <= {gib(5000)}
    assert float(gib(limit)) <= float(re.search(r"Needs a GPU of (\d+) GiB", text)[1])


def test_what_the_fine_tuning_profile_says_of_memory_is_what_is_predicted(root):
    text = (root / "params" / "medreason_8b_sft.yaml").read_text()
    values = SETTINGS | {k: v for k, v in yaml.safe_load(text)["09_sft_lora_4bit"].items() if k != "compute_dtype"}
    chains = longest_chains(values["max_length"], values["batch_size"])
    told = re.search(r"predicted to need (\d+) GiB on one GPU.*On a GPU of (\d+) GiB", text, re.DOTALL)
    shape, small = ModelShape.of(LLAMA_8B), {"full_finetuning": False, "quantization": "nf4"}
    assert f"{predict_training(shape, chains, settings=values).gib:.0f}" == told[1]
    assert predict_training(shape, chains, settings=values | small).gib < float(told[2])


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
        ModelShape.of(ViTConfig())
