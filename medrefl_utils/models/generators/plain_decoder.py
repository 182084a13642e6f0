"""Decode models with another attention than torch's own (sliding windows, soft caps, linear layers), in batches.

Each row has a cache of its own, which the model fills. All expansions that wait are written together, in batches that
fit into memory; each prefix is read anew. Rows that have ended leave the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.models.generators.budget import Spent
from medrefl_utils.models.generators.decoding import Decoding, decode_fewer, not_even_one
from medrefl_utils.models.generators.drawing import Ids, Row, draw_tokens, uniform_numbers
from medrefl_utils.models.generators.interface import Expansion, Then
from medrefl_utils.models.generators.shared_prefix import next_logits
from medrefl_utils.models.generators.token_cutting import StepCutter
from medrefl_utils.models.memory import is_out_of_memory

_COMPACT = 0.75
"""Drop ended rows from the cache when fewer than this share of rows is alive: dropping copies the cache."""


class PlainDecoder:
    """Decodes the continuations of expansions, and of those that the caller asks for when a batch is complete."""

    def __init__(self, generator: Decoding, cutter: StepCutter | None, sampling: Sampling):
        """Prepare to decode; ``cutter`` finds the end of a step (None: a continuation is the whole turn)."""
        self.generator, self.cutter, self.sampling = generator, cutter, sampling

    def run(self, first: Sequence[Expansion], then: Then) -> None:
        """Write all expansions, and those that ``then`` returns.

        Raises:
            MedReflError: see ``ContinuousDecoder.run``.
        """
        waiting = list(first)
        while waiting:
            k = len(waiting[0].seeds)
            now = [(self._ids(one), one) for one in waiting if len(one.seeds) == k]
            waiting = [one for one in waiting if len(one.seeds) != k]
            now.sort(key=lambda pair: len(pair[0]))  # for less padding
            longest = len(now[-1][0])
            self.generator.check_room(longest, self.sampling)
            while now:
                batch = now[: self.generator.prefixes_at_once(longest, k, self.sampling)]
                seeds = [seed for _, one in batch for seed in one.seeds]
                written = self._written([ids for ids, _ in batch], k, seeds)
                if written is None:
                    self._take_fewer(len(batch), k, longest)
                    continue
                now = now[len(batch) :]
                for place, (_, one) in enumerate(batch):
                    waiting += then(one, written[place * k : (place + 1) * k]) or ()

    def _ids(self, one: Expansion) -> Ids:
        return (*self.generator.prompt_ids(one.prefix.messages), *one.prefix.token_ids)

    def _written(self, ids: Sequence[Ids], k: int, seeds: Sequence[int]) -> list[Continuation] | None:
        """Write ``k`` continuations of each prefix; None: out of memory."""
        generator, read = self.generator, sum(map(len, ids))
        worst = Spent(len(seeds), read, len(seeds) * self.sampling.max_tokens)
        if complaint := generator.budget.complaint(generator.spent, worst):
            raise MedReflError(f"model {generator.about['model']}: {complaint}")
        try:
            rows = self._decoded(ids, k, seeds)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        tokens = sum(len(row.token_ids) + row.looked_ahead for row in rows)
        generator.spent += Spent(len(rows), read, tokens)
        generator.usage.calls += len(rows)
        generator.usage.prompt_tokens += read
        generator.usage.completion_tokens += tokens
        return [row.finish(generator.tokenizer) for row in rows]

    def _decoded(self, ids: Sequence[Ids], k: int, seeds: Sequence[int]) -> list[Row]:
        """Read prefixes, left-padded, and write the rows."""
        model, device, sampling = self.generator.model, self.generator.model.device, self.sampling
        width, pad = max(map(len, ids)), self.generator.tokenizer.pad_token_id
        tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        cache = DynamicCache(config=model.config)
        logits = next_logits(model, tokens, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        if k > 1:
            cache.batch_repeat_interleave(k)
            logits, mask = logits.repeat_interleave(k, 0), mask.repeat_interleave(k, 0)
        rows = [Row(row, row) for row in ids for _ in range(k)]
        draw, alive = _Draw(sampling, seeds, rows, logits), list(range(len(rows)))
        for step in range(sampling.max_tokens):
            chosen, logprobs = draw(logits, alive, step)
            for i, token, logprob in zip(alive, chosen.tolist(), logprobs.tolist(), strict=True):
                rows[i].add(token, logprob, self.generator.ends, self.cutter)
            going = [place for place, i in enumerate(alive) if rows[i].stop is None]
            if not going or step + 1 == sampling.max_tokens:
                break
            if len(going) < _COMPACT * len(alive):
                kept = torch.tensor(going, device=device)
                cache.batch_select_indices(kept)
                chosen, mask, alive = chosen[kept], mask[kept], [alive[place] for place in going]
            position = mask.sum(1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            logits = next_logits(model, chosen[:, None], mask, position[:, None], cache)
        return rows

    def _take_fewer(self, prefixes: int, k: int, longest: int) -> None:
        """Halve the number of rows from now on, because these ran out of memory."""
        if prefixes == 1:
            raise not_even_one(k, longest, self.sampling)
        decode_fewer(self.generator, prefixes * k, prefixes // 2 * k)


class _Draw:
    """Draws the next tokens of rows that began together."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], rows: Sequence[Row], logits: torch.Tensor):
        """Prepare for rows; ``logits`` [rows, vocabulary] gives the vocabulary's size."""
        self.sampling = sampling
        self.uniform = None
        if sampling.temperature > 0:
            draws = np.array([uniform_numbers(seed, sampling) for seed in seeds])
            self.uniform = torch.tensor(draws, dtype=torch.float64, device=logits.device)
        self.seen = None
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            for place, row in enumerate(rows):
                self.seen[place, torch.tensor(row.prefix, device=logits.device)] = True

    def __call__(self, logits: torch.Tensor, alive: list[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens [rows] and their log-probabilities [rows] under the model, before any sampling setting."""
        rows = torch.tensor(alive, device=logits.device)
        uniform = None if self.uniform is None else self.uniform[rows, step]
        seen = None if self.seen is None else self.seen[rows]
        chosen, logprobs = draw_tokens(logits, self.sampling, uniform, seen)
        if self.seen is not None:
            self.seen[rows, chosen] = True
        return chosen, logprobs
