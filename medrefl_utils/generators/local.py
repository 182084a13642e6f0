"""The in-process generator: transformers on the CPU or one GPU, each token decoded once.

A prefix is prefilled once and its cache repeated for its continuations. The caches of steps just written are kept, so
that expanding them reads one token instead of the whole prefix again. Every row draws from a random generator of
its own, so that a row's text does not depend on what shares its batch (but for floating-point ties); rows that have
ended leave the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from medrefl_utils.generators import Prefix, Progress
from medrefl_utils.models import load_model, load_tokenizer
from medrefl_utils.prompts import Messages
from medrefl_utils.records import Continuation, MedReflError, Sampling

_COMPACT = 0.75
"""Ended rows are dropped from the cache once fewer than this share are alive: dropping copies the cache."""

_SMALL = 20_000_000
"""A model of fewer parameters decodes on one CPU thread: its matrices are too small to be worth handing out."""

Ids = tuple[int, ...]
Kept = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one row, [heads, tokens, width] for each layer: of all its tokens but the last."""


class LocalGenerator:
    """A model of a local folder or hub id, run in this process."""

    def __init__(
        self,
        model: str,
        *,
        quantization: str = "none",
        adapter: Path | None = None,
        max_rows: int = 256,
        keep_gib: float = 4.0,
    ):
        """Load the model; ``max_rows`` bounds the rows decoded together, ``keep_gib`` the caches kept between calls.

        Raises:
            MedReflError: what ``load_model`` and ``load_tokenizer`` raise.
        """
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(model, quantization, adapter)
        if self.model.device.type == "cpu" and self.model.num_parameters() < _SMALL:
            torch.set_num_threads(1)
        self.max_rows = max_rows
        self.keep_bytes = int(keep_gib * 2**30)
        self.prefilled = 0
        """tokens of prefixes read so far; those found in a kept cache do not count"""
        self._kept: dict[Ids, Kept] = {}
        ends = self.model.generation_config.eos_token_id
        self._ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The token ids of a prompt, the header of the assistant's turn included."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        stop: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """``k`` continuations of each prefix, in the prefixes' order.

        A continuation ends after the token that completes ``stop`` (one character; never before the text has
        something other than white space), at the model's end of turn, or at ``sampling.max_tokens``.

        Raises:
            MedReflError: a prompt that leaves no room in the model's context.
        """
        ids = [(*self.prompt_ids(p.messages), *p.token_ids) for p in prefixes]
        self._check_room(ids, sampling)
        # Kept caches serve the very next call: a search expands its whole frontier at once, then never comes back.
        kept, self._kept = self._kept, {}
        order = sorted(range(len(ids)), key=lambda i: (ids[i] not in kept, len(ids[i])))
        fresh = sum(ids[i] not in kept for i in order)
        per_batch = max(1, self.max_rows // k)
        results: list[list[Continuation]] = [[] for _ in ids]
        for part in (order[: len(order) - fresh], order[len(order) - fresh :]):
            for start in range(0, len(part), per_batch):
                chosen = part[start : start + per_batch]
                batch = self._start([ids[i] for i in chosen], [kept[ids[i]] for i in chosen if ids[i] in kept])
                rows = self._decode(batch, k, stop, sampling, [s for i in chosen for s in seeds[i]])
                for place, i in enumerate(chosen):
                    results[i] = rows[place * k : (place + 1) * k]
                if progress is not None:
                    progress(len(rows))
        return results

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """The model's whole answer to each list of messages, in their order."""
        rows = self.expand([Prefix(m) for m in messages], 1, None, sampling, [[s] for s in seeds], progress)
        return [row[0] for row in rows]

    def encode(self, text: str) -> Ids:
        """The text's tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check_room(self, ids: Sequence[Sequence[int]], sampling: Sampling) -> None:
        room = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, ids), default=0)
        if room is not None and longest + sampling.max_tokens > room:
            raise MedReflError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} new ones exceed the model's context of {room}"
            )

    @torch.inference_mode()
    def _start(self, ids: list[Ids], kept: list[Kept]) -> _Batch:
        """Read the prefixes into a cache, left-padded: all of them, or only the last token of each kept one."""
        device = self.model.device
        cache = DynamicCache(config=self.model.config)
        width = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        if kept:
            for layer in range(len(kept[0])):
                keys, values = (self._right_aligned([row[layer][side] for row in kept], width - 1) for side in (0, 1))
                cache.update(keys, values, layer)
            logits = self._forward(tokens[:, -1:], mask, position[:, -1:], cache)
        else:
            self.prefilled += sum(map(len, ids))
            logits = self._forward(tokens, mask, position, cache)
        return _Batch(ids, tokens, mask, cache, logits)

    @torch.inference_mode()
    def _decode(
        self, batch: _Batch, k: int, stop: str | None, sampling: Sampling, seeds: list[int]
    ) -> list[Continuation]:
        device = self.model.device
        cache = batch.cache
        if k > 1:
            cache.batch_repeat_interleave(k)
        logits, mask = batch.logits.repeat_interleave(k, 0), batch.mask.repeat_interleave(k, 0)
        position = mask.sum(1)
        draw = _Draw(sampling, seeds, batch.tokens.repeat_interleave(k, 0), self.model.config.vocab_size)
        rows = [_Row(batch.ids[i // k]) for i in range(len(seeds))]
        boundary = self._tokens_with(stop) if stop else frozenset()
        alive = list(range(len(rows)))
        for step in range(sampling.max_tokens):
            chosen, logprobs = draw(logits, alive, step)
            for i, token, logprob in zip(alive, chosen.tolist(), logprobs.tolist(), strict=True):
                rows[i].add(token, logprob, self._ends, boundary, self._blank)
            going = [place for place, i in enumerate(alive) if rows[i].stop is None]
            last = not going or step + 1 == sampling.max_tokens
            if last or len(going) < _COMPACT * len(alive) or len(going) == 1:
                self._keep(cache, batch.tokens.shape[1], [rows[i] for i in alive])
            if last:
                break
            if len(going) < _COMPACT * len(alive) or len(going) == 1:
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                chosen, mask, position = chosen[keep], mask[keep], position[keep]
                alive = [alive[place] for place in going]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            logits = self._forward(chosen[:, None], mask, position[:, None], cache)
            position = position + 1
        return [row.finish(self.tokenizer) for row in rows]

    def _keep(self, cache: DynamicCache, width: int, rows: list[_Row]) -> None:
        """Keep the caches of finished steps for the next call, as far as ``keep_bytes`` goes."""
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            return  # a sliding window has forgotten its first tokens
        room = self.keep_bytes - sum(k.nbytes + v.nbytes for row in self._kept.values() for k, v in row)
        for place, row in enumerate(rows):
            ids = (*row.prefix, *row.token_ids)
            if row.stop != "boundary" or ids in self._kept:
                continue
            start = width - len(row.prefix)
            part = slice(start, start + len(ids) - 1)
            kept = [
                (layer.keys[place, :, part].clone(), layer.values[place, :, part].clone()) for layer in cache.layers
            ]
            room -= sum(k.nbytes + v.nbytes for k, v in kept)
            if room < 0:
                return
            self._kept[ids] = kept

    @staticmethod
    def _right_aligned(rows: list[torch.Tensor], width: int) -> torch.Tensor:
        """Rows of [heads, tokens, width] as one tensor [rows, heads, width, ...], zeros on the left."""
        heads, _, size = rows[0].shape
        out = rows[0].new_zeros(len(rows), heads, width, size)
        for place, row in enumerate(rows):
            out[place, :, width - row.shape[1] :] = row
        return out

    def _forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Next-token logits [rows, vocabulary], in 32 bit."""
        out = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()

    def _tokens_with(self, stop: str) -> frozenset[int]:
        return frozenset(i for i, text in enumerate(self._vocabulary) if stop in text)

    @cached_property
    def _blank(self) -> frozenset[int]:
        return frozenset(i for i, text in enumerate(self._vocabulary) if not text.strip())

    @cached_property
    def _vocabulary(self) -> list[str]:
        return self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])


@dataclass
class _Batch:
    """Prefixes that have been read: their tokens [rows, width] and mask, the cache, the next token's logits."""

    ids: list[Ids]
    tokens: torch.Tensor
    mask: torch.Tensor
    cache: DynamicCache
    logits: torch.Tensor


@dataclass
class _Row:
    """One continuation in the making."""

    prefix: Ids
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    stop: str | None = None
    written: bool = False

    def add(self, token: int, logprob: float, ends: set[int], boundary: frozenset[int], blank: frozenset[int]) -> None:
        """Take the next token, unless the row has ended (it then waits for the cache to be compacted)."""
        if self.stop is not None:
            return
        self.logprob += logprob
        self.token_ids.append(token)
        self.written = self.written or (token not in blank and token not in ends)
        if token in ends:
            self.stop = "end"
        elif self.written and token in boundary:
            self.stop = "boundary"

    def finish(self, tokenizer: PreTrainedTokenizerBase) -> Continuation:
        text = tokenizer.decode(self.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Continuation(text, tuple(self.token_ids), self.logprob, self.stop or "length")


class _Draw:
    """Draws each row's next token with the row's own uniform numbers, by the inverse of its distribution."""

    def __init__(self, sampling: Sampling, seeds: list[int], prompts: torch.Tensor, vocabulary: int):
        self.sampling = sampling
        self.uniform = None
        if sampling.temperature > 0:
            draws = [np.random.Generator(np.random.Philox(s)).random(sampling.max_tokens) for s in seeds]
            self.uniform = torch.tensor(np.array(draws), dtype=torch.float64, device=prompts.device)
        self.seen = None
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(len(seeds), vocabulary, dtype=torch.bool, device=prompts.device)
            self.seen.scatter_(1, prompts, True)

    def __call__(self, logits: torch.Tensor, alive: list[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [rows] and their log-probabilities [rows] under the model itself, before any sampling setting."""
        logprobs = logits.log_softmax(-1)
        rows = torch.tensor(alive, device=logits.device)
        if self.seen is not None:
            penalty = self.sampling.repetition_penalty
            punished = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self.seen[rows], punished, logits)
        if self.uniform is None:
            chosen = logits.argmax(-1)
        else:
            chosen = self._invert(logits / self.sampling.temperature, self.uniform[rows, step])
        if self.seen is not None:
            self.seen[rows, chosen] = True
        return chosen, logprobs.gather(1, chosen[:, None])[:, 0]

    def _invert(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        mass = logits.softmax(-1).double()
        order = None
        if self.sampling.top_p < 1:
            mass, order = mass.sort(stable=True, dim=-1, descending=True)
            mass = torch.where(mass.cumsum(-1) - mass < self.sampling.top_p, mass, 0.0)
        mass = mass.cumsum(-1)
        place = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True).clamp(max=mass.shape[-1] - 1)
        return (place if order is None else order.gather(1, place))[:, 0]
