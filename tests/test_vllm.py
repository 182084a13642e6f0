"""The vLLM generator against a stand-in of vLLM's engine: what it is told, how its outputs are read, when it ends.

``tests/servers`` has the same generator with vLLM itself, which needs an environment of its own (`make test-servers`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.models import Budget, CallLog, Prefix, Spent, load_tokenizer, open_generator
from medrefl_utils.models.generators import vllm as engine_module
from medrefl_utils.models.generators.vllm import VllmGenerator
from tests.models import save_adapter

PROMPTS = [[{"role": "user", "content": text}] for text in ("one", "two")]
SAMPLING = Sampling(0.7, 0.9, 60)
BLANKS = "\n\n## Thinking\n\nIt is oral.\nAnswer: C\n"


@dataclass
class Engine:
    """``vllm.LLMEngine``: every ``step`` writes the next token of each request, a text that its seed selects."""

    texts: dict[int, str] = field(default_factory=dict)
    told: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    aborted: list = field(default_factory=list)
    open: dict = field(default_factory=dict)
    stopped: int = 0
    model_config = SimpleNamespace(max_model_len=4096)

    @property
    def engine_core(self) -> SimpleNamespace:
        return SimpleNamespace(shutdown=self._shut_down)

    def add_request(self, name: str, prompt: dict, params: SimpleNamespace, lora_request: object = None) -> None:
        ids = self.tokenizer(self.texts.get(params.seed, f"seed {params.seed}\n"), add_special_tokens=False).input_ids
        self.asked.append((name, prompt["prompt_token_ids"], params, lora_request))
        self.open[name] = [*ids, self.tokenizer.eos_token_id][: params.max_tokens], 0, params

    def step(self) -> list:
        return [self._next(name) for name in list(self.open)]

    def _next(self, name: str) -> SimpleNamespace:
        ids, n, params = self.open[name]
        token, why = ids[n], None
        if n + 1 == len(ids):
            why = "stop" if token == self.tokenizer.eos_token_id else "length"
            del self.open[name]
        else:
            self.open[name] = ids, n + 1, params
        one = SimpleNamespace(token_ids=[token], logprobs=[{token: SimpleNamespace(logprob=-0.5)}], finish_reason=why)
        return SimpleNamespace(request_id=name, outputs=[one], finished=why is not None, num_cached_tokens=3)

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        for name in names:
            self.open.pop(name)

    def _shut_down(self) -> None:
        self.stopped += 1
        self.open.clear()


@pytest.fixture
def engine(monkeypatch, tiny_student) -> Iterator[Engine]:
    engine = Engine()
    engine.tokenizer = load_tokenizer(tiny_student)

    def start(told: dict) -> Engine:
        engine.told.append(told)
        return engine

    fake, inputs, platforms, lora, sampling = map(ModuleType, ("vllm", "inputs", "platforms", "lora", "sampling"))
    fake.EngineArgs, fake.LLMEngine, fake.SamplingParams = (
        dict,
        SimpleNamespace(from_engine_args=start),
        SimpleNamespace,
    )
    fake.__version__ = "0"
    inputs.tokens_input = lambda ids: {"type": "token", "prompt_token_ids": ids}
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: True)
    lora.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    sampling.RequestOutputKind = SimpleNamespace(DELTA="delta")
    for name, module in (
        ("vllm", fake),
        ("vllm.inputs", inputs),
        ("vllm.platforms", platforms),
        ("vllm.lora.request", lora),
        ("vllm.sampling_params", sampling),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    yield engine
    engine_module._RUNNING.clear()


def test_it_loads_safetensors_alone_and_shares_prefixes(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm")
    [told] = engine.told
    assert told["model"] == tiny_student and told["enable_prefix_caching"] and told["load_format"] == "safetensors"
    assert told["dtype"] == "float32" and told["enable_chunked_prefill"] is False and "enable_lora" not in told
    assert generator.key.startswith("vllm ") and generator.about["engine"] == "vllm"
    open_generator(tiny_student, engine="vllm", quantization="nf4")
    assert engine.told[1]["quantization"] == engine.told[1]["load_format"] == "bitsandbytes"
    assert engine.stopped == 1, "a process runs one engine"
    open_generator(tiny_student, engine="vllm", quantization="nf4")
    assert len(engine.told) == 2, "the same model shares its engine"


def test_base_and_adapter_share_one_engine(engine, tiny_student, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_student)
    base = VllmGenerator(tiny_student)
    tuned = VllmGenerator(tiny_student, adapter=adapter)
    assert [told.get("max_lora_rank") for told in engine.told] == [None, 8] and engine.stopped == 1
    assert tuned.key.startswith(base.key) and tuned.key != base.key
    for generator in (base, tuned):
        generator.chat(PROMPTS[:1], SAMPLING, [1])
    (*_, without), (*_, request) = engine.asked
    assert without is None and request.number >= 1 and request.path == str(adapter)
    assert len(engine.told) == 2, "the base runs on the engine with LoRA"


def test_rows_come_back_in_the_prefixes_order_with_seeds_and_reasons(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm")
    engine.texts = {99: "It goes on and on", 3: "It is C."}
    begun = generator.encode("Step 1: a\n")
    prefixes = [Prefix(PROMPTS[0]), Prefix(PROMPTS[1], begun)]
    short = Sampling(0.7, 0.9, 6)
    rows = generator.expand(prefixes, 2, "line", short, [[1, 2], [3, 99]])
    assert [row.text for pair in rows for row in pair][:3] == ["seed 1\n", "seed 2\n", "It is C."]
    assert [row.stop for pair in rows for row in pair] == ["boundary", "boundary", "end", "length"]
    assert rows[1][0].token_ids[-1] == engine.tokenizer.eos_token_id and rows[1][1].length == 6
    prompts = [prompt for _, prompt, _, _ in engine.asked]
    assert prompts[0] == prompts[1] and prompts[3][-len(begun) :] == list(begun)
    told = {(p.temperature, p.top_p, p.max_tokens, p.repetition_penalty) for _, _, p, _ in engine.asked}
    assert told == {(0.7, 0.9, 6, 1.0)} and [p.seed for _, _, p, _ in engine.asked] == [1, 2, 3, 99]
    one = rows[0][0]
    assert one.logprob == pytest.approx(-0.5 * one.length) and one.length == len(one.token_ids) == len(one.logprobs)
    assert generator.usage.calls == 4 and generator.usage.completion_tokens == sum(r.length for p in rows for r in p)
    assert generator.usage.prompt_tokens == sum(map(len, prompts)) - 4 * 3, "cached tokens are not computed"


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ("line", "\n\n## Thinking\n\nIt is oral.\n"),
        ("paragraph", BLANKS),
        ("sentence", "\n\n## Thinking\n\nIt is oral.\n"),
    ],
)
def test_a_step_ends_where_its_text_ends_not_at_a_blank_line(engine, tiny_student, steps, text):
    generator = open_generator(tiny_student, engine="vllm")
    engine.texts = {5: BLANKS}
    [[step]] = generator.expand([Prefix(PROMPTS[0])], 1, steps, SAMPLING, [[5]])
    assert (step.text, step.stop) == (text, "end" if steps == "paragraph" else "boundary")
    assert len(engine.asked) == 1 and len(engine.aborted) == (steps != "paragraph") and not engine.open
    [[cut]] = generator.expand([Prefix(PROMPTS[0])], 1, steps, Sampling(0.7, 0.9, 4), [[5]])
    assert (cut.stop, cut.length) == ("length", 4)


def test_a_sentence_ends_before_the_word_that_shows_its_end(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm")
    engine.texts = {5: "It is oral. The drug works.\n"}
    [[step]] = generator.expand([Prefix(PROMPTS[0])], 1, "sentence", SAMPLING, [[5]])
    assert (step.text, step.stop) == ("It is oral.", "boundary")
    assert generator.usage.completion_tokens > step.length == len(step.logprobs), "the look-ahead is paid for"


def test_a_chain_is_cut_at_its_steps(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm")
    engine.texts = {7: "It is oral.\nAnswer: A\n"}
    [chain] = generator.chat(PROMPTS[:1], SAMPLING, [7])
    assert chain.stop == "end" and chain.text.count("\n") == 2
    steps = generator.cut(chain, "line")
    assert "".join(step.text for step in steps) == chain.text
    assert [step.stop for step in steps] == ["boundary", "end"] and steps[1].text.startswith("Answer")
    assert sum(step.logprob for step in steps) == pytest.approx(chain.logprob)


def test_a_budget_lets_in_what_it_has_room_for(engine, tiny_student):
    generator = open_generator(tiny_student, engine="vllm", budget=Budget(max_calls=3))
    generator.chat(PROMPTS, SAMPLING, [1, 2])
    assert generator.spent == Spent(2, generator.usage.prompt_tokens, generator.usage.completion_tokens)
    with pytest.raises(MedReflError, match="engine vllm: max_calls is 3, 3 is spent, and the next call could take it"):
        generator.chat(PROMPTS, SAMPLING, [3, 4])
    assert len(engine.asked) == 3
    # A token's limit holds for what may be written: rows wait until those before them have used less than they might.
    prompt = len(engine.asked[0][1])
    limit = 2 * (prompt + SAMPLING.max_tokens)
    generator = open_generator(tiny_student, engine="vllm", budget=Budget(max_tokens=limit))
    assert len(generator.expand([Prefix(PROMPTS[0])], 3, "line", SAMPLING, [[1, 2, 3]])[0]) == 3
    assert generator.spent.read + generator.spent.written <= limit


def test_replies_are_kept_one_by_one(engine, tiny_student, tmp_path):
    log = CallLog(tmp_path)
    generator = VllmGenerator(tiny_student, log=log)

    def interrupted(n: int) -> None:
        raise KeyboardInterrupt

    engine.texts = {2: "A long reply that goes on\n"}
    with pytest.raises(KeyboardInterrupt):
        generator.chat(PROMPTS, SAMPLING, [1, 2], interrupted)
    assert engine.stopped == 1 and not engine.open
    again = VllmGenerator(tiny_student, log=CallLog(tmp_path))
    replies = again.chat(PROMPTS, SAMPLING, [1, 2])
    assert [reply.text for reply in replies] == ["seed 1\n", "A long reply that goes on\n"]
    assert again.usage.reused == 1 and len(engine.asked) == 3 and again.usage.calls == 2
    other = VllmGenerator(tiny_student, log=CallLog(tmp_path))
    assert other.chat(PROMPTS, SAMPLING, [1, 2]) == replies and len(engine.asked) == 3


def test_faults_are_one_line(engine, tiny_student, monkeypatch):
    generator = open_generator(tiny_student, engine="vllm")
    with pytest.raises(MedReflError, match="tokens and 4096 new ones exceed the context of 4096 tokens"):
        generator.chat(PROMPTS, Sampling(1.0, 1.0, 4096), [1, 2])
    assert not engine.asked
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    with pytest.raises(MedReflError, match="engine vllm: vLLM failed: ZeroDivisionError: division by zero; what is"):
        generator.chat(PROMPTS, SAMPLING, [1, 2])
    one = SimpleNamespace(token_ids=[], logprobs=[], finish_reason="abort")
    told = dict(outputs=[one], finished=True, num_cached_tokens=None)
    monkeypatch.setattr(engine, "step", lambda: [SimpleNamespace(request_id=engine.asked[-1][0], **told)])
    with pytest.raises(MedReflError, match="engine vllm: vLLM gave up a request; what is finished is kept"):
        generator.chat(PROMPTS, SAMPLING, [1, 2])

    def fail(told: dict) -> None:
        raise RuntimeError("Engine core initialization failed.\nSee root cause above.")

    monkeypatch.setattr(sys.modules["vllm"].LLMEngine, "from_engine_args", fail)
    with pytest.raises(MedReflError, match="does not start with the model .*: Engine core initialization failed. See"):
        VllmGenerator(tiny_student)
