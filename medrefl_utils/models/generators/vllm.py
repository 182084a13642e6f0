"""vLLM in this process: continuous batching and prefix caching on a GPU. The extra is ``[vllm]``.

vLLM pins a torch and a transformers of its own: it belongs into an environment beside this project's, where stage 01
alone runs (``pip install -e '.[vllm]'`` in a fresh one, ``medrefl run PROFILE --only 01``); or run ``vllm serve`` there
and give its address as the ``endpoint``. Written against vLLM's documented interface; not yet run on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import resolve_model
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.interface import Generator, Prefix, Progress, Usage


class VllmGenerator(Generator):
    """A model of a local folder or hub id, run by vLLM."""

    def __init__(self, model: str, *, quantization: str = "none", budget: Budget | None = None):
        """Load the model. Raises MedReflError where vLLM is not installed or the model cannot be had."""
        name = resolve_model(model)
        try:
            from vllm import LLM
        except ImportError as error:
            raise MedReflError(
                "engine vllm: vLLM is not installed: pip install 'medrefl[vllm]' in an environment of its own, or give "
                "the address of a `vllm serve` as the endpoint"
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

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        stop: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """``k`` continuations of each prefix; prefix caching reads what siblings share once."""
        from vllm import SamplingParams

        asked = [(*self._prompt_ids(prefix.messages), *prefix.token_ids) for prefix in prefixes]
        rows = [{"prompt_token_ids": list(ids)} for ids in asked for _ in range(k)]
        ways = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                repetition_penalty=sampling.repetition_penalty,
                seed=seed % 2**31,
                stop=[stop] if stop else None,
                include_stop_str_in_output=True,
                logprobs=0,
            )
            for row in seeds
            for seed in row[:k]
        ]
        most = Spent(len(rows), sum(map(len, asked)), len(rows) * sampling.max_tokens)
        if complaint := self.budget.complaint(self.spent, most):
            raise MedReflError(f"engine vllm: {complaint}")
        start = time.perf_counter()
        outputs = self.engine.generate(rows, ways, use_tqdm=False)
        written = [_continuation(output.outputs[0], stop) for output in outputs]
        self.usage.seconds += time.perf_counter() - start
        self.spent += (used := Spent(len(written), sum(map(len, asked)), sum(one.length for one in written)))
        self.usage.calls += used.calls
        self.usage.prompt_tokens += used.read
        self.usage.completion_tokens += used.written
        if progress is not None:
            progress(len(written))
        return [written[i : i + k] for i in range(0, len(written), k)]

    def encode(self, text: str) -> tuple[int, ...]:
        """The text's tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def steps(self, chain: Continuation, stop: str) -> list[Continuation]:
        """The chain cut after each token that completes ``stop`` once there is more than white space."""
        pieces: list[Continuation] = []
        begin = 0
        for end in range(1, len(chain.token_ids) + 1):
            text = self.tokenizer.decode(chain.token_ids[begin:end], skip_special_tokens=True)
            last = end == len(chain.token_ids)
            if last or stop in text.lstrip():
                parts = chain.logprobs[begin:end]
                why = chain.stop if last else "boundary"
                pieces.append(Continuation(text, chain.token_ids[begin:end], sum(parts), why, end - begin, parts))
                begin = end
        return pieces

    def _prompt_ids(self, messages: Messages) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False).input_ids


def _continuation(output: Any, stop: str | None) -> Continuation:
    ids = tuple(output.token_ids)
    logprobs = tuple(step[token].logprob for step, token in zip(output.logprobs or (), ids, strict=False))
    why = "length" if output.finish_reason == "length" else "boundary" if output.stop_reason == stop and stop else "end"
    return Continuation(output.text, ids, sum(logprobs), why, len(ids), logprobs)
