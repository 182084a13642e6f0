"""Limit how fast a server is asked."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, fields

from medrefl_utils.core.errors import MedReflError

_POLL = 0.25  # seconds: a reply that used fewer tokens than its maximum lets the next request start earlier


@dataclass(frozen=True)
class RateLimits:
    """Limits on requests and tokens per minute (0: none), and on waiting for a server that is busy."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """tokens read and written; a request counts at its maximum until its reply says what it used"""
    max_wait: float = 60.0
    """minutes without any reply after which a server that asks to wait (HTTP 429, 503) is given up"""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise MedReflError(f"rate limits: {field.name} is {getattr(self, field.name)}, expected at least 0")

    def share(self, workers: int) -> RateLimits:
        """Return the limits for each of ``workers`` workers that share these, at least one per minute."""
        requests, tokens = (
            max(1, limit // workers) if limit else 0 for limit in (self.requests_per_minute, self.tokens_per_minute)
        )
        return RateLimits(requests, tokens, self.max_wait)


class Pace:
    """Starts requests at an even pace, so that no minute has more of them than the limits allow.

    Even, not in bursts: servers also count per second.
    """

    def __init__(self, limits: RateLimits):
        """Start with nothing used."""
        self.limits = limits
        self._next = 0.0  # time.monotonic() from which the next request may start

    async def turn(self, tokens: int, first_in_line: asyncio.Lock) -> None:
        """Wait until a request of at most ``tokens`` tokens may start, and count it."""
        if not (self.limits.requests_per_minute or self.limits.tokens_per_minute):
            return
        async with first_in_line:
            while (wait := self._next - time.monotonic()) > 0:
                await asyncio.sleep(min(wait, _POLL))
            per_request = 60 / self.limits.requests_per_minute if self.limits.requests_per_minute else 0.0
            self._next = time.monotonic() + max(per_request, self._seconds(tokens))

    def give_back(self, tokens: int) -> None:
        """Count ``tokens`` fewer than a turn counted; the pace of requests stays."""
        self._next -= max(0.0, self._seconds(tokens))

    def _seconds(self, tokens: int) -> float:
        return tokens * 60 / self.limits.tokens_per_minute if self.limits.tokens_per_minute else 0.0
