"""Measure tree rollout beside ``generate``, alternating in one run: speed, scaling, memory, repeated reading.

Our rollout grows the trees and records every prefix that it expands. The two peers then continue the same prefixes:
``model.generate`` in left-padded batches of 64 rows, and one ``generate`` call per node, both on a random sample.

A model with random weights never ends a step. So every sixteenth token of its vocabulary ends a line: steps then have
16 tokens on average and 48 at most. All three sides stop a row at these tokens: ours as a step boundary, ``generate``
as ``eos_token_id``, which is its cheapest way to stop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medrefl_utils.core import Continuation, Question, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import Generator, LocalGenerator, Prefix
from medrefl_utils.models.generators.interface import Expansion, Then
from medrefl_utils.trees import SearchSettings, grow_trees
from tests.benchmarks.measure import Measurement
from tests.conftest import ROOT

QUESTIONS, PROMPT, K, DEPTH, OPEN = 64, 256, 3, 6, 9
BATCH = 64  # rows of generate's batches
VOCABULARY, EVERY = 8192, 16  # every sixteenth token ends a line
STUDENT = str(ROOT / "medrefl_utils/models/tiny_student")
ROUNDS = int(os.environ.get("MEDREFL_BENCH_ROUNDS", "2"))
SAMPLE_S = 20.0  # each peer is measured for at least so many seconds per round

_MEMORY = """
import json, sys
from tests.benchmarks.bench_rollout import *
from tests.benchmarks.measure import own_peak
exam = clinic.make_exam(int(sys.argv[1]), seed=5)
generator = LocalGenerator(STUDENT, max_rows=64)
grow_tree(exam, generator, Sampling(1.0, 1.0, 128), shard=32)
print(json.dumps(own_peak()))
"""


def random_llama(
    folder: Path,
    hidden: int = 512,
    layers: int = 8,
    vocabulary: int = VOCABULARY,
    intermediate: int = 1408,
    heads: int = 8,
    shared_heads: int = 2,
) -> str:
    """Save a Llama with random weights, whose tokens are words, as a model folder, and return the folder.

    The default has 31M parameters and four query heads per key-value head, as Llama 3.1 8B has.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    save_word_tokenizer(folder, vocabulary)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared_heads, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def save_word_tokenizer(folder: Path, vocabulary: int) -> None:
    """Save a tokenizer whose tokens are words; every EVERY-th word ends a line. The template adds no tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<unk>"]
    words += [f"w{i}\n" if i % EVERY == 0 else f"w{i}" for i in range(len(words), vocabulary)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    fast.save_pretrained(folder)


def long_questions(generator: LocalGenerator, n: int, tokens: int = PROMPT) -> list[Question]:
    """Make ``n`` questions of random words whose prompts have exactly ``tokens`` tokens."""
    rng = np.random.default_rng(0)
    blank = Question("", "w4", {"A": "w5", "B": "w6"}, "A")
    room = tokens - len(generator.prompt_ids(prompts.exam(blank)))
    # Odd word numbers only: the words that end a line are even.
    words = rng.integers(4, generator.model.config.vocab_size // 2, (n, room + 1)) * 2 - 1
    return [replace(blank, question_id=f"q{i}", stem=" ".join(f"w{w}" for w in row)) for i, row in enumerate(words)]


@dataclass
class Recorder(Generator):
    """A generator that records the prefixes of each call, the seconds and the tokens written."""

    generator: LocalGenerator
    prefixes: list[tuple[Prefix, int]]
    seconds: float = 0.0
    written: int = 0
    thinking_open: bool = False

    def expand_onward(self, first: Sequence[Expansion], steps: str | None, sampling: Sampling, then: Then) -> None:
        """Call the generator's and record it; the caller's own time does not count."""

        def told(expansion: Expansion, written: list[Continuation]) -> Sequence[Expansion] | None:
            self.prefixes.append((expansion.prefix, len(expansion.seeds)))
            self.written += sum(len(one.token_ids) for one in written)
            start = time.perf_counter()
            more = then(expansion, written)
            self.seconds -= time.perf_counter() - start
            return more

        self.seconds -= time.perf_counter()
        self.generator.expand_onward(first, steps, sampling, told)
        self.seconds += time.perf_counter()


def grow_tree(questions: Sequence[Question], generator: Generator, sampling: Sampling, shard: int = 64) -> None:
    """Grow trees with K children per step down to DEPTH, expanding at most OPEN steps per question at once."""
    growth = SearchSettings((K,) * DEPTH, DEPTH, 10**6, max_frontier=OPEN)
    for start in range(0, len(questions), shard):
        grow_trees(questions[start : start + shard], generator, growth=growth, sampling=sampling, seed=0)


def generated(generator: LocalGenerator, rows: Sequence[Sequence[int]], sampling: Sampling, stops: list[int]) -> int:
    """Run ``generate`` on one left-padded batch, and count the tokens of each row up to its own stop."""
    width = max(map(len, rows))
    pad = generator.tokenizer.pad_token_id
    device = generator.model.device
    tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    out = generator.model.generate(
        tokens,
        attention_mask=mask,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=1.0,
        top_k=0,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=stops,
        pad_token_id=pad,
    )[:, width:]
    ended = torch.isin(out, torch.tensor(stops, device=device))
    length = torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1])
    return int(length.sum())


def sampled_rate(
    generator: LocalGenerator, batches: Sequence[Sequence[Sequence[int]]], sampling: Sampling, seconds: float
) -> tuple[int, float]:
    """Run ``generate`` on random batches for at least ``seconds`` (or on all), and return tokens and seconds."""
    stops = sorted({i for i, text in enumerate(generator._vocabulary) if "\n" in text} | generator.ends)
    tokens, start = 0, time.perf_counter()
    for i in np.random.default_rng(0).permutation(len(batches)):
        tokens += generated(generator, batches[i], sampling, stops)
        if time.perf_counter() - start > seconds:
            break
    return tokens, time.perf_counter() - start


def _speed(
    case: str, model: str, questions: Sequence[Question] | None, sampling: Sampling, goals: tuple[float, float]
) -> Iterator[Measurement]:
    """Yield our rate beside both peers, on all questions; of all rounds, the one with the smallest ratio counts."""
    generator = LocalGenerator(model)
    exam = questions or long_questions(generator, QUESTIONS)
    ours, batches, singles = [], [], []
    written = read = prompt_tokens = step_tokens = 0
    for _ in range(ROUNDS):
        recorder, before = Recorder(generator, []), generator.usage.prompt_tokens
        grow_tree(exam, recorder, sampling)
        ours.append(recorder.written / recorder.seconds)
        asked = [(*generator.prompt_ids(p.messages), *p.token_ids) for p, _ in recorder.prefixes]
        rows = [ids for ids, (_, k) in zip(asked, recorder.prefixes, strict=True) for _ in range(k)]
        batch = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        for found, calls in ((batches, batch), (singles, [[row] for row in rows])):
            tokens, seconds = sampled_rate(generator, calls, sampling, SAMPLE_S)
            found.append(tokens / seconds)
        written += recorder.written
        read += generator.usage.prompt_tokens - before
        prompt_tokens += sum(map(len, {tuple(generator.prompt_ids(prompts.exam(q))) for q in exam}))
        step_tokens += sum(
            len(p.token_ids) - _parent(ids, p, set(asked)) for ids, (p, _) in zip(asked, recorder.prefixes, strict=True)
        )
    details = {
        "parameters": generator.model.num_parameters(),
        "questions": len(exam),
        "prompt_tokens": prompt_tokens / len(exam),
        "tokens_written": written,
        "rounds": {"ours": ours, f"generate_{BATCH}": batches, "one_call_per_node": singles},
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "sampled": f"each peer runs for at least {SAMPLE_S:g} s per round, on random batches and nodes",
    }
    yield Measurement(f"{case}, generate by {BATCH}", *_least(ours, batches), goals[0], "/s", False, details)
    yield Measurement(f"{case}, one call per node", *_least(ours, singles), goals[1], "/s", False, details)
    # The tokens of a step are computed once, when they are written. Prompts and repeated reading come on top.
    computed, distinct = read + step_tokens, prompt_tokens + step_tokens
    details = {"computed": computed, "distinct": distinct, "peer": "1.05 times the distinct prefix tokens"}
    yield Measurement(f"{case}, prefix tokens", computed, 1.05 * distinct, 1, "", True, details)


def _parent(ids: tuple[int, ...], prefix: Prefix, asked: set[tuple[int, ...]]) -> int:
    """Tokens of the assistant's turn in the longest proper prefix that was expanded as well."""
    prompt = len(ids) - len(prefix.token_ids)
    return next((end - prompt for end in range(len(ids) - 1, prompt, -1) if ids[:end] in asked), 0)


def _least(ours: list[float], peer: list[float]) -> tuple[float, float]:
    """Return both figures of the round with the smallest ratio."""
    least = min(range(len(ours)), key=lambda i: ours[i] / peer[i])
    return ours[least], peer[least]


def _linear() -> Iterator[Measurement]:
    generator, sampling = LocalGenerator(STUDENT), Sampling(1.0, 1.0, 128)
    exam = clinic.make_exam(512, seed=5)
    grow_tree(exam[:8], generator, sampling)  # warm
    seconds = {}
    for n in (8, 64, 512):
        start = time.perf_counter()
        grow_tree(exam[:n], generator, sampling)
        seconds[n] = time.perf_counter() - start
    details = {
        "seconds": seconds,
        "meaning": "seconds per question with 512 questions; the peer has 64; goal: at most 1.25 times",
    }
    yield Measurement("growth", seconds[512] / 512, seconds[64] / 64, 0.8, "s", True, details)


def _memory() -> Iterator[Measurement]:
    peaks = {}
    for n in (64, 512):
        done = subprocess.run([sys.executable, "-c", _MEMORY, str(n)], capture_output=True, text=True, check=True)
        peaks[n] = json.loads(done.stdout)
    details = {"GiB": peaks, "meaning": "peak of a process with 512 questions; the peer has 64; 64 rows, shards of 32"}
    yield Measurement("memory", peaks[512], peaks[64], 0.9, "GiB", True, details)


def main() -> Iterator[Measurement]:
    """Yield the speed of three models, then scaling and memory with the tiny student."""
    with tempfile.TemporaryDirectory() as folder:
        for case, shared_heads in (("31M random", 2), ("34M random, one key-value head per query head", 8)):
            model = random_llama(Path(folder, case), shared_heads=shared_heads)
            yield from _speed(case, model, None, Sampling(1.0, 1.0, 48), (5, 20))
    exam = clinic.make_exam(QUESTIONS, seed=5)
    yield from _speed("tiny student", STUDENT, exam, Sampling(1.0, 1.0, 128), (3, 15))
    yield from _linear()
    yield from _memory()
