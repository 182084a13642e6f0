"""The scripts for a machine with a card: importable without one, which they say; their parts on the CPU, small."""

from dataclasses import replace

import pytest
import torch

from medrefl_utils.models import LocalGenerator, load_tokenizer
from medrefl_utils.training import pair_lengths, tokenize_pairs
from tests.benchmarks import bench_rollout as cpu
from tests.gpu import bench_rollout, bench_training


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here: run the script itself")
@pytest.mark.parametrize("script", [bench_rollout, bench_training])
def test_without_a_card_it_says_so(script, capsys):
    assert script.main([]) == 1 and "no CUDA card here" in capsys.readouterr().err


def test_the_model_the_questions_and_both_loops_of_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "OPEN", 2)
    model = cpu.random_llama(tmp_path, hidden=64, layers=2, vocabulary=512, intermediate=96, heads=4, shared_heads=2)
    generator = LocalGenerator(model)
    assert generator.model.config._attn_implementation == "medrefl_trunk"
    exam = cpu.long_questions(generator, 3)
    assert {len(generator.prompt_ids(cpu.prompts.exam(q))) for q in exam} == {cpu.PROMPT}
    assert sum("\n" in text for text in generator._vocabulary) == pytest.approx(512 / cpu.EVERY, abs=1)
    ours, theirs = bench_rollout.rates(generator, 2, seconds=0.1)
    assert ours > 0 and theirs > 0


def test_a_training_of_pairs_that_fill_a_length_and_the_longest_that_trains(tmp_path, monkeypatch):
    model = cpu.random_llama(tmp_path, hidden=64, layers=1, vocabulary=512, intermediate=96, heads=4, shared_heads=2)
    monkeypatch.setattr(bench_training, "PAIRS", 4)
    ids, limit = tokenize_pairs(bench_training.make_pairs(448, 512), load_tokenizer(model), end=1, max_length=448)
    assert ids.length.tolist() == [448] * 4 and not any(limit.values())
    made, there = pair_lengths(ids), bench_training.lengths(448)
    assert (made.drop(columns="shared_tokens") == there.iloc[0]).all(axis=None) and made.shared_tokens.max() == 0
    economy = replace(bench_training.ECONOMY, optimizer="adamw", compute_dtype="fp32")
    trial = bench_training.trained(model, 448, 512, dpo=replace(bench_training.DPO, lora_rank=4), economy=economy)
    assert trial.rate > 0

    def up_to(most):
        return lambda length: trial if length <= most else None

    for most, guess in [(4000, 1000), (4000, 4000), (4000, 9000), (400, 9000), (500, 100)]:
        assert bench_training.longest(up_to(most), guess) == (most // 128 * 128, trial)
    assert bench_training.longest(up_to(200), 1000) is None
