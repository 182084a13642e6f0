"""Busy servers and rate limits, over real HTTP: who waits, for how long, and when it is given up."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import EndpointGenerator, RateLimits
from medrefl_utils.models.generators.servers import client as client_module
from tests.server import serving

MESSAGES = [prompts.exam(question) for question in clinic.make_exam(6, seed=3)]
SAMPLING = Sampling(1.0, 1.0, 40)


def chat(server, n=6, **settings):
    generator = EndpointGenerator(server.url, "m", **settings)
    return generator.chat(MESSAGES[:n], SAMPLING, range(n))


def in_two_seconds() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2.9), usegmt=True)  # the date has whole seconds


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Retry-After": "2"}, "slow down"),
        ({"retry-after-ms": "2000"}, "slow down"),
        ({"Retry-After": "date"}, "slow down"),
        ({}, "Rate limit reached for requests. Please try again in 2s."),
        ({}, "You exceeded your current quota. Please retry in 2000ms"),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for_as_it_asks(status, headers, told):
    with serving() as server:
        generator = EndpointGenerator(server.url, "m", concurrency=1)
        generator.prepare()
        headers = {name: in_two_seconds() if value == "date" else value for name, value in headers.items()}
        server.failures, before = [(status, headers, told)], time.monotonic()
        assert len(generator.chat(MESSAGES[:1], SAMPLING, [1])) == 1
        assert 1.5 <= time.monotonic() - before


def test_all_requests_wait_together():
    """While the server asks to wait, no other request is sent."""
    with serving() as server:
        generator = EndpointGenerator(server.url, "m", concurrency=1)
        generator.prepare()
        stamps, answer = [], server.answer

        def timed(body):
            stamps.append(time.monotonic())
            return answer(body)

        server.answer, server.failures, before = timed, [(429, {"Retry-After": "2"}, "slow down")], time.monotonic()
        generator.concurrency = 6
        server.failures *= 6
        assert len(generator.chat(MESSAGES, SAMPLING, range(6))) == 6
        assert len(stamps) == 6 and stamps[0] - before >= 1.9 and len(server.refused) == 6


def test_a_long_run_outlasts_more_waits_than_it_has_tries():
    with serving() as server:
        generator = EndpointGenerator(server.url, "m", retries=1, concurrency=2)
        generator.prepare()
        server.failures = [(429, {"Retry-After": "0"}, "slow down")] * 30
        assert len(generator.chat(MESSAGES, SAMPLING, range(6))) == 6 and server.refused == [429] * 30


def test_a_server_that_stays_busy_is_given_up_after_max_wait():
    with serving() as server:
        generator = EndpointGenerator(server.url, "m", limits=RateLimits(max_wait=0.05), concurrency=1)
        generator.prepare()
        server.failures, before = [(429, {"Retry-After": "0.5"}, "slow down")] * 99, time.monotonic()
        with pytest.raises(MedReflError, match=r"HTTP 429: .*slow down.*; no reply for max_wait 0.05 minutes, and the"):
            generator.chat(MESSAGES[:1], SAMPLING, [1])
        assert 1.9 < time.monotonic() - before and 2 <= len(server.refused) <= 7
        server.failures, before = [(429, {"Retry-After": "7200"}, "tomorrow")] * 9, time.monotonic()
        with pytest.raises(MedReflError, match=r"tomorrow.*and the server asks to wait 7,200 s"):
            generator.chat(MESSAGES[:1], SAMPLING, [1])
        assert time.monotonic() - before < 2  # it does not wait in vain


def test_a_quota_that_is_used_up_is_not_waited_for():
    with serving() as server:
        generator = EndpointGenerator(server.url, "m")
        generator.prepare()
        server.failures, server.code = [(429, {}, "You exceeded your current quota")], "insufficient_quota"
        with pytest.raises(MedReflError, match="HTTP 429: .*exceeded your current quota"):
            generator.chat(MESSAGES[:1], SAMPLING, [1])
        assert server.refused == [429]


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("try again in 1h2m3s", 3723.0),
        ("try again in 1m0.5s.", 60.5),
        ("Please retry in 26.3s.", 26.3),
        ("Please try again in 90ms", 0.09),
        ("try again in 5 minutes", 300.0),
        ("retry after 7 seconds", 7.0),
        ("try again later", None),
        ("retry in the morning", None),
    ],
)
def test_a_wait_in_words(told, seconds):
    assert client_module._retry_after({}, told) == seconds


@pytest.mark.parametrize(("value", "seconds"), [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", None)])
def test_a_wait_in_a_header(value, seconds):
    assert client_module._retry_after({"retry-after": value}, "") == seconds
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    assert client_module._retry_after({"retry-after": past}, "") == 0.0


def test_requests_keep_the_pace_also_over_calls():
    with serving() as server:
        generator = EndpointGenerator(server.url, "m", limits=RateLimits(requests_per_minute=120))
        generator.prepare()
        stamps, answer = [], server.answer

        def timed(body):
            stamps.append(time.monotonic())
            return answer(body)

        server.answer = timed
        for part in (MESSAGES[:3], MESSAGES[3:]):
            generator.chat(part, SAMPLING, range(3))
    # The stamps are the server's: a busy machine may delay one.
    assert len(stamps) == 6 and stamps[-1] - stamps[0] >= 5 * 0.5 - 0.4


def test_tokens_count_at_their_maximum_until_the_reply_says_what_was_used():
    with serving() as server:
        longest = max(len(message[0]["content"].encode()) + 16 for message in MESSAGES) + 40
        # One request at its maximum takes two seconds, at what it used a tenth of that at most.
        limits = RateLimits(tokens_per_minute=longest * 30)
        generator = EndpointGenerator(server.url, "m", limits=limits, concurrency=1)
        generator.prepare()
        before = time.monotonic()
        replies = generator.chat(MESSAGES, SAMPLING, range(6))
        taken = time.monotonic() - before
        used = 10 * len(MESSAGES) + sum(len(one.text.split()) for one in replies)
    # The first request waits for nothing.
    assert 5 / 6 * used * 60 / limits.tokens_per_minute < taken < 6 * 2


def test_limits_are_shared_among_workers_and_checked():
    assert RateLimits(10, 100, 5.0).share(4) == RateLimits(2, 25, 5.0)
    assert RateLimits(2).share(4) == RateLimits(1) and RateLimits().share(3) == RateLimits()
    with pytest.raises(MedReflError, match="rate limits: max_wait is -1, expected at least 0"):
        RateLimits(max_wait=-1)
