"""Measure tree rollout on a published architecture with random weights, in 16 bit and NF4, beside ``generate``.

``generate`` continues the same prefixes in left-padded batches of 64. The share of the bandwidth says how close
decoding comes to what the memory allows: the bytes of weights and caches that it must read per second, divided by the
bandwidth of copying a large tensor on the same card. Where vLLM is installed, its generator grows the same trees.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from medrefl_utils.core import Question, Sampling
from medrefl_utils.models import GIB, Expansion, LocalGenerator, ModelShape, Prefix, predict_decoding
from medrefl_utils.models.generators.continuous import ContinuousDecoder
from medrefl_utils.models.generators.ragged_rows import RaggedRows
from tests.benchmarks import bench_rollout as cpu
from tests.gpu.random_models import drawn_weights, save_architecture
from tests.gpu.scale import Add, Deadline, Scale, card_gib, clean_memory, peak_gib, wait

SAMPLING = Sampling(1.0, 1.0, 48)


def copy_bandwidth(gib: float) -> float:
    """Return the bytes per second that a copy of ``gib`` GiB reads and writes, where models run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(int(gib * GIB) // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    wait()
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    wait()
    return 10 * 2 * source.nbytes / (time.perf_counter() - start)


def open_rows(generator: LocalGenerator, rows: int) -> tuple[RaggedRows, list[int]]:
    """Return ``rows`` rows (a multiple of 9) that have read their prompts, and the next token of each."""
    exam = cpu.long_questions(generator, max(1, rows // 9))
    decoder = ContinuousDecoder(generator, None, SAMPLING)
    first = [Expansion(Prefix(cpu.prompts.exam(question)), range(9)) for question in exam]
    decoder.fresh.extend(map(decoder._lines_of, first))
    with torch.inference_mode():
        decoder._join()
    return decoder.rows, decoder.tokens


def decoding_bandwidth(generator: LocalGenerator, rows: int, steps: int) -> float:
    """Return the bytes per second that decoding must read: all weights and every row's cache, once per step."""
    decoded, tokens = open_rows(generator, rows)
    trunk = sum(side.nbytes for sides in decoded.trunks.layers for side in sides)
    weights = sum(parameter.nbytes for parameter in generator.model.parameters())
    read = 0
    with torch.inference_mode():
        decoded.forward(tokens)
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            decoded.forward(tokens)
            own = sum(layer.keys.nbytes + layer.values.nbytes for layer in decoded.cache.layers)
            read += weights + trunk + own
        wait()
    return read / (time.perf_counter() - start)


def rates(
    generator: LocalGenerator, n: int, seconds: float, report: Callable[[dict[str, float]], None] = lambda row: None
) -> tuple[float, float]:
    """Return the tokens per second of our rollout, and of ``generate`` on a sample of the same prefixes."""
    recorder = cpu.Recorder(generator, [])
    cpu.grow_tree(cpu.long_questions(generator, n), recorder, SAMPLING)
    report({"rollout": recorder.written / recorder.seconds})
    rows = [(*generator.prompt_ids(p.messages), *p.token_ids) for p, k in recorder.prefixes for _ in range(k)]
    batches = [rows[i : i + cpu.BATCH] for i in range(0, len(rows), cpu.BATCH)]
    tokens, took = cpu.sampled_rate(generator, batches, SAMPLING, seconds)
    return recorder.written / recorder.seconds, tokens / took


def does_not_fit(model: str, quantization: str, scale: Scale) -> str | None:
    """Return why the weights and some rows do not fit on the card, or None."""
    card, rows = card_gib(), min(scale.rows, 16)
    need = predict_decoding(ModelShape.named(model), quantization=quantization, rows=rows, tokens=400) / GIB
    return None if card is None or need < card else f"needs {need:.1f} GiB, the card has {card:.1f} GiB"


def one_model(model: str, quantization: str, scale: Scale, deadline: Deadline, add: Add) -> None:
    """Measure one architecture in one precision."""
    row: dict[str, Any] = {"case": "rollout", "model": Path(model).name, "weights": quantization}
    if why := does_not_fit(model, quantization, scale):
        add(row | {"skipped": why})
        return
    clean_memory()
    generator = LocalGenerator(model, quantization=quantization, max_rows=scale.rows, keep_gib=16)
    peak = copy_bandwidth(2.0 if scale.name == "full" else 0.05)
    row["share_of_bandwidth"] = decoding_bandwidth(generator, scale.rows, 32) / peak
    row["copy_gb_per_second"] = peak / 1e9
    seconds = max(2.0, deadline.left() / 3) if scale.name == "full" else 0.5
    by_memory = LocalGenerator.prefixes_at_once
    generator.max_rows, given = 0, generator.max_rows
    row["rows_by_memory"] = 3 * by_memory(generator, cpu.PROMPT + 6 * SAMPLING.max_tokens, 3, SAMPLING)
    generator.max_rows = given
    ours, theirs = rates(generator, scale.questions, seconds, lambda early: add(row | early | {"partial": True}))
    add(row | {"rollout": ours, "generate": theirs, "ratio": ours / theirs, "peak_gib": peak_gib()})
    if quantization == "none" and importlib.util.find_spec("vllm") and deadline.left() > 0:
        exam = cpu.long_questions(generator, scale.questions)
        del generator
        clean_memory()
        with_vllm(model, exam, add)


def with_vllm(model: str, exam: list[Question], add: Add) -> None:
    """Grow the same trees through vLLM's engine, which draws random weights of the same architecture itself."""
    import vllm

    from medrefl_utils.models.generators.vllm import VllmGenerator

    engine = vllm.LLM
    with mock.patch.object(vllm, "LLM", lambda **options: engine(**options | {"load_format": "dummy"})):
        recorder = cpu.Recorder(VllmGenerator(model), [])
    cpu.grow_tree(exam, recorder, SAMPLING)
    add({"case": "vllm", "model": Path(model).name, "weights": "none", "rollout": recorder.written / recorder.seconds})


def measure(scale: Scale, deadline: Deadline, add: Add) -> None:
    """Measure each architecture in 16 bit and NF4, in the time that is left."""
    cases = [(name, weights) for name in scale.architectures for weights in ("none", "nf4")]
    with tempfile.TemporaryDirectory() as folder, drawn_weights():
        for i, (name, weights) in enumerate(cases):
            if deadline.left() < 0:
                add({"case": "rollout", "model": name, "weights": weights, "skipped": "no time left"})
                continue
            model = save_architecture(Path(folder) / name, name)
            one_model(model, weights, scale, Deadline(deadline.left() / (len(cases) - i)), add)
