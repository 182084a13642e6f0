"""Evaluation protocols: names and sampling settings of the runs, with the published protocol. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Sampling
from medrefl_utils.evaluation.robustness import QUESTION_CHANGES

PROTOCOLS = ("published", "greedy", "sampled", "self-consistency", "budget", *QUESTION_CHANGES)


@dataclass(frozen=True)
class Protocol:
    """A way to ask: its name and the sampling of each run.

    ``vote``: all runs give one response, the majority answer. ``budget``: thinking is truncated at the sampling's
    ``max_tokens``, then the answer is requested. ``change``: what is done to the question, one of
    ``robustness.QUESTION_CHANGES``; empty for nothing.
    """

    name: str
    samplings: tuple[Sampling, ...]
    vote: bool = False
    budget: bool = False
    change: str = ""


def published_temperature(u: float) -> float:
    """Return the u-quantile of the published density of temperatures on [0.2, 1.0].

    The density is 0.5 + 2.5 (t - 0.2) up to 0.6, 1.5 up to 0.8, 1.5 - 2.5 (t - 0.8) up to 1.0 (Med-REFL's evaluation
    script). It integrates to 0.95; the missing 0.05 falls on t = 1.0.
    """
    if u <= 0.4:
        return 0.2 + (np.sqrt(0.25 + 5 * u) - 0.5) / 2.5
    if u <= 0.7:
        return 0.6 + (u - 0.4) / 1.5
    return 0.8 + (1.5 - np.sqrt(2.25 - 5 * (min(u, 0.95) - 0.7))) / 2.5


def published_top_p(u: float) -> float:
    """Return the u-quantile of the published top-p: uniform on [0.2, 0.6) with probability 0.3, else on [0.6, 1.0)."""
    return 0.2 + 0.4 * u / 0.3 if u < 0.3 else 0.6 + 0.4 * (u - 0.3) / 0.7


def make_protocol(
    name: str,
    *,
    seed: int = 0,
    n_runs: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 8192,
    repetition_penalty: float = 1.0,
    n_votes: int = 10,
    thinking_budget: int = 1024,
) -> Protocol:
    """Make a protocol by name.

    Args:
        name: one of ``PROTOCOLS``. ``published``: three runs, each with one temperature and one top-p drawn from
            ``seed`` (rounded to two digits, as published), repetition penalty 1.1. ``greedy``: one run. ``sampled``:
            ``n_runs`` runs. ``self-consistency``: ``n_votes`` samples and a majority vote. ``budget``: greedy, thinking
            truncated at ``thinking_budget`` tokens. ``misled``, ``shuffled``, ``none-of-the-others``: greedy, with the
            question changed (``robustness``).
        seed: seed of the draws of ``published``.
        n_runs: responses per question of ``sampled``.
        temperature: temperature of ``sampled`` and ``self-consistency``.
        top_p: top-p of ``sampled`` and ``self-consistency``.
        max_tokens: maximum number of tokens of a response.
        repetition_penalty: repetition penalty of all protocols except ``published``; 1 means none.
        n_votes: votes of ``self-consistency``.
        thinking_budget: maximum number of tokens of thinking.

    Raises:
        MedReflError: an unknown name.
    """
    drawn = Sampling(temperature, top_p, max_tokens, repetition_penalty)
    greedy = Sampling(0.0, 1.0, max_tokens, repetition_penalty)
    if name == "published":
        uniform = np.random.default_rng(seed).random((3, 2))
        drawn = [
            Sampling(round(float(published_temperature(t)), 2), round(float(published_top_p(p)), 2), max_tokens, 1.1)
            for t, p in uniform
        ]
        return Protocol(name, tuple(drawn))
    if name == "greedy":
        return Protocol(name, (greedy,))
    if name == "sampled":
        return Protocol(name, (drawn,) * n_runs)
    if name == "self-consistency":
        return Protocol(name, (drawn,) * n_votes, vote=True)
    if name == "budget":
        return Protocol(name, (replace(greedy, max_tokens=thinking_budget),), budget=True)
    if name in QUESTION_CHANGES:
        return Protocol(name, (greedy,), change=name)
    raise MedReflError(f"protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
