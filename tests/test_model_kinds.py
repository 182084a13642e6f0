"""Models as they lie on disk: 4-bit bases, Conv1D, extra layers, other quantizations; from loading to merging."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.models import LocalGenerator, check_adapter_base, check_model_folder, load_model, load_tokenizer
from medrefl_utils.models.generators.interface import Prefix
from medrefl_utils.training import DpoSettings, merge_adapter, train_dpo
from tests.models import make_pairs, save_model, save_tokenizer

PAIRS = pd.DataFrame(make_pairs(4))
PROMPT = [{"role": "user", "content": "Which drug?"}]


@pytest.fixture(autouse=True)
def close_ties(monkeypatch):
    """Random weights have many close ties, which 16-bit rounding changes; the logits are compared here, too."""
    monkeypatch.setattr("medrefl_utils.training.adapters.AGREEMENT", 0.95)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("whole") / "model", "qwen25", hidden=64)


@pytest.fixture(scope="module")
def four_bit(whole, tmp_path_factory) -> Path:
    """The base as unsloth's and others' folders hold it: packed weights, and their scales beside them."""
    folder = tmp_path_factory.mktemp("four") / "model"
    load_model(str(whole), "nf4").save_pretrained(folder)
    load_tokenizer(str(whole)).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["load_in_4bit"]
    assert load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].shape == (64 * 192 // 2, 1)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    tokenizer = save_tokenizer(folder, "qwen25")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=2048, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def extra_layer(whole, tmp_path_factory) -> Path:
    """A layer for multi-token prediction behind the last one, as DeepSeek V3 and GLM 4.5 have it."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("mtp") / "model"))
    tensors = load_file(folder / "model.safetensors")
    last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.1.")}
    extra = {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in last.items()}
    extra["model.layers.2.eh_proj.weight"] = torch.zeros(64, 128)
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(folder, quantization="none", adapter=None) -> torch.Tensor:
    model = load_model(str(folder), quantization, adapter, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.arange(200, 240)[None]).logits


def train(base: Path, folder: Path, quantization: str) -> Path:
    settings = DpoSettings(
        quantization=quantization, lora_rank=4, batch_size=2, gradient_accumulation=1, learning_rate=0.03, epochs=4,
        held_out_share=0.0,
    )  # fmt: skip
    log = train_dpo(PAIRS, str(base), folder, dpo=settings, seed=0)
    assert log["loss"].iloc[-1] < 0.6  # it learnt something that merging can lose
    return folder


def from_rollout_to_merge(base: Path, out: Path, quantization: str) -> None:
    """What 01, 04, 05 and merge do with a base."""
    written = LocalGenerator(str(base), quantization=quantization).chat([PROMPT], Sampling(max_tokens=4), [1])
    assert written[0].n_tokens >= 1
    adapter = train(base, out / "adapter", quantization)
    check_adapter_base(adapter, str(base))
    tuned = LocalGenerator(str(base), quantization=quantization, adapter=adapter)
    assert len(tuned.expand([Prefix(PROMPT)], 2, "line", Sampling(max_tokens=4), [[1, 2]])[0]) == 2
    agreement = merge_adapter(adapter, out / "merged", base=str(base), examples=PAIRS.assign(completion=PAIRS.chosen))
    assert agreement.same >= 0.95
    merged, expected, base_alone = logits(out / "merged"), logits(base, adapter=adapter), logits(base)
    assert (merged - expected).abs().mean() < 0.1 * (base_alone - expected).abs().mean()
    assert "quantization_config" not in json.loads((out / "merged" / "config.json").read_text())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("kind", ["four_bit", "gpt2", "extra_layer"])
def test_each_kind_goes_from_rollout_to_merge(kind, quantization, tmp_path, request):
    from_rollout_to_merge(request.getfixturevalue(kind), tmp_path, quantization)


def test_a_4_bit_base_keeps_its_weights_in_4_bit_and_is_dequantized_with_none(whole, four_bit):
    packed, plain = load_model(str(four_bit), "nf4"), load_model(str(four_bit), "none")
    assert packed.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert type(plain.model.layers[0].mlp.up_proj) is torch.nn.Linear and plain.dtype == torch.float32
    assert torch.equal(logits(four_bit, "nf4"), logits(whole, "nf4"))
    torch.testing.assert_close(logits(four_bit, "none"), logits(four_bit, "nf4"), rtol=1e-4, atol=1e-5)
    assert (logits(whole) - logits(four_bit)).abs().mean() > 1e-3  # 4 bit is not 32 bit


def test_the_card_of_a_merged_4_bit_base_says_so(four_bit, tmp_path):
    adapter = train(four_bit, tmp_path / "adapter", "nf4")
    (adapter / "README.md").write_text("library_name: peft\n")
    merge_adapter(adapter, tmp_path / "merged", base=str(four_bit), examples=PAIRS.assign(completion=PAIRS.chosen))
    assert "This is the dequantized 4-bit base with the adapter" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize(("one", "other"), [("four_bit", "small"), ("gpt2", "small_gpt2")])
def test_an_adapter_of_another_size_is_still_refused(one, other, tmp_path, request):
    """Packed and transposed weights have their real sizes in the check."""
    base = request.getfixturevalue(one)
    adapter = train(base, tmp_path / "adapter", "nf4")
    if other == "small":
        small = save_model(tmp_path / "small", "qwen25", hidden=32)
        line = r"q_proj has 64 where the model \S+ has 32: another base|has 128 where|has 192 where|has 64 where"
    else:
        small = Path(shutil.copytree(base, tmp_path / "small"))
        config = GPT2Config.from_pretrained(base, n_embd=48)
        GPT2LMHeadModel(config).save_pretrained(small)
        line = r"has 32 where the model \S+ has 48: another base|has 96 where the model \S+ has 144|has 128 where"
    with pytest.raises(MedReflError, match=line):
        load_model(str(small), adapter=adapter)


@pytest.mark.parametrize(
    ("quantization", "found"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes in 8 bit"),
    ],
)
def test_other_quantizations_are_refused_before_anything_is_loaded(whole, tmp_path, quantization, found):
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    line = f"its weights are saved quantized by {found}, expected 16 or 32 bit, or bitsandbytes in 4 bit$"
    with pytest.raises(MedReflError, match=line):
        check_model_folder(folder, "m")


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    tokenizer = load_tokenizer(str(folder))
    before = len(tokenizer)
    tokenizer.add_tokens(["<unused_0>", "<unused_1>"])
    tokenizer.save_pretrained(folder)
    line = rf"its tokenizer has {before + 2} tokens, expected at most the {before} embedded"
    with pytest.raises(MedReflError, match=line):
        check_model_folder(folder, "m")
