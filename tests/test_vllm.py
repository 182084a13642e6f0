"""The vLLM generator against a stand-in with vLLM's documented interface: what it is told, how its outputs are read.

vLLM itself needs a GPU and an environment of its own; nothing here shows that it runs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.models import Budget, Prefix, Spent, load_tokenizer, open_generator

PROMPTS = [[{"role": "user", "content": text}] for text in ("one", "two")]
SAMPLING = Sampling(0.7, 0.9, 40)


@dataclass
class Engine:
    """``vllm.LLM``: a row's text tells its prompt's length and its seed, and stops as it was asked to."""

    told: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)

    def generate(self, rows: list, ways: list, use_tqdm: bool) -> list:
        assert not use_tqdm
        self.asked.append((rows, ways))
        return [self._output(row["prompt_token_ids"], way) for row, way in zip(rows, ways, strict=True)]

    def _output(self, prompt: list[int], way: SimpleNamespace) -> SimpleNamespace:
        text = f"Step {len(prompt)}: seed {way.seed}" + ("\n" if way.seed != 99 else "")
        ids = self.tokenizer(text if way.stop else text + "Answer: A\n", add_special_tokens=False).input_ids
        logprobs = [{token: SimpleNamespace(logprob=-0.5)} for token in ids]
        why = dict(finish_reason="stop", stop_reason=way.stop[0] if way.stop else None)
        if way.seed == 99:
            why = dict(finish_reason="length", stop_reason=None)
        one = SimpleNamespace(text=self.tokenizer.decode(ids), token_ids=ids, logprobs=logprobs, **why)
        return SimpleNamespace(outputs=[one])


@pytest.fixture
def engine(monkeypatch, tiny_student) -> Engine:
    engine = Engine()
    engine.tokenizer = load_tokenizer(tiny_student)

    def load(**told) -> Engine:
        engine.told = told
        return engine

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = load, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return engine


def test_it_loads_safetensors_alone_and_shares_prefixes(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm")
    assert engine.told == {"model": tiny_student, "enable_prefix_caching": True, "load_format": "safetensors"}
    assert generator.key.startswith("vllm ") and generator.about["engine"] == "vllm"
    open_generator(tiny_student, engine="vllm", quantization="nf4")
    assert engine.told["quantization"] == engine.told["load_format"] == "bitsandbytes"


def test_rows_come_back_in_the_prefixes_order_with_seeds_and_reasons(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm")
    begun = generator.encode("Step 1: a\n")
    prefixes = [Prefix(PROMPTS[0]), Prefix(PROMPTS[1], begun)]
    rows = generator.expand(prefixes, 2, "line", SAMPLING, [[1, 2], [3, 99]])
    [(asked, ways)] = engine.asked
    assert asked[0] == asked[1] and asked[3]["prompt_token_ids"][-len(begun) :] == list(begun)
    assert [row.text.split("seed ")[1] for pair in rows for row in pair] == ["1\n", "2\n", "3\n", "99"]
    assert [row.stop for pair in rows for row in pair] == ["boundary", "boundary", "boundary", "length"]
    assert {(w.temperature, w.top_p, w.max_tokens, w.include_stop_str_in_output) for w in ways} == {
        (0.7, 0.9, 40, True)
    }
    one = rows[0][0]
    assert one.logprob == pytest.approx(-0.5 * one.length) and one.length == len(one.token_ids)
    assert generator.usage.calls == 4 and generator.usage.completion_tokens == sum(r.length for p in rows for r in p)


def test_a_row_that_stops_too_early_goes_on_in_another_round(engine, tiny_student):
    """vLLM stops at every line end; a step ends where its line says something."""
    generator = open_generator(tiny_student, engine="vllm")
    [whole] = [generator.encode("\n## Thinking\n\nIt is oral.\nAnswer: C\n")]
    generate, prompt = engine.generate, len(generator._prompt_ids(PROMPTS[0]))

    def up_to_a_line_end(rows, ways, use_tqdm):
        engine.asked.append((rows, ways))
        outputs = []
        for row, way in zip(rows, ways, strict=True):
            left = whole[len(row["prompt_token_ids"]) - prompt :]
            n = next(n for n in range(1, len(left) + 1) if "\n" in engine.tokenizer.decode(left[:n]))
            ids = left[: min(n, way.max_tokens)]
            why = dict(finish_reason="stop", stop_reason="\n") if n <= way.max_tokens else dict(finish_reason="length")
            logprobs = [{token: SimpleNamespace(logprob=-0.5)} for token in ids]
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs, **why)]))
        return outputs

    engine.generate = up_to_a_line_end
    [[step]] = generator.expand([Prefix(PROMPTS[0])], 1, "line", SAMPLING, [[5]])
    assert (step.text, step.stop) == ("\n## Thinking\n\nIt is oral.\n", "boundary")
    assert step.logprob == pytest.approx(-0.5 * step.length) and generator.usage.completion_tokens == step.length
    seeds = [way.seed for _, ways in engine.asked for way in ways]
    left = [way.max_tokens for _, ways in engine.asked for way in ways]
    assert len(seeds) > 2 and seeds == list(range(5, 5 + len(seeds))) and left == sorted(left, reverse=True)
    assert generator.usage.calls == generator.spent.calls == 1
    [[cut]] = generator.expand([Prefix(PROMPTS[0])], 1, "line", Sampling(0.7, 0.9, 4), [[5]])
    assert (cut.stop, cut.length) == ("length", 4)
    engine.generate = generate


def test_a_chain_is_cut_at_its_steps(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm")
    [chain] = generator.chat(PROMPTS[:1], SAMPLING, [7])
    assert chain.stop == "end" and chain.text.count("\n") == 2
    steps = generator.cut(chain, "line")
    assert "".join(step.text for step in steps) == chain.text
    assert [step.stop for step in steps] == ["boundary", "end"] and steps[1].text.startswith("Answer")
    assert sum(step.logprob for step in steps) == pytest.approx(chain.logprob)


def test_it_heeds_a_budget(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm", budget=Budget(max_calls=3))
    generator.chat(PROMPTS, SAMPLING, [1, 2])
    assert generator.spent == Spent(2, generator.usage.prompt_tokens, generator.usage.completion_tokens)
    with pytest.raises(MedReflError, match="engine vllm: max_calls is 3, 2 is spent, and the next call could take it"):
        generator.chat(PROMPTS, SAMPLING, [3, 4])
    assert len(engine.asked) == 1
