"""The scripts for a machine with a card: importable without one, which they say; their parts on the CPU, small."""

import pytest
import torch

from medrefl_utils.generators.local import LocalGenerator
from tests.benchmarks import bench_rollout as cpu
from tests.gpu import bench_rollout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here: run the script itself")
def test_without_a_card_it_says_so(capsys):
    assert bench_rollout.main([]) == 1 and "no CUDA card here" in capsys.readouterr().err


def test_the_model_the_questions_and_both_loops_of_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "OPEN", 2)
    model = cpu.random_llama(tmp_path, hidden=64, layers=2, vocabulary=512, intermediate=96, heads=4, shared_heads=2)
    generator = LocalGenerator(model)
    assert generator.model.config._attn_implementation == "medrefl_trunk"
    exam = cpu.long_questions(generator, 3)
    assert {len(generator.prompt_ids(cpu.prompts.exam(q))) for q in exam} == {cpu.PROMPT}
    assert len(generator._tokens_with("\n")) == pytest.approx(512 / cpu.EVERY, abs=1)
    ours, theirs = bench_rollout.rates(generator, 2, seconds=0.1)
    assert ours > 0 and theirs > 0
