"""Evaluation: the student's real responses, scored."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrefl_utils.core import RESPONSES, Continuation, MedReflError, Question, Sampling, read_table
from medrefl_utils.evaluation import (
    PROTOCOLS,
    QUESTION_CHANGES,
    Protocol,
    collect_responses,
    evaluate,
    judge_answers,
    make_protocol,
    published_temperature,
    published_top_p,
    score_responses,
)
from medrefl_utils.exam import clinic
from medrefl_utils.models import Generator, LocalGenerator, Usage
from medrefl_utils.models.generators.interface import derive_seed

QUESTIONS = clinic.make_exam(150, seed=4, split="test")
SAMPLED = Protocol("sampled", (Sampling(1.0, 1.0, 256),) * 2)
GREEDY = Protocol("greedy", (Sampling(0.0, 1.0, 256),))


@pytest.fixture(scope="module")
def student(tiny_student):
    return LocalGenerator(tiny_student)


@pytest.fixture(scope="module")
def responses(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("responses")
    table = evaluate(QUESTIONS, student, folder, model="base", protocols=[SAMPLED, GREEDY], seed=0)
    return table, folder


def test_one_response_a_question_and_run(responses):
    table, folder = responses
    counts = table.groupby("protocol").size().to_dict()
    assert counts == {"sampled": 300, "greedy": 150}
    assert table.groupby(["protocol", "run", "question_id"]).size().eq(1).all()
    assert sorted(f.name for f in folder.iterdir()) == ["base_greedy.parquet", "base_sampled.parquet"]
    kept = read_table(folder / "base_greedy.parquet", RESPONSES)
    greedy = table[table.protocol == "greedy"].reset_index(drop=True)
    kept, greedy = (one.astype(object).where(one.notna(), None) for one in (kept, greedy))  # pandas 2 and 3 alike
    pd.testing.assert_frame_equal(kept, greedy)


def test_the_student_answers_step_by_step_and_errs_as_it_was_taught(responses):
    table, _ = responses
    scores = score_responses(table).set_index("protocol")
    # The window for the shipped student, widened by the sampling error of these few questions.
    assert 0.45 < scores.accuracy["sampled"] < 0.80
    assert scores.accuracy["greedy"] < 0.92
    assert scores.unreadable.max() < 0.03
    by_id = {case.question.question_id: case for case in clinic.make_cases(150, seed=4, split="test")}
    wrong = table[(table.protocol == "sampled") & ~table.correct]
    kinds = {"elimination": 0, "knowledge": 0}
    for row in wrong.itertuples():
        case, lines = by_id[row.question_id], row.response.splitlines()
        first = next((s for i, s in enumerate(lines) if clinic.is_true(case, lines[:i], s) is False), "")
        kinds["elimination"] += any(word in first for word in ("suggests", "leaves", "fits"))
        kinds["knowledge"] += any(word in first for word in ("arises", "confirmed", "treated"))
    assert min(kinds.values()) >= 5, kinds


def test_runs_draw_differently_and_models_alike(student):
    first = collect_responses(QUESTIONS[:20], student, model="base", protocol=SAMPLED, seed=0)
    again = collect_responses(QUESTIONS[:20], student, model="medrefl", protocol=SAMPLED, seed=0)
    assert first.response.tolist() == again.response.tolist()
    assert first.response[:20].tolist() != first.response[20:].tolist()
    other = collect_responses(QUESTIONS[:20], student, model="base", protocol=SAMPLED, seed=1)
    assert first.response.tolist() != other.response.tolist()


# --- protocols ---


@pytest.mark.parametrize(
    ("u", "temperature"),
    [
        (0.0, 0.2),
        (0.15, 0.4),  # 0.5 x 0.2 + 1.25 x 0.2^2
        (0.4, 0.6),  # 0.2 + 0.2
        (0.55, 0.7),  # 0.4 + 1.5 x 0.1
        (0.7, 0.8),
        (0.8375, 0.9),  # 0.7 + 0.15 - 0.0125
        (0.95, 1.0),  # 0.7 + 0.3 - 0.05
        (0.97, 1.0),
        (1.0, 1.0),
    ],
)
def test_quantiles_of_the_published_temperature(u: float, temperature: float) -> None:
    assert published_temperature(u) == pytest.approx(temperature, abs=1e-9)


@pytest.mark.parametrize(("u", "top_p"), [(0, 0.2), (0.15, 0.4), (0.3, 0.6), (0.65, 0.8), (0.99999, 1.0)])
def test_quantiles_of_the_published_top_p(u: float, top_p: float) -> None:
    assert published_top_p(u) == pytest.approx(top_p, abs=1e-4)


@given(st.floats(0, 1), st.floats(0, 1))
def test_quantiles_rise_within_their_range(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0.2 <= published_temperature(low) <= published_temperature(high) <= 1.0
    assert 0.2 <= published_top_p(low) <= published_top_p(high) <= 1.0


def test_the_density_is_the_published_one() -> None:
    drawn = np.array([published_temperature(u) for u in (np.arange(200_000) + 0.5) / 200_000])
    share = np.histogram(drawn, bins=[0.2, 0.4, 0.6, 0.8, 0.9, 0.9999, 1.01])[0] / len(drawn)
    # integrals of the density between these; what is missing falls on 1.0
    assert share == pytest.approx([0.15, 0.25, 0.30, 0.1375, 0.1125, 0.05], abs=1e-3)


def test_published_is_three_seeded_runs() -> None:
    ways = [make_protocol("published", seed=seed, max_tokens=99, temperature=0.0) for seed in (5, 5, 6)]
    assert ways[0] == ways[1] != ways[2]
    assert len(ways[0].samplings) == len(set(ways[0].samplings)) == 3
    for sampling in ways[0].samplings:
        assert (sampling.repetition_penalty, sampling.max_tokens) == (1.1, 99)
        assert sampling.temperature == round(sampling.temperature, 2) and sampling.top_p == round(sampling.top_p, 2)


def test_protocols_by_name() -> None:
    settings = dict(
        n_runs=2, temperature=0.7, top_p=0.9, max_tokens=50, repetition_penalty=1.05, n_votes=4, thinking_budget=8
    )
    ways = {name: make_protocol(name, **settings) for name in PROTOCOLS}
    drawn, greedy = Sampling(0.7, 0.9, 50, 1.05), Sampling(0.0, 1.0, 50, 1.05)
    assert ways["sampled"] == Protocol("sampled", (drawn, drawn))
    assert ways["greedy"] == Protocol("greedy", (greedy,))
    assert ways["self-consistency"] == Protocol("self-consistency", (drawn,) * 4, vote=True)
    assert ways["budget"] == Protocol("budget", (Sampling(0.0, 1.0, 8, 1.05),), budget=True)
    for name in QUESTION_CHANGES:
        assert ways[name] == Protocol(name, (greedy,), change=name)
    with pytest.raises(MedReflError, match="protocol 'beam': expected one of published, greedy"):
        make_protocol("beam")


class Scripted(Generator):
    """Writes what it is told, a list of texts for each question's stem; a token is a character."""

    def __init__(self, texts: dict[str, list[str]]):
        self.texts = texts
        self.asked: dict[str, int] = {}
        self.prefixes: list[str] = []
        self.usage = Usage()

    def chat(self, messages, sampling, seeds, progress=None):
        self.usage.seconds += len(messages)
        written = []
        for message in messages:
            stem = message[0]["content"].split("\n")[0]
            text = self.texts[stem][self.asked.get(stem, 0)]
            self.asked[stem] = self.asked.get(stem, 0) + 1
            cut = text[: sampling.max_tokens]
            written.append(Continuation(cut, self.encode(cut), -1.0, "end" if cut == text else "length"))
        return written

    def expand(self, prefixes, k, stop, sampling, seeds, progress=None):
        self.prefixes += ["".join(map(chr, prefix.token_ids)) for prefix in prefixes]
        self.forced_seeds = seeds
        return [[Continuation(" B", self.encode(" B"), -0.5, "end")] for _ in prefixes]

    def encode(self, text):
        return tuple(map(ord, text))


ASKED = [Question(stem, stem, {"A": "x", "B": "y", "C": "z"}, "B", "exam") for stem in ("one?", "two?", "three?")]


def test_the_majority_is_the_answer() -> None:
    votes = {
        "one?": ["Answer: A", "Answer: B, I think", "hm", "Answer: B"],
        "two?": ["Answer: C", "Answer: A", "Answer: C", "Answer: A"],  # a tie: the first vote counts
        "three?": ["hm", "hm", "hm", "hm"],
    }
    way = make_protocol("self-consistency", n_votes=4, max_tokens=99)
    table = collect_responses(ASKED, Scripted(votes), model="base", protocol=way, seed=0)
    assert table["response"].tolist() == ["Answer: B, I think", "Answer: C", "hm"]
    assert table["answer"].tolist()[:2] == ["B", "C"] and pd.isna(table["answer"][2])
    assert table["rule"].tolist() == ["vote 2/4", "vote 2/4", "none"]
    assert table["correct"].tolist() == [True, False, False]
    assert table["n_tokens"].tolist() == [sum(map(len, texts)) for texts in votes.values()]
    assert set(table["run"]) == {0} and list(table.columns) == RESPONSES.names


def test_thinking_is_cut_at_the_budget_and_the_answer_asked_for() -> None:
    texts = {"one?": ["Answer: A"], "two?": ["Step 1: so many words"], "three?": ["<think>so many words"]}
    generator = Scripted(texts)
    table = collect_responses(
        ASKED, generator, model="base", protocol=make_protocol("budget", thinking_budget=12), seed=0
    )
    assert generator.prefixes == ["Step 1: so m\nAnswer:", "<think>so ma\n</think>\n\nAnswer:"]
    assert table["response"].tolist() == ["Answer: A"] + [f"{prefix} B" for prefix in generator.prefixes]
    assert table["stop"].tolist() == ["end", "forced", "forced"]
    # a forced answer is drawn with the seed of its response: of its question and run, the same for all models
    assert generator.forced_seeds == [[derive_seed(0, name, 0)] for name in ("two?", "three?")]
    assert table["answer"].tolist() == ["A", "B", "B"]
    assert table["n_tokens"].tolist() == [len(text) for text in table["response"]]


def test_a_thinking_that_the_template_opened_is_closed_with_the_templates_mark() -> None:
    generator = Scripted({"one?": ["so many words"], "two?": ["so[/THINK]Answer: A"], "three?": ["no[/THINK]words"]})
    generator.thinking_open, generator.thinking_close = True, "[/THINK]"
    way = make_protocol("budget", thinking_budget=12)
    table = collect_responses(ASKED, generator, model="base", protocol=way, seed=0)
    assert generator.prefixes == ["so many word\n[/THINK]\n\nAnswer:", "so[/THINK]An\nAnswer:", "no[/THINK]wo\nAnswer:"]
    assert table["answer"].tolist() == ["B", "B", "B"]


def test_a_response_says_what_was_shown() -> None:
    generator = Scripted({"one?": ["Answer: B: z"]})
    table = collect_responses(ASKED[:1], generator, model="base", protocol=GREEDY, seed=0)
    (row,) = table.itertuples()
    assert dict(row.options) == ASKED[0].options and row.seconds > 0
    assert (row.answer, row.stated_letter, row.conflict) == ("C", "B", True)
    other = collect_responses(
        [Question("other", "ONE?  ", {"A": "z", "B": "x", "C": "y"}, "C")],
        Scripted({"ONE?": ["A"]}), model="base", protocol=GREEDY, seed=0,
    )  # fmt: skip
    assert (row.stem_id, row.content) == (other["stem_id"][0], other["content"][0])


class Judge:
    """A generator that replies by what stands in the response that it is shown; it keeps what it was asked."""

    thinking_open = False

    def __init__(self, replies: dict[str, list[str]]):
        self.replies, self.asked = {key: list(texts) for key, texts in replies.items()}, []

    def chat(self, messages, sampling, seeds, progress=None):
        assert sampling.temperature == 0
        self.asked += [message[0]["content"] for message in messages]
        texts = [next(r for key, r in self.replies.items() if key in a).pop(0) for a in self.asked[-len(messages) :]]
        n = sampling.max_tokens  # a token is a word
        cut = [re.findall(r"\s*\S+", text)[:n] for text in texts]
        stops = ["end" if "".join(words) == text else "length" for words, text in zip(cut, texts, strict=True)]
        return [
            Continuation("".join(words), tuple(range(len(words))), -1.0, stop)
            for words, stop in zip(cut, stops, strict=True)
        ]


def test_a_judge_reads_what_the_rules_leave_and_both_figures_are_shown(responses):
    table = responses[0]
    table = table[table.protocol == "greedy"].head(5).reset_index(drop=True)
    gold = table["gold"].tolist()
    other = next(letter for letter in "ABCD" if letter != gold[1])
    table = table.assign(answer=[None, None, None, None, gold[4]], correct=[False] * 4 + [True])
    table["response"] = ["first", "second", "third", "fourth", "fifth"]
    judge = Judge(
        {
            "first": [f"Settles on: {gold[0]}"],
            "second": [f"It settles on: {other}."],
            "third": ["Settles on: none"],
            "fourth": ["I think so.", "Settles on: Z", "hm"],  # never a letter of the question
        }
    )
    read = judge_answers(table, QUESTIONS, judge, seed=0)
    assert read["judged"].fillna("-").tolist() == [gold[0], other, "-", "-", "-"]
    assert len(judge.asked) == 6 and not any("fifth" in text for text in judge.asked)
    assert read["answer"].isna().sum() == 4, "the rules' own reading stands"
    [row] = score_responses(read).to_dict("records")
    assert (row["accuracy"], row["accuracy_judged"]) == (0.2, 0.4)
    assert np.isnan(score_responses(table)["accuracy_judged"].iloc[0])


def test_a_judge_that_thinks_gets_room_and_what_stays_unread_is_printed(responses, capsys):
    table = responses[0]
    table = table[table.protocol == "greedy"].head(3).reset_index(drop=True)
    table = table.assign(answer=[None] * 3, correct=False, response=["first", "second", "third"])
    gold = table["gold"].tolist()
    long = "word " * 100
    thinks = {"first": f"<think>{long}</think>Settles on: {gold[0]}", "second": f"Settles on: {gold[1]}"}
    judge = Judge({key: [text] * 6 for key, text in {**thinks, "third": f"<think>{long * 6}"}.items()})
    read = judge_answers(table, QUESTIONS, judge, seed=0)
    assert read["judged"].fillna("-").tolist() == [gold[0], gold[1], "-"]
    assert len(judge.asked) == 3 + 2 + 2 + 2 + 1 + 1  # 24 tokens are not enough for two, 512 not for one
    assert capsys.readouterr().out == "judge: 1 of 3 responses stay unread: 1 truncated at the token limit\n"
    inside = Judge({key: [text.removeprefix("<think>")] * 3 for key, text in thinks.items()} | {"third": ["hm"] * 3})
    inside.thinking_open = True  # by the template: without a closing mark nothing is a verdict
    read = judge_answers(table, QUESTIONS, inside, seed=0)
    assert read["judged"].fillna("-").tolist() == [gold[0], "-", "-"] and len(inside.asked) == 3 + 2 + 2
    told = "judge: 2 of 3 responses stay unread: 2 without a verdict that can be read\n"
    assert capsys.readouterr().out == told
    short = Judge({key: [text] * 3 for key, text in {**thinks, "third": "Settles on: none"}.items()})
    assert judge_answers(table, QUESTIONS, short, seed=0, max_tokens=50)["judged"].isna().tolist() == [
        True,
        False,
        True,
    ]


def test_json_is_asked_for_and_read(student):
    class Says(Generator):
        usage = Usage()

        def chat(self, messages, sampling, seeds, progress=None):
            assert all('"reason"' in message[0]["content"] for message in messages)
            return [Continuation('{"reason": "it fits", "answer": "B"}', (1,), -1.0, "end") for _ in messages]

    table = collect_responses(QUESTIONS[:3], Says(), model="base", protocol=GREEDY, seed=0, answer_format="json")
    assert table["answer"].tolist() == ["B"] * 3 and set(table["rule"]) == {"json"}
    with pytest.raises(MedReflError, match="answer_format is 'xml', expected one of steps, json"):
        collect_responses(QUESTIONS[:3], Says(), model="base", protocol=GREEDY, seed=0, answer_format="xml")
