"""Manners of hosted models, over real HTTP: what is found out, what counts as a reply, which row is left out."""

from dataclasses import asdict
from itertools import combinations

import pandas as pd
import pytest

from medrefl_utils.core import DropCounts, MedReflError, Sampling
from medrefl_utils.evaluation import collect_responses, continue_from, drop_refused, judge_answers, make_protocol
from medrefl_utils.exam import clinic, extract_answer, prompts
from medrefl_utils.models import CallLog, EndpointGenerator, Prefix
from medrefl_utils.models.generators.servers.features import Features, learn_from
from medrefl_utils.pairs import CorrectionText, write_reflections
from medrefl_utils.trees import SearchSettings, grow_trees, roll_out
from tests.server import MANNERS, serving

QUESTIONS = clinic.make_exam(12, seed=3)
SAMPLING = Sampling(0.7, 0.9, 80)
GROWTH = SearchSettings((2, 1))
LEARNED = {
    "prefill": {"prefill": False},
    "prefill without prefix": {"prefix_mark": True},
    "white space": {"trailing_space": False, "stop_in_turn": False},
    "stop": {"stop": False},
    "temperature": {"temperature": False},
    "top_p": {"top_p": False},
    "both": {"temperature_with_top_p": False},
    "max_tokens": {"max_name": "max_completion_tokens"},
    "few tokens": {"min_tokens": 16},
    "n": {"choices": False},
    "seed": {"seed": False},
    "logprobs": {"logprobs": False},
    "flags": {"flags": False},
    "repetition_penalty": {"penalty_name": ""},
}
ALL = Features(penalty_name="repetition_penalty")
pytestmark = pytest.mark.filterwarnings("ignore:endpoint")


def grown(server, **settings):
    """A tree of the first question, checked: three steps, each of one line, then an answer, on each of two paths."""
    generator = EndpointGenerator(server.url, "m", **settings)
    sampling = Sampling(0.7, 0.9, 80, repetition_penalty=1.1)
    tree = grow_trees(QUESTIONS[:1], generator, growth=GROWTH, sampling=sampling, seed=0)
    inner, leaves = tree[tree.kind == "step"], tree[tree.kind == "leaf"]
    assert inner.text.str.fullmatch(r"Step \d: because \d\.\n").all(), inner.text.tolist()
    assert leaves.stop.tolist() == ["answer"] * len(leaves) and (leaves.depth == 4).all()
    assert leaves.weight.sum() == 2
    return generator, tree


@pytest.mark.parametrize("name", MANNERS)
def test_a_manner_is_found_out_and_recorded_and_the_tree_grows(name, tmp_path):
    with serving(refuses=[name]) as server:
        log = CallLog(tmp_path / "calls")
        generator, tree = grown(server, log=log)
        assert asdict(generator._features) == asdict(ALL) | LEARNED[name]
        assert generator.about.items() >= LEARNED[name].items()
        requests, refused = len(server.requests), len(server.refused)
        assert 1 <= refused <= 4  # learned once, but for requests that were on their way
        again, same = grown(server, log=CallLog(tmp_path / "calls"))
        assert again._features == generator._features and same.equals(tree)
        assert (len(server.requests), len(server.refused)) == (requests, refused)


@pytest.mark.parametrize(("one", "other"), [*combinations(MANNERS, 2)])
def test_two_manners_together(one, other):
    """The tree grows, and nothing is given up that the server does not refuse."""
    with serving(refuses=[one, other]) as server:
        generator, _ = grown(server, concurrency=1)
    found, before = asdict(generator._features), asdict(ALL)
    changed = {name: value for name, value in found.items() if value != before[name]}
    assert changed and changed.items() <= (LEARNED[one] | LEARNED[other]).items()


@pytest.mark.parametrize("name", [name for name in MANNERS if name not in ("white space", "few tokens")])
def test_a_refusal_without_words_is_found_out_by_leaving_things_out(name):
    found_by_probe = name != "temperature"
    with serving(refuses=[name], silent=True) as server:
        if found_by_probe:
            grown(server)
            return
        with pytest.raises(MedReflError, match="Bad Request.*prompts in a row are refused"):
            generator = EndpointGenerator(server.url, "m", concurrency=1)
            greedy = Sampling(0.3, 0.9, 20)
            generator.chat([prompts.exam(q) for q in QUESTIONS], greedy, range(12))


@pytest.mark.parametrize(
    ("told", "parameter", "change"),
    [
        ("Multiple candidates is not enabled for this model", "", {"choices": False}),
        ("Invalid value", "n", {"choices": False}),
        ("Only the default (1) value is supported", "temperature", {"temperature": False}),
        ("max_tokens: Field required at least 1024", "", {"min_tokens": 1024}),
        ("max_output_tokens must be greater than 15", "", {"min_tokens": 16}),
        ("stop sequences are not supported by this model", "", {"stop": False}),
        ("Roles: the last message must be from the user", "", {"prefill": False}),
        ("Prefilling assistant messages is not supported for this model.", "", {"prefill": False}),
        ("Extra inputs are not permitted: max_tokens", "", {"max_name": "max_completion_tokens"}),
        ("temperature and top_p are mutually exclusive", "", {"temperature_with_top_p": False}),
        ("Unknown arguments: temperature, top_p", "", {"temperature": False, "top_p": False}),
        ("The patient must stop the drug; n of 12", "", {}),
        ("Bad Request", "", {}),
    ],
)
def test_what_a_refusal_teaches(told, parameter, change):
    expected = asdict(Features()) | change if change else None
    learned = learn_from(Features(), told, parameter)
    assert (learned and asdict(learned)) == expected


def test_what_a_version_with_other_features_found_out_is_found_out_again(tmp_path):
    with serving(refuses=["stop"]) as server:
        grown(server, log=CallLog(tmp_path / "calls"))
        log = tmp_path / "calls" / "main.jsonl"
        log.write_text(log.read_text().replace('"prefix_mark": false, ', ""))
        before = len(server.requests)
        generator, _ = grown(server, log=CallLog(tmp_path / "calls"))
        assert len(server.requests) - before == generator.usage.probes == 5 and not generator._features.stop


def test_a_fixed_temperature_is_warned_of_once_and_the_greedy_request_goes_on():
    with serving(refuses=["temperature"]) as server:
        generator = EndpointGenerator(server.url, "m")
        with pytest.warns(UserWarning, match="does not heed temperature 0; its own is used") as told:
            generator.chat([prompts.exam(q) for q in QUESTIONS], Sampling(0.0, 1.0, 20), range(12))
        assert sum("temperature" in str(one.message) for one in told) == 1
        assert all("temperature" not in body for body in server.requests[-12:])


@pytest.mark.parametrize(
    ("manners", "prefill"),
    [({"template": "<answer>"}, True), ({"template": "<answer>", "prefill": False}, False), ({}, False)],
)
def test_a_model_that_does_not_count_is_known_to_go_on_by_the_prompt_that_its_server_shows(manners, prefill):
    with serving(counts=False, **manners) as server:
        assert EndpointGenerator(server.url, "m").prepare().prefill is prefill


PENALIZED = Sampling(0.0, 1.0, 20, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("heeded", "sent", "probes"),
    [
        ("repetition_penalty", {"repetition_penalty": 1.1}, 5),
        ("repeat_penalty", {"repeat_penalty": 1.1, "repeat_last_n": 131_072}, 6),
    ],
)
def test_the_penalty_has_the_name_under_which_the_server_heeds_it(heeded, sent, probes, recwarn, tmp_path):
    """A server ignores the other name without a word."""
    with serving(penalty=heeded) as server:
        for _ in range(2):  # the second time from the log
            generator = EndpointGenerator(server.url, "m", log=CallLog(tmp_path))
            generator.chat([prompts.exam(q) for q in QUESTIONS], PENALIZED, range(12))
            assert generator.about["penalty_name"] == heeded
        for body in server.requests[-12:]:
            assert {name: value for name, value in body.items() if name.startswith("rep")} == sent
        assert len(server.requests) == probes + 12
        assert not [one for one in recwarn if "repetition_penalty" in str(one.message)]
    with serving() as server:
        EndpointGenerator(server.url, "m").chat([prompts.exam(QUESTIONS[0])], Sampling(0.0, 1.0, 20), [0])
        assert len(server.requests) == 3, "a protocol without a penalty does not ask for it"


@pytest.mark.parametrize("manners", [{"penalty": ""}, {"refuses": ["repetition_penalty"]}])
def test_a_penalty_that_the_server_ignores_or_refuses_is_recorded_and_warned_of(manners):
    with serving(**manners) as server:
        generator = EndpointGenerator(server.url, "m")
        with pytest.warns(UserWarning, match="does not heed repetition_penalty 1.1; its own is used"):
            generator.chat([prompts.exam(QUESTIONS[0])], PENALIZED, [0])
        assert generator.about["penalty_name"] == "" and not any(name.startswith("rep") for name in server.requests[-1])


def test_a_server_whose_text_does_not_repeat_is_asked_with_the_usual_name_and_the_doubt_is_told():
    with serving(thinks=5000) as server:
        generator = EndpointGenerator(server.url, "m")
        with pytest.warns(UserWarning, match="not known if the server heeds repetition_penalty"):
            generator.chat([prompts.exam(QUESTIONS[0])], PENALIZED, [0])
        assert generator.about["penalty_name"] is None and server.requests[-1]["repetition_penalty"] == 1.1


def test_with_one_of_both_only_the_one_that_says_something_is_sent():
    with serving(refuses=["both"]) as server:
        generator = EndpointGenerator(server.url, "m")
        for sampling, sent in (
            (Sampling(0.2, 1.0, 20), {"temperature": 0.2}),
            (Sampling(1.0, 0.8, 20), {"top_p": 0.8}),
            (Sampling(0.2, 0.8, 20), {"temperature": 0.2}),
        ):
            generator.chat([prompts.exam(QUESTIONS[0])], sampling, [1])
            body = server.requests[-1]
            assert {name: body[name] for name in ("temperature", "top_p") if name in body} == sent


def test_a_reasoning_model_that_thinks_before_the_first_word_is_probed_with_more_tokens():
    with serving(thinks=100) as server:
        generator = EndpointGenerator(server.url, "m")
        tree = grow_trees(QUESTIONS[:1], generator, growth=GROWTH, sampling=Sampling(1.0, 1.0, 300), seed=0)
        assert generator._features == Features() and (tree.stop.dropna() == "answer").all()
        [cut] = generator.chat([prompts.exam(QUESTIONS[0])], Sampling(1.0, 1.0, 50), [1])
        assert (cut.text, cut.stop) == ("", "length")


# --- forms of a reply ------------------------------------------------------------------------------------------------

TEXT = "Step 1: it is oral.\nAnswer: C"


def said(**manners):
    with serving(texts=[TEXT], **manners) as server:
        generator = EndpointGenerator(server.url, "m")
        [reply] = generator.chat([prompts.exam(QUESTIONS[0])], Sampling(1.0, 1.0, 50), [1])
        assert not generator.thinking_open
    return reply


def test_a_list_of_parts_is_a_reply():
    assert said(form="parts").text == TEXT


@pytest.mark.parametrize("form", ["thinking", "thinking parts"])
def test_thinking_beside_the_text_is_read_as_thinking(form):
    text = said(form=form).text
    assert text == f"<think>\nLet me see.\nAnswer: A?\n</think>\n\n{TEXT}"
    assert extract_answer(text, {"A": "x", "B": "y", "C": "z"}).letter == "C"


def test_thinking_without_a_text_is_a_response_that_never_ended_its_thinking():
    text = said(form="thinking only").text
    assert text == "<think>\nLet me see.\nAnswer: A?" and extract_answer(text, {"A": "x", "C": "z"}).letter is None


def test_no_message_at_all_is_an_empty_reply():
    reply = said(form="null", thinks=60)
    assert (reply.text, reply.stop) == ("", "length")


def test_a_tree_has_no_hidden_thinking_in_its_steps():
    with serving(form="thinking", prefill=False) as server:
        grown(server)


@pytest.mark.parametrize(
    ("manners", "close"),
    [
        ({"template": "<think>\n", "texts": ["yes so\n</think>\n\nyes"]}, "</think>"),
        ({"template": "[THINK]", "texts": ["yes so\n[/THINK]\n\nyes"]}, "[/THINK]"),
        ({"template": "\n", "texts": ["yes"]}, ""),
        ({"template": "<think>\n", "texts": ["yes"], "form": "thinking"}, ""),  # the server separates it
        ({"texts": ["yes so\n</think>\n\nyes"]}, "</think>"),  # only the reply's form tells
        ({"texts": ["so it is\n<unused95>yes"]}, "<unused95>"),
        ({"texts": ["<think>\nyes so\n</think>\n\nyes"]}, ""),
        ({"texts": ["yes"]}, ""),
    ],
)
def test_a_template_that_opens_the_thinking_is_found_out(manners, close):
    with serving(**manners) as server:
        generator = EndpointGenerator(server.url, "m")
        assert generator.thinking_open == bool(close) and generator.thinking_close == (close or None)
        # A template that is shown and opens nothing needs no reply.
        assert len(server.requests) == 1 + (manners.get("template") != "\n")


# --- rows ------------------------------------------------------------------------------------------------------------


def marked(n: int) -> str:
    """A text that only the prompt of the ``n``-th question holds."""
    return QUESTIONS[n].stem


@pytest.mark.parametrize("mode", [{"branching": (2, 1)}, {"branching": (2, 1), "search_mode": "full-path"}])
def test_a_filtered_question_has_no_tree_and_is_counted_with_the_servers_words(mode, tmp_path):
    growth = SearchSettings(**mode, max_frontier=2)
    with serving(filtered=marked(2)) as server:

        def rolled():
            generator = EndpointGenerator(server.url, "m", log=CallLog(tmp_path / "calls"))
            settings = dict(growth=growth, sampling=SAMPLING, seed=0, shard_size=4)
            return roll_out(QUESTIONS[:8], generator, tmp_path / "steps", shards=tmp_path / "shards", **settings)

        steps, ledger = rolled()
        ids = [question.question_id for question in QUESTIONS[:8]]
        assert set(steps.question_id) == {*ids} - {ids[2]} and ledger["refused"] == 1
        assert "content management policy" in ledger.examples["refused"] and ids[2] in ledger.examples["refused"]
        server.filtered = "nothing"
        paid = len(server.requests)
        steps, ledger = rolled()  # the server has changed its mind
        assert set(steps.question_id) == set(ids) and "refused" not in ledger
        assert 0 < len(server.requests) - paid < paid / 2


def test_screening_leaves_a_refused_question_out(tmp_path):
    with serving(filtered=marked(1)) as server:
        settings = dict(growth=GROWTH, sampling=SAMPLING, seed=0, screening_chains=4)
        generator = EndpointGenerator(server.url, "m")
        steps, ledger = roll_out(QUESTIONS[:4], generator, tmp_path / "a", shards=tmp_path / "b", **settings)
    assert QUESTIONS[1].question_id not in set(steps.question_id) and ledger["refused"] == 1


def test_a_tree_that_becomes_too_long_for_the_context_is_given_up_as_a_whole():
    longest = max(len(prompts.exam(question)[0]["content"]) for question in QUESTIONS)
    with serving(context=longest + 30) as server:  # room for the prompt and one step, not two
        dropped = DropCounts()
        generator = EndpointGenerator(server.url, "m", concurrency=1)
        short = min(QUESTIONS, key=lambda question: len(prompts.exam(question)[0]["content"]))
        long = max(QUESTIONS, key=lambda question: len(prompts.exam(question)[0]["content"]))
        assert len(prompts.exam(short)[0]["content"]) + 70 < len(prompts.exam(long)[0]["content"])
        growth = SearchSettings((1,))
        steps = grow_trees([short, long], generator, growth=growth, sampling=SAMPLING, seed=0, dropped=dropped)
    assert set(steps.question_id) == {short.question_id} and dropped == {"refused": 1}


def test_a_filtered_reflection_is_counted_and_not_asked_again():
    def turn(n: int) -> CorrectionText:
        return CorrectionText(QUESTIONS[n], (), ("Step 1: a guess.\n",), ("Step 1: it is.\n",))

    with serving(filtered=marked(1)) as server:
        generator = EndpointGenerator(server.url, "m")
        turns = {(f"q{n}", 0, 1): turn(n) for n in range(3)}
        written, dropped = write_reflections(turns, generator, sampling=SAMPLING, seed=0)
        assert server.refused == [400] and list(written["faults"][1]) == ["refused"]
    assert dropped["reflection_refused"] == 1
    assert "content management policy" in dropped.examples["reflection_refused"]


def test_an_evaluation_leaves_a_refused_question_out_of_both_models(tmp_path):
    exam = QUESTIONS[:6]
    with serving(filtered=marked(0)) as server, serving() as other:
        way = make_protocol("self-consistency", n_votes=3, max_tokens=60)
        base, tuned = EndpointGenerator(server.url, "m"), EndpointGenerator(other.url, "m")
        both = []
        for name, generator in (("base", base), ("medrefl", tuned)):
            both.append(collect_responses(exam, generator, model=name, protocol=way, seed=0))
        responses = pd.concat(both, ignore_index=True)
        assert (responses.stop == "refused").sum() == 1
        assert judge_answers(responses, exam, tuned, seed=0)["judged"].isna().all()
        kept, dropped = drop_refused(responses, tmp_path)
        assert kept.groupby("model").question_id.nunique().tolist() == [5, 5] and dropped == {"refused": 1}
        assert "base: endpoint" in dropped.examples["refused"]
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "base_self-consistency.parquet",
            "medrefl_self-consistency.parquet",
        ]
        same, none = drop_refused(kept)
        assert same.equals(kept) and none == {}

        begun = pd.DataFrame(
            [{"question_id": q.question_id, "behind": "a wrong step", "nodes": [0], "prefix": "Step 1: no.\n",
              "before": "A"} for q in exam[:2]]
        )  # fmt: skip
        by_id = {question.question_id: question for question in exam}
        repairs = continue_from(begun, by_id, base, model="base", sampling=SAMPLING, seed=0)
        assert repairs.stop.tolist() == ["refused", "end"] and len(drop_refused(repairs)[0]) == 1


def test_a_forced_answer_that_is_refused_leaves_the_question_out():
    exam = QUESTIONS[:2]
    longest = max(len(prompts.exam(question)[0]["content"]) for question in exam)
    with serving(context=longest + 2, thinks=20) as server:
        generator = EndpointGenerator(server.url, "m")
        way = make_protocol("budget", thinking_budget=10)
        responses = collect_responses(exam, generator, model="base", protocol=way, seed=0)
    assert "refused" in responses.stop.tolist() and "maximum context length" in "".join(responses.response)


def test_many_refusals_in_a_row_stop_the_stage_with_the_servers_words():
    with serving(filtered="Answer: X") as server:  # every prompt of ours
        generator = EndpointGenerator(server.url, "m", concurrency=3)
        with pytest.raises(MedReflError, match=r"HTTP 400: .*content management policy.*; 10 prompts in a row") as told:
            generator.chat([prompts.exam(question) for question in QUESTIONS], SAMPLING, range(12))
        assert "\n" not in str(told.value) and len(server.refused) <= 12


def test_refusals_with_replies_between_them_stop_nothing():
    odd = [prompts.exam(question) for question in QUESTIONS for _ in range(2)]
    with serving() as server:
        refusal = type(server).answer
        server.answer = lambda body: refusal(server, body)
        server.filtered = "trigger"
        messages = [
            [{"role": "user", "content": one[0]["content"] + (" trigger" if n % 2 else "")}]
            for n, one in enumerate(odd)
        ]
        generator = EndpointGenerator(server.url, "m", concurrency=1)
        replies = generator.chat(messages, SAMPLING, range(len(messages)))
    assert [one.stop for one in replies] == ["end", "refused"] * 12


def test_going_on_in_the_middle_of_a_line_repeats_nothing():
    """Where the turn is not continued, the model repeats the line that it goes on with; it is read once."""
    with serving(refuses=["prefill"]) as server:
        server.answer = lambda body: [server._choice("Answer: B", "stop", body, 0)]
        generator = EndpointGenerator(server.url, "m")
        [[one]] = generator.expand(
            [Prefix(prompts.exam(QUESTIONS[0]), (), "Step 1: no.\nAnswer:")], 1, None, SAMPLING, [[1]]
        )
        assert "breaks off" in server.requests[-1]["messages"][-1]["content"] if server.requests else True
    assert one.text == " B"
