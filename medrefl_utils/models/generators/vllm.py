"""Run a model with vLLM in this process: continuous batching and prefix caching. The extra is ``[vllm]``.

vLLM's stop sequences are not used: vLLM would stop at the first line end, also where that is a blank line. Instead this
module reads each token when it arrives, as ``local`` does, and aborts a request when ``exam.steps.step_end`` says that
its step is complete.

A GPU has room for one engine of vLLM. So a process runs one: base and adapter share it, and another model replaces it.
"""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import one_line
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.store import content_hash
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.chat_templates import open_thinking, prompt_ids
from medrefl_utils.models.folder_checks import check_adapter_folder, resolve_checked_model
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.call_log import CallLog, call_key, logged_continuation
from medrefl_utils.models.generators.interface import Generator, Prefix, Progress, Usage
from medrefl_utils.models.generators.token_cutting import StepCutter, text_after, vocabulary
from medrefl_utils.models.loading import compute_dtype, load_tokenizer, model_key

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as the maximum rank."""


class VllmGenerator(Generator):
    """A model from a local folder or the hub, run by vLLM."""

    def __init__(
        self,
        model: str,
        *,
        quantization: str = "none",
        adapter: Path | None = None,
        log: CallLog | None = None,
        budget: Budget | None = None,
    ):
        """Start vLLM with the model, or share the engine that runs it already.

        Args:
            model: a folder or a hub id.
            quantization: nf4 (4 bit) or none: 16 bit on a GPU, 32 bit on a CPU.
            adapter: folder of a LoRA adapter.
            log: keeps what ``chat`` writes, reply by reply, and returns it in a later run.
            budget: limits on what this generator writes.

        Raises:
            MedReflError: vLLM is not installed or does not start, or the model or the adapter is not available.
        """
        self._model, self._quantization, self._adapter = model, quantization, adapter
        self.about = {"model": model, "quantization": quantization, "engine": "vllm"}
        self.tokenizer = load_tokenizer(model)
        self.usage, self.spent = Usage(), Spent()
        self.log, self.budget = log or CallLog(None), budget or Budget()
        mark = open_thinking(self.tokenizer)
        self.thinking_open, self.thinking_close = mark is not None, mark[1] if mark else None
        self._cutters: dict[str, StepCutter] = {}
        self._numbers = itertools.count()
        if adapter is not None:
            check_adapter_folder(adapter, model)
        self._rank = 0 if adapter is None else _rank(adapter)
        _engine(model, quantization, self._rank)
        self.key = f"vllm {_version()} {model_key(model, quantization)}"
        if adapter is not None:
            self.key += f" {content_hash(adapter)}"

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """Write ``k`` continuations of each prefix; prefix caching reads once what they share.

        Raises:
            MedReflError: a prompt leaves no room in the context that vLLM has memory for, or the budget is too small.
        """
        return self._expand(prefixes, k, steps, sampling, seeds, progress, CallLog(None))

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """Write the model's whole answer to each list of messages, in order; take what is in the log from there."""
        prefixes, each = [Prefix(m) for m in messages], [[seed] for seed in seeds]
        return [row[0] for row in self._expand(prefixes, 1, None, sampling, each, progress, self.log)]

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def cut(self, chain: Continuation, steps: str) -> list[Continuation]:
        """Cut a chain into steps, as ``expand`` would have ended them."""
        return self._cutter(steps).cut(chain, {chain.token_ids[-1]} if chain.stop == "end" else set())

    def _expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None,
        log: CallLog,
    ) -> list[list[Continuation]]:
        prompts = prompt_ids(self.tokenizer, [p.messages for p in prefixes])
        rows = [
            _Row((*prompt, *prefix.token_ids), seed, sampling.max_tokens)
            for prompt, prefix, children in zip(prompts, prefixes, seeds, strict=True)
            for seed in children[:k]
        ]
        engine = _engine(self._model, self._quantization, self._rank)
        _check_room(rows, engine.model_config.max_model_len)
        waiting = deque()
        for row in rows:
            row.key = log.folder and call_key(self.key, row.prompt, asdict(sampling), row.seed)
            if line := row.key and log.get(row.key):
                row.written, row.seconds = logged_continuation(line["written"]), line["seconds"]
                self.usage.reused += 1
                self._count(row, progress)
            else:
                waiting.append(row)
        going: dict[str, _Row] = {}
        try:
            while waiting or going:
                self._admit(engine, waiting, going, sampling)
                for output in _step(engine, going.values()):
                    if (row := going.get(output.request_id)) is None:
                        continue  # aborted: its step is complete
                    row.take(output, self._cutter(steps) if steps else None)
                    if row.stop is None:
                        continue
                    del going[output.request_id]
                    if not output.finished:
                        engine.abort_request([output.request_id])
                    self._finish(row, log)
                    self._count(row, progress)
        except BaseException:
            if going:  # Ctrl-C reaches vLLM's own process too: the next call starts another
                _stop()
            raise
        written = [row.written for row in rows]
        return [written[i : i + k] for i in range(0, len(written), k)]

    def _admit(self, engine: Any, waiting: deque[_Row], going: dict[str, _Row], sampling: Sampling) -> None:
        """Request the rows for which the budget has room, at their maximum cost."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        under_way = sum((row.most for row in going.values()), Spent())
        lora = None
        if self._adapter is not None:  # vLLM tells adapters apart by number and name
            number = int(content_hash(self._adapter)[:7], 16) + 1
            lora = LoRARequest(f"adapter-{number}", number, str(Path(self._adapter).resolve()))
        while waiting:
            if complaint := self.budget.complaint(self.spent + under_way, waiting[0].most):
                if going:
                    return
                raise MedReflError(f"engine vllm: {complaint}")
            row, name = waiting.popleft(), f"{id(self)}-{next(self._numbers)}"
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                repetition_penalty=sampling.repetition_penalty,
                seed=row.seed % 2**31,
                logprobs=0,  # of the drawn token alone
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            engine.add_request(name, tokens_input(list(row.prompt)), params, lora_request=lora)
            going[name] = row
            under_way += row.most

    def _finish(self, row: _Row, log: CallLog) -> None:
        """Make the row's continuation, log it and add it to what is spent."""
        ids, logprobs = tuple(row.token_ids), tuple(row.logprobs)
        text = text_after(self.tokenizer, row.prompt[-1], ids)
        row.written = Continuation(text, ids, sum(logprobs), row.stop, len(ids), logprobs)
        if row.key:
            log.append(row.key, {"written": asdict(row.written), "seconds": row.seconds})
        read = len(row.prompt) - row.cached
        self.spent += Spent(1, read, len(ids) + row.looked_ahead)
        self.usage.prompt_tokens += read
        self.usage.completion_tokens += row.looked_ahead

    def _count(self, row: _Row, progress: Progress | None) -> None:
        self.usage.calls += 1
        self.usage.completion_tokens += row.written.length
        self.usage.seconds += row.seconds
        if progress is not None:
            progress(1)

    def _cutter(self, steps: str) -> StepCutter:
        if steps not in self._cutters:
            self._cutters[steps] = StepCutter(self.tokenizer, vocabulary(self.tokenizer), steps)
        return self._cutters[steps]


@dataclass
class _Row:
    """One continuation that is being written."""

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: str | None = None
    may_end: bool = False
    looked_ahead: int = 0
    cached: int = 0
    seconds: float = 0.0
    """its share of the time that vLLM took"""
    key: str | None = None
    written: Continuation | None = None

    @property
    def most(self) -> Spent:
        """The maximum cost: no token of the prompt is found in the cache, and all allowed tokens are written."""
        return Spent(1, len(self.prompt), self.max_tokens)

    def take(self, output: Any, cutter: StepCutter | None) -> None:
        """Take the tokens that vLLM wrote since its last output, up to the end of the step."""
        self.cached = output.num_cached_tokens or self.cached
        [one] = output.outputs
        ended = one.finish_reason == "stop"  # then the last token ends the turn
        for number, (token, logprob) in enumerate(zip(one.token_ids, one.logprobs, strict=True), 1):
            self.token_ids.append(token)
            self.logprobs.append(logprob[token].logprob)
            if cutter is None or (ended and number == len(one.token_ids)):
                continue
            self.may_end = self.may_end or cutter.may_end(token)
            length = cutter.end(self.token_ids, self.prompt[-1]) if self.may_end else None
            if length is not None:
                self.looked_ahead = len(self.token_ids) - length + len(one.token_ids) - number
                self.stop = "boundary"
                del self.token_ids[length:], self.logprobs[length:]
                return
        if one.finish_reason in ("abort", "error"):
            raise MedReflError("engine vllm: vLLM gave up a request; what is finished is kept: run the same again")
        if one.finish_reason is not None:
            self.stop = "length" if one.finish_reason == "length" else "end"


_RUNNING: dict[tuple[str, str], tuple[Any, int]] = {}
"""The process's engine and its maximum LoRA rank, by model and quantization: one entry at most."""


def _engine(model: str, quantization: str, rank: int) -> Any:
    """Return the engine that runs a model with adapters of this rank (0: without); start it if it does not run."""
    name = resolve_checked_model(model)
    running, most = _RUNNING.get((name, quantization), (None, -1))
    if most < rank:
        del running
        _stop()
        _RUNNING[name, quantization] = (_start(model, name, quantization, rank), rank)
    return _RUNNING[name, quantization][0]


def _step(engine: Any, going: Collection[_Row]) -> list[Any]:
    """Return vLLM's next outputs, and share the time that it took among the rows."""
    before = time.perf_counter()
    try:
        outputs = engine.step()
    except Exception as error:  # it runs in a process of its own, which can die
        kept = "; what is finished is kept: run the same again"
        raise MedReflError(f"engine vllm: vLLM failed: {one_line(error)}{kept}") from error
    for row in going:
        row.seconds += (time.perf_counter() - before) / len(going)
    return outputs


def _stop() -> None:
    """Stop the engine that runs; its memory must be free before the next one measures what is left."""
    while _RUNNING:
        _RUNNING.popitem()[1][0].engine_core.shutdown()
    gc.collect()


def _start(model: str, name: str, quantization: str, rank: int) -> Any:
    try:
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform
    except ImportError as error:
        raise MedReflError(
            "engine vllm: vLLM is not installed: run pip install 'medrefl[vllm]', or set endpoint to the address of a "
            "`vllm serve`"
        ) from error
    settings: dict[str, Any] = dict(
        model=name,
        enable_prefix_caching=True,
        load_format="bitsandbytes" if quantization == "nf4" else "safetensors",  # never a pickle
        dtype=str(compute_dtype()).removeprefix("torch."),
        max_model_len=-1,  # the model's context, or as much of it as the memory holds
        disable_log_stats=True,
    )
    if quantization == "nf4":
        settings |= dict(quantization="bitsandbytes")
    if rank:
        settings |= dict(enable_lora=True, max_lora_rank=rank)
    if current_platform.is_cpu():
        # vLLM 0.32 dies on a CPU when it draws with a seed in the middle of a prefill.
        settings |= dict(enable_chunked_prefill=False)
    try:
        return LLMEngine.from_engine_args(EngineArgs(**settings))
    except (RuntimeError, ValueError, OSError) as error:
        raise MedReflError(f"engine vllm: vLLM does not start with the model {model}: {one_line(error)}") from error


def _version() -> str:
    from vllm import __version__

    return __version__


def _rank(adapter: Path) -> int:
    """Return the smallest maximum rank of vLLM that holds an adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    return next((most for most in _LORA_RANKS if most >= rank), rank)


def _check_room(rows: Sequence[_Row], context: int) -> None:
    longest = max((len(row.prompt) for row in rows), default=0)
    new = max((row.max_tokens for row in rows), default=0)
    if longest + new > context:
        raise MedReflError(
            f"engine vllm: a prompt of {longest} tokens and {new} new ones exceed the context of {context} tokens that "
            "the model has, or that vLLM's memory holds"
        )
