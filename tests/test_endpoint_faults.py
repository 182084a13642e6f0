"""A server that misbehaves on a schedule, and one that is paid for: what passes, what is given up, what it costs."""

import json
import time

import pytest

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import Budget, CallLog, EndpointGenerator, Prefix, Spent, open_generator
from tests.server import serving

MESSAGES = [prompts.exam(question) for question in clinic.make_exam(5, seed=3)]
SAMPLING = Sampling(1.0, 1.0, 40)
PASSING = {
    "429 with Retry-After": (429, {"Retry-After": "1"}, "slow down"),
    "429": (429, {}, "slow down"),
    "500": (500, {}, "on fire"),
    "503": (503, {}, "busy"),
    **{name: name for name in ("slow", "cut", "truncated", "empty", "error", "page")},
}
TOLD = {
    "slow": "no connection (2 tries): Request timed out.",
    "cut": "no connection (2 tries): peer closed connection without sending complete message body",
    "truncated": "the reply is not JSON: Unterminated string starting at: line 1 column 8 (char 7) (2 tries)",
    "empty": "the reply has no choices: ",
    "error": "HTTP 200 with an error: {'message': 'overloaded', 'code': 529} (2 tries)",
    "page": "the reply has no choices: <html>gateway</html> (2 tries)",
}


def chats(server, log=None, **settings) -> tuple[list[str], EndpointGenerator]:
    generator = EndpointGenerator(server.url, "m", log=CallLog(log), **{"concurrency": 1, **settings})
    return [one.text for one in generator.chat(MESSAGES, SAMPLING, range(len(MESSAGES)))], generator


@pytest.fixture(scope="module")
def undisturbed() -> list[str]:
    with serving() as server:
        return chats(server)[0]


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_asked_again(fault, undisturbed, tmp_path):
    with serving(failures=[PASSING[fault]], slow=1.5) as server:
        start = time.monotonic()
        texts, generator = chats(server, tmp_path / "calls", timeout=1.0)
        assert texts == undisturbed
        assert len(server.refused) == 1 and generator.usage.requests == len(server.requests)
        if fault == "429 with Retry-After":
            assert time.monotonic() - start >= 1
        before = len(server.requests)
        assert chats(server, tmp_path / "calls")[0] == undisturbed and len(server.requests) == before


@pytest.mark.parametrize("fault", TOLD)
def test_what_does_not_pass_is_given_up_with_one_line_and_what_was_received_is_kept(fault, undisturbed, tmp_path):
    with serving(slow=1.5) as server:
        answer, asked = server.answer, []

        def answer_three(body):
            asked.append(body)
            if len(asked) == 4:  # the probe and two questions
                server.failures = [fault] * 9
            return answer(body)

        server.answer = answer_three
        with pytest.raises(MedReflError) as raised:
            chats(server, tmp_path / "calls", timeout=1.0, retries=1)
        message = str(raised.value)
        assert message.startswith(f"endpoint {server.url}, model m: {TOLD[fault]}") and "\n" not in message
        assert message.endswith(f"; the replies so far are kept in {tmp_path / 'calls'}: run the same again")
        assert len(server.refused) == 2
        server.failures, before = [], len(server.requests)
        texts, generator = chats(server, tmp_path / "calls")
        assert texts == undisturbed
        assert len(server.requests) - before == len(MESSAGES) - generator.usage.reused < len(MESSAGES)


def test_when_one_request_is_given_up_those_under_way_still_come_in(tmp_path):
    with serving() as server:
        answer = server.answer

        def refuse_one(body):
            if body["messages"] == MESSAGES[2]:
                server.failures = [(401, {}, "no more")]
                time.sleep(0.3)  # the next one asks in the meantime, and is refused
            return answer(body)

        server.answer = refuse_one
        with pytest.raises(MedReflError, match="HTTP 401"):
            chats(server, tmp_path / "calls", concurrency=2)
        kept = [json.loads(line) for line in (tmp_path / "calls/main.jsonl").read_text().splitlines()]
        assert (
            sum("reply" in line for line in kept) == len(server.requests) - 2
        )  # all that was answered but the probe's


# --- the key ---------------------------------------------------------------------------------------------------------

KEY = "sk-planted-0123456789"


def test_a_key_that_the_server_repeats_is_neither_kept_nor_told(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(echoes=True) as server:
        chats(server, tmp_path / "calls")
        assert server.keys == {f"Bearer {KEY}"}
        log = (tmp_path / "calls/main.jsonl").read_text()
        assert "asked by Bearer [key]" in log and KEY not in log
        for fault in ((401, {}, "bad"), (500, {}, "bad"), "error"):
            server.failures = [fault] * 2
            with pytest.raises(MedReflError, match=r"Bearer \[key\]") as raised:
                chats(server, retries=0)
            assert KEY not in "".join(map(str, (raised.value, raised.value.__cause__)))
            assert raised.value.__suppress_context__


def test_the_key_may_stand_in_a_file(monkeypatch, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "key"))
    with serving() as server:
        chats(server)
        assert server.keys == {f"Bearer {KEY}"}
        monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "none"))
        with pytest.raises(
            MedReflError, match=r"OPENAI_API_KEY_FILE names .*none, which cannot be read: .*No such file"
        ):
            chats(server)


@pytest.mark.parametrize("url", [f"http://me:{KEY}@host/v1", f"https://host/v1?api_key={KEY}"])
def test_a_key_in_the_address_is_refused_and_not_told(url):
    with pytest.raises(MedReflError, match=r"endpoint 'https?://host/v1': a key or a query in the address") as raised:
        open_generator("", endpoint=url, endpoint_model="m")
    assert KEY not in str(raised.value)


# --- budgets ---------------------------------------------------------------------------------------------------------


def spent(server) -> Spent:
    """As the server counts it: ten tokens are read a request."""
    choices = sum(body.get("n", 1) for body in server.requests)
    return Spent(choices, 10 * len(server.requests), server.written)


LIMITS = [
    {"max_calls": 9},
    {"max_tokens": 720},
    {"max_cost": 0.002, "input_price": 1.0, "output_price": 5.0},
]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: next(iter(limit)))
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_budget_stops_before_it_is_passed_and_a_higher_one_goes_on(limit, concurrency, undisturbed, tmp_path):
    name = next(iter(limit))

    def have(server) -> float:
        used = spent(server)
        return {
            "max_calls": used.calls,
            "max_tokens": used.read + used.written,
            "max_cost": Budget(**limit).cost(used),
        }[name]

    with serving() as server:

        def grow(limit):
            log = CallLog(tmp_path / "calls")
            generator = EndpointGenerator(server.url, "m", log=log, concurrency=concurrency, budget=Budget(**limit))
            prefixes = [Prefix(message) for message in MESSAGES]
            return generator.expand(prefixes, 3, None, SAMPLING, [[i, i + 1, i + 2] for i in range(5)])

        with pytest.raises(MedReflError, match=rf"{name} is .* is spent, and the next call could take it to") as raised:
            grow(limit)
        assert 0 < have(server) <= limit[name] and f"raise {name} and run the same again" in str(raised.value)
        before = len(server.requests)
        with pytest.raises(MedReflError, match=rf"{name} is"):  # what was spent stays spent
            grow(limit)
        assert len(server.requests) == before
        again = EndpointGenerator(server.url, "m", log=CallLog(tmp_path / "calls"), budget=Budget(**limit))
        [(unit, share)] = again.budget.shown(again.spent).items()  # what a bar says, of all sessions
        assert f"max_{unit}" == name and float(share.split("/")[0].replace(",", "")) == pytest.approx(have(server))
        rows = grow({**limit, name: limit[name] * 100})
        assert len(rows) == 5 and len({json.dumps(body) for body in server.requests}) == len(server.requests)


def test_the_model_in_this_process_heeds_a_budget_too(tiny_student):
    budget = Budget(max_tokens=2000)
    generator = open_generator(tiny_student, budget=budget, max_rows=2)
    with pytest.raises(
        MedReflError, match=r"model .*tiny_student: max_tokens is 2000, \d+ is spent, and the next call"
    ):
        generator.chat(MESSAGES * 4, SAMPLING, range(20))
    used = generator.usage.prompt_tokens + generator.usage.completion_tokens
    assert 0 < used <= 2000 and generator.budget.shown(generator.spent) == {"tokens": f"{used:,}/2,000"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_calls": -1}, "budget: max_calls is -1, expected at least 0"),
        (
            {"max_cost": 3.0},
            "budget: max_cost needs input_price and output_price, the prices of a million tokens read and written",
        ),
    ],
)
def test_a_budget_that_is_none_is_refused(wrong, message):
    with pytest.raises(MedReflError) as raised:
        Budget(**wrong)
    assert str(raised.value) == message


def test_workers_share_a_budget():
    assert Budget(10, 1000, 2.0, 1.0, 1.0).share(4) == Budget(2, 250, 0.5, 1.0, 1.0)
    assert Budget(2).share(4) == Budget(1) and Budget().share(3) == Budget()
    assert Spent(3, 10, 7).share(2) == Spent(2, 5, 4)
