"""Run a model with vLLM in this process: continuous batching and prefix caching on a GPU. The extra is ``[vllm]``.

vLLM needs its own versions of torch and transformers, so it belongs in a separate environment. There, run stage 01
alone (``pip install -e '.[vllm]'``, then ``medrefl run PROFILE --only 01``), or run ``vllm serve`` and use its address
as the ``endpoint``. This module follows vLLM's documented interface; it has not been run on a GPU yet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import resolve_model
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.exam.steps import SERVER_STOPS
from medrefl_utils.models.chat_templates import open_thinking, render_prompt
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.interface import Generator, Prefix, Progress, Usage
from medrefl_utils.models.generators.token_cutting import StepCutter, text_after, vocabulary


class VllmGenerator(Generator):
    """A model from a local folder or the hub, run by vLLM."""

    def __init__(self, model: str, *, quantization: str = "none", budget: Budget | None = None):
        """Load the model. Raises MedReflError if vLLM is not installed or the model is not available."""
        name = resolve_model(model)
        try:
            from vllm import LLM
        except ImportError as error:
            raise MedReflError(
                "engine vllm: vLLM is not installed: run pip install 'medrefl[vllm]' in a separate environment, or set "
                "endpoint to the address of a `vllm serve`"
            ) from error
        from medrefl_utils.models.loading import load_tokenizer, model_key

        self.key = f"vllm {model_key(model, quantization)}"
        self.about = {"model": model, "quantization": quantization, "engine": "vllm"}
        self.tokenizer = load_tokenizer(model)
        self.engine = LLM(
            model=name,
            enable_prefix_caching=True,
            load_format="bitsandbytes" if quantization == "nf4" else "safetensors",  # never a pickle
            **({"quantization": "bitsandbytes"} if quantization == "nf4" else {}),
        )
        self.usage = Usage()
        self.budget = budget or Budget()
        mark = open_thinking(self.tokenizer)
        self.thinking_open, self.thinking_close = mark is not None, mark[1] if mark else None
        self._texts = vocabulary(self.tokenizer)

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """Write ``k`` continuations of each prefix; prefix caching reads what siblings share once.

        vLLM stops at the first line end (or blank line). Where that is too early, as after a heading, the same row
        goes on from there in another round, until its step is complete.
        """
        prompts = [(*self._prompt_ids(prefix.messages), *prefix.token_ids) for prefix in prefixes]
        rows = [_Row(ids, seed) for ids, row in zip(prompts, seeds, strict=True) for seed in row[:k]]
        cutter = StepCutter(self.tokenizer, self._texts, steps) if steps else None
        going = rows
        while going:
            self._write(going, steps, sampling)
            for row in going:
                length = cutter.end(row.token_ids, row.prompt[-1]) if cutter else None
                if length is not None:
                    row.stop = "boundary"
                    del row.token_ids[length:], row.logprobs[length:]
                elif row.stop is None and len(row.token_ids) >= sampling.max_tokens:
                    row.stop = "length"
            going = [row for row in going if row.stop is None]
        written = [self._finished(row) for row in rows]
        self.usage.calls += len(written)
        if progress is not None:
            progress(len(written))
        return [written[i : i + k] for i in range(0, len(written), k)]

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def cut(self, chain: Continuation, steps: str) -> list[Continuation]:
        """Cut a chain into steps, as ``expand`` would have ended them."""
        return StepCutter(self.tokenizer, self._texts, steps).cut(chain, {self.tokenizer.eos_token_id})

    def _write(self, rows: Sequence[_Row], steps: str | None, sampling: Sampling) -> None:
        """Let vLLM write on in these rows, once; a row whose turn or tokens are over gets its ``stop``."""
        from vllm import SamplingParams

        stop = SERVER_STOPS[steps] if steps else None
        asked = [(*row.prompt, *row.token_ids) for row in rows]
        left = [sampling.max_tokens - len(row.token_ids) for row in rows]
        ways = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=n,
                repetition_penalty=sampling.repetition_penalty,
                seed=(row.seed + row.rounds) % 2**31,
                stop=[stop] if stop else None,
                include_stop_str_in_output=True,
                logprobs=0,
            )
            for row, n in zip(rows, left, strict=True)
        ]
        read, calls = sum(map(len, asked)), sum(not row.rounds for row in rows)
        if complaint := self.budget.complaint(self.spent, Spent(calls, read, sum(left))):
            raise MedReflError(f"engine vllm: {complaint}")
        start = time.perf_counter()
        outputs = self.engine.generate([{"prompt_token_ids": list(ids)} for ids in asked], ways, use_tqdm=False)
        self.usage.seconds += time.perf_counter() - start
        before = sum(len(row.token_ids) for row in rows)
        for row, output in zip(rows, outputs, strict=True):
            row.add(output.outputs[0], stop)
        used = Spent(calls, read, sum(len(row.token_ids) for row in rows) - before)
        self.spent += used
        self.usage.prompt_tokens += used.read
        self.usage.completion_tokens += used.written

    def _finished(self, row: _Row) -> Continuation:
        ids, logprobs = tuple(row.token_ids), tuple(row.logprobs)
        text = text_after(self.tokenizer, row.prompt[-1], ids)
        return Continuation(text, ids, sum(logprobs), row.stop, len(ids), logprobs)

    def _prompt_ids(self, messages: Messages) -> list[int]:
        text = render_prompt(self.tokenizer, messages)
        return self.tokenizer(text, add_special_tokens=False).input_ids


@dataclass
class _Row:
    """One continuation that is being written."""

    prompt: tuple[int, ...]
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: str | None = None
    rounds: int = 0

    def add(self, output: Any, stop: str | None) -> None:
        """Take what vLLM wrote in this round."""
        ids = list(output.token_ids)
        self.token_ids += ids
        self.logprobs += [step[token].logprob for step, token in zip(output.logprobs or (), ids, strict=False)]
        self.rounds += 1
        if output.finish_reason == "length":
            self.stop = "length"
        elif not ids or stop is None or output.stop_reason != stop:
            self.stop = "end"
