"""Measure tree rollout on one CUDA card: an 8B architecture with random weights, bf16 and NF4, beside ``generate``.

    python -m tests.gpu.bench_rollout [--questions 64] [--layers 32] [--rows 256] [--seconds 60]

Per precision it prints the tokens per second of our rollout and of ``model.generate``, which continues the same
prefixes in left-padded batches of 64. It also prints the share of the memory bandwidth that decoding reaches: the bytes
of weights and caches that decoding must read per second, divided by the bandwidth of copying a large tensor on the same
card. No figure has been measured yet.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from medrefl_utils.core import Sampling
from medrefl_utils.models import LocalGenerator
from tests.benchmarks import bench_rollout as cpu


def model_folder(folder: Path, layers: int) -> str:
    """Save an 8B Llama (with 32 layers) with random bf16 weights, made on the card, and return its folder."""
    before, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("cuda")
    try:
        return cpu.random_llama(
            folder, hidden=4096, layers=layers, vocabulary=128_256, intermediate=14_336, heads=32, shared_heads=8
        )
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(device)


def copy_bandwidth() -> float:
    """Return the bytes per second that a copy of 4 GiB reads and writes."""
    source = torch.empty(2**30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * 2 * source.nbytes / (time.perf_counter() - start)


def decoding_bandwidth(generator: LocalGenerator, rows: int, steps: int = 64) -> float:
    """Return the bytes per second that decoding must read: all weights and every row's cache, once per step."""
    exam = cpu.long_questions(generator, max(1, rows // 9))
    ids = [tuple(generator.prompt_ids(cpu.prompts.exam(question))) for question in exam]
    batch = generator._read(ids)
    batch.rows.repeat(9)
    tokens = batch.logits.repeat_interleave(9, 0).argmax(-1)
    trunk = sum(keys.nbytes + values.nbytes for keys, values in batch.rows.trunks)
    weights = sum(parameter.nbytes for parameter in generator.model.parameters())
    read = 0
    with torch.inference_mode():
        batch.rows.forward(tokens)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            batch.rows.forward(tokens)
            own = sum(layer.keys.nbytes + layer.values.nbytes for layer in batch.rows.cache.layers)
            read += weights + trunk + own
        torch.cuda.synchronize()
    return read / (time.perf_counter() - start)


def rates(generator: LocalGenerator, n: int, seconds: float) -> tuple[float, float]:
    """Return the tokens per second of our rollout, and of ``generate`` on a sample of the same prefixes."""
    sampling = Sampling(1.0, 1.0, 48)
    recorder = cpu.Recorder(generator, [])
    cpu.grow_tree(cpu.long_questions(generator, n), recorder, sampling)
    rows = [(*generator.prompt_ids(p.messages), *p.token_ids) for p, k in recorder.prefixes for _ in range(k)]
    batches = [rows[i : i + cpu.BATCH] for i in range(0, len(rows), cpu.BATCH)]
    tokens, took = cpu.sampled_rate(generator, batches, sampling, seconds)
    return recorder.written / recorder.seconds, tokens / took


def main(arguments: list[str] | None = None) -> int:
    """Print the table and return 0, or 1 without a CUDA card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--layers", type=int, default=32, help="layers of the model; 32 make 8B parameters")
    parser.add_argument("--rows", type=int, default=256, help="continuations that are decoded together")
    parser.add_argument("--seconds", type=float, default=60.0, help="shortest time for which generate is measured")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA card here: nothing is measured", file=sys.stderr)
        return 1
    table = Table("weights", "rollout, tokens/s", "generate, tokens/s", "ratio", "share of bandwidth")
    table.title = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder), given.layers)
        peak = copy_bandwidth()
        for weights in ("none", "nf4"):
            generator = LocalGenerator(model, quantization=weights, max_rows=given.rows, keep_gib=16)
            ours, theirs = rates(generator, given.questions, given.seconds)
            share = decoding_bandwidth(generator, given.rows) / peak
            name = "bf16" if weights == "none" else weights
            table.add_row(name, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.1f}", f"{share:.0%}")
            del generator
            torch.cuda.empty_cache()
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
