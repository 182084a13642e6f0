"""The measurements for a card: their parts on a CPU, in small, and the runner. ``.ci/run`` runs all of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medrefl_utils.models import LocalGenerator, load_tokenizer
from medrefl_utils.training import pair_lengths, tokenize_pairs
from tests.benchmarks import bench_rollout as cpu
from tests.gpu import __main__ as runner
from tests.gpu import correctness, rollout, summary, training
from tests.gpu.random_models import ARCHITECTURES, drawn_weights, save_architecture
from tests.gpu.scale import SCALES, Deadline

TINY = SCALES["tiny"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_architecture(tmp_path_factory.mktemp("tiny") / "tiny", "tiny")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here: run the measurement itself")
def test_without_a_card_it_says_so(tmp_path, capsys):
    assert runner.main([str(tmp_path / "out")]) == 1 and "no CUDA card here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "billions"), [("llama31_8b", 8.03), ("qwen25_7b", 7.62)])
def test_the_architectures_have_the_published_number_of_parameters(name, billions, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(save_architecture(tmp_path, name))
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    assert made.num_parameters() / 1e9 == pytest.approx(billions, abs=0.01)
    assert len(load_tokenizer_of(tmp_path)) == config.vocab_size == ARCHITECTURES[name]["vocab_size"]


def load_tokenizer_of(folder: Path):
    with drawn_weights():  # the folder has no weights, which loading would ask for
        return load_tokenizer(str(folder))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_weights_are_drawn_for_every_tensor(model, quantization):
    with drawn_weights():
        generator = LocalGenerator(model, quantization=quantization)
        again = LocalGenerator(model, quantization=quantization)
    layers = [module for module in generator.model.modules() if isinstance(module, torch.nn.Linear)]
    assert [type(layer).__name__ for layer in layers[:-1]] == ["Linear4bit" if quantization == "nf4" else "Linear"] * 14
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        logits = generator.model(ids).logits
        assert logits.std() > 0.01 and torch.equal(logits, again.model(ids).logits)


def test_both_sides_of_the_rollout_and_the_bytes_that_decoding_reads(model, monkeypatch):
    monkeypatch.setattr(cpu, "OPEN", 2)
    with drawn_weights():
        generator = LocalGenerator(model)
    assert generator.model.config._attn_implementation == "medrefl_trunk"
    exam = cpu.long_questions(generator, 3)
    assert {len(generator.prompt_ids(cpu.prompts.exam(q))) for q in exam} == {cpu.PROMPT}
    assert sum("\n" in text for text in generator._vocabulary) == pytest.approx(512 / cpu.EVERY, abs=1)
    early = []
    ours, theirs = rollout.rates(generator, 2, 0.1, early.append)
    assert ours > 0 and theirs > 0 and early == [{"rollout": ours}]
    monkeypatch.setattr(rollout.time, "perf_counter", iter([0.0, 2.0]).__next__)  # two seconds for two steps
    weights = sum(parameter.nbytes for parameter in generator.model.parameters())
    # Two prompts without their last token, which each row reads; keys, values; two layers; two heads of 16; fp32.
    trunk = 2 * (cpu.PROMPT - 1) * 2 * 2 * 2 * 16 * 4
    own = 18 * 2 * 2 * 2 * 16 * 4  # per token of 18 rows
    # A step reads what it has just written as well: 2 and 3 tokens a row, after one step of warm-up.
    assert rollout.decoding_bandwidth(generator, 18, 2) == (2 * (weights + trunk) + (2 + 3) * own) / 2


def test_pairs_fill_a_length_and_share_what_they_should(model):
    words = 512
    tokenizer = load_tokenizer_of(Path(model))
    for shared in (0, 60):
        made = training.make_pairs(448, words, shared)
        ids, limit = tokenize_pairs(made, tokenizer, end=1, max_length=448)
        assert ids.length.tolist() == [448] * training.PAIRS and not any(limit.values())
        lengths, expected = pair_lengths(ids), training.lengths(448).iloc[0]
        assert (lengths.drop(columns="shared_tokens") == expected).all(axis=None)
        assert lengths.shared_tokens.tolist() == pytest.approx([shared] * training.PAIRS, abs=1)


def test_the_longest_that_trains():
    trial, forever = training.Trial(1.0, 2.0), Deadline(1e9)

    def up_to(most):
        return lambda length: trial if length <= most else None

    for most, guess in [(4000, 1000), (4000, 4000), (4000, 9000), (400, 9000), (500, 100), (40_000, 30_000)]:
        length, found, complete = training.longest(up_to(most), guess, forever)
        exact = most // 128 * 128
        assert found is trial and complete and exact - max(128, 0.03 * exact) <= length <= exact
    assert training.longest(up_to(200), 1000, forever) == (0, None, True)
    assert training.longest(up_to(10**9), 1000, forever, largest=2000)[0] == 1920
    # Out of time: the first length that trained, and that it is not known to be the largest.
    assert training.longest(up_to(9000), 1000, Deadline(-1)) == (896, trial, False)


def test_checks_find_a_wrong_number(monkeypatch):
    assert correctness.nf4_rounding() < 1e-6
    monkeypatch.setattr(correctness, "NF4", correctness.NF4[:-1] + (0.9,))
    assert correctness.nf4_rounding() > 0.05
    assert correctness.tree_decoder(torch.float32, "none") < 1e-3
    plain = correctness.LocalGenerator.expand_onward

    def shifted(self, first, steps, sampling, then):  # another token in each continuation
        def told(one, rows):
            return then(one, [replace(row, token_ids=(row.token_ids[0] ^ 1, *row.token_ids[1:])) for row in rows])

        plain(self, first, steps, sampling, told)

    monkeypatch.setattr(correctness.LocalGenerator, "expand_onward", shifted)
    assert correctness.tree_decoder(torch.float32, "none") > 0.15


@pytest.mark.parametrize(
    ("body", "status", "start"),
    [
        ("add({'case': 'a'}); raise SystemError('broken')", "failed", 200),
        ("add({'case': 'a'}); import time; time.sleep(600)", "out of time", 40),
        ("add({'case': 'a', 'ok': True})", "done", 200),
    ],
)
def test_a_part_that_fails_or_hangs_keeps_its_rows(body, status, start, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\nmade = types.ModuleType('tests.gpu.chain')\n"
        f"def measure(scale, deadline, add):\n    {body}\n"
        "made.measure = measure\nsys.modules['tests.gpu.chain'] = made\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(runner.__file__).parents[2]}")
    monkeypatch.setattr(runner, "START", start)
    found = runner.run_part("chain", "tiny", 1.0, tmp_path)
    assert found["status"] == status and len(found["rows"]) == 1 and found["seconds"] < start + 20
    assert ("broken" in found.get("said", "")) == (status == "failed")


def test_the_table_shows_each_case_and_what_failed(tmp_path):
    rows = [
        {"case": "cap", "cap_gib": 22.0, "length": 4096, "peak_gib": 21.0, "predicted_gib": 21.5, "off": -0.01},
        {"case": "speed", "pairs": "reasoning", "trainer": "ours", "length": 2048, "tokens_per_second": 12345.6},
    ]
    results = {
        "machine": summary.machine() | {"card": {"name": "NVIDIA H100", "gib": 79.2}},
        "scale": "full",
        "parts": {
            "training": {"status": "done", "seconds": 3.0, "rows": rows},
            "rollout": {"status": "failed", "seconds": 1.0, "rows": [], "said": "a line\nRuntimeError: no"},
        },
    }
    summary.write(results, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("# NVIDIA H100, 79.2 GiB\n") and "| 22 | 4096 | 21 | 21.5 | -0.01 |" in text
    assert "| reasoning | ours | 2048 | 12,346 |" in text and "RuntimeError: no" in text
    assert json.loads((tmp_path / "results.json").read_text())["parts"]["rollout"]["status"] == "failed"
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("memory", "speed"))
    assert sys.getsizeof(text) < 2**16
