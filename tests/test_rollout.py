"""Trees: their shape, their leaves and weights with a scripted generator; their seeds and shards with the student."""

import ast
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import medrefl_utils
from medrefl_utils.core import STEPS, Continuation, MedReflError, Question, Sampling, read_table, table_notes
from medrefl_utils.exam import answers, clinic, prompts, step_end
from medrefl_utils.models import Budget, Generator, LocalGenerator, derive_seed
from medrefl_utils.trees import (
    SearchSettings,
    grow_trees,
    roll_out,
    screen_questions,
    step_values,
    value_table,
    warn_of_limits,
)

QUESTION = Question("q", "Which?", {"A": "one", "B": "two"}, "B")
SAMPLING = Sampling(1.0, 1.0, 50)


class Script(Generator):
    """A generator that says what a table says: text so far -> the texts of its children, in turn."""

    thinking_open = False

    def __init__(self, children: Mapping[str, list[str]], stops: Mapping[str, str] | None = None):
        self.children, self.stops, self.seeds = children, stops or {}, []

    def expand(self, prefixes, k, steps, sampling, seeds, progress=None):
        assert steps == "line"
        self.seeds += [seed for row in seeds for seed in row]
        out = []
        for prefix in prefixes:
            texts = self.children["".join(map(chr, prefix.token_ids))]
            out.append([self._written(texts[i % len(texts)]) for i in range(k)])
        return out

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def _written(self, text: str) -> Continuation:
        stop = self.stops.get(text, "boundary" if text.endswith("\n") else "end")
        return Continuation(text, tuple(map(ord, text)), -1.0, stop)


def tree(script: Script, **growth) -> pd.DataFrame:
    return grow_trees([QUESTION], script, growth=SearchSettings(**growth), sampling=SAMPLING, seed=0)


def test_a_tree_by_hand():
    script = {"": ["a\n", "b\n"], "a\n": ["Answer: B"], "b\n": ["Answer: A", "c\n"], "b\nc\n": ["Answer: B"]}
    steps = tree(Script(script), branching=(2, 2, 1))
    steps = steps.fillna({"parent_id": -1, "answer": "-"})
    assert list(zip(steps.node_id, steps.parent_id, steps.kind, steps.text, steps.answer, strict=True)) == [
        (0, -1, "root", "", "-"),
        (1, 0, "step", "a\n", "-"),
        (2, 0, "step", "b\n", "-"),
        (3, 1, "leaf", "Answer: B", "B"),
        (4, 2, "leaf", "Answer: A", "A"),
        (5, 2, "step", "c\n", "-"),
        (6, 5, "leaf", "Answer: B", "B"),
    ]
    assert steps.outcome.fillna(0).tolist() == [0, 0, 0, 1, -1, 0, 1]
    assert steps.weight.tolist() == [1, 1, 1, 2, 1, 1, 1]  # both children of "a" say "Answer: B"
    assert steps.depth.tolist() == [0, 1, 1, 2, 2, 2, 3]


def test_identical_siblings_are_one_row_whose_leaves_count_for_all():
    # Unmerged: three children of the root, two of them "a"; each "a" has a right and a wrong leaf; "b" a wrong one.
    steps = tree(
        Script({"": ["a\n", "a\n", "b\n"], "a\n": ["Answer: B", "Answer: A"], "b\n": ["Answer: A"]}), branching=(3, 2)
    )
    assert steps.set_index("text").weight.to_dict() == {"": 1, "a\n": 2, "b\n": 1, "Answer: B": 2, "Answer: A": 2}
    assert step_values(steps).iloc[0] == (2 - 4) / 6


@pytest.mark.parametrize(
    ("children", "stops", "growth", "stop"),
    [
        ({"": ["no idea"]}, {}, {}, "unreadable"),
        ({"": ["Answer: none\n"], "Answer: none\n": [""]}, {}, {}, "unreadable"),
        ({"": ["on and on"]}, {"on and on": "length"}, {}, "tokens"),
        ({"": ["a\n"], "a\n": ["a\n"]}, {}, {}, "repeat"),
        ({"": ["a\n"], "a\n": ["b\n"]}, {}, {"max_depth": 2}, "depth"),
        ({"": ["abc\n"], "abc\n": ["def\n"]}, {}, {"max_path_tokens": 8}, "tokens"),
        ({"": ["\n"]}, {}, {}, "empty"),
    ],
)
def test_leaves_without_an_answer_are_wrong_and_say_why(children, stops, growth, stop):
    steps = tree(Script(children, stops), branching=(1,), **growth)
    leaf = steps.iloc[-1]
    assert (leaf.kind, leaf.stop, leaf.outcome, leaf.answer) == ("leaf", stop, -1.0, None)
    dropped = tree(Script(children, stops), branching=(1,), unfinished="drop", **growth)
    assert dropped.empty


def test_drop_leaves_out_only_what_leads_to_no_answer():
    steps = tree(Script({"": ["a\n", "b\n"], "a\n": ["Answer: B"], "b\n": ["hm"]}), branching=(2, 1), unfinished="drop")
    assert steps.text.tolist() == ["", "a\n", "Answer: B"]


@pytest.mark.parametrize(
    ("thinking_open", "first", "ends"),
    [
        (False, "Answer: A\n", True),
        (True, "Answer: A\n", False),  # the template opened a thinking, and nothing has closed it yet
        (False, "<think>\nAnswer: A\n", False),
        (False, "## Thinking\n\nAnswer: A\n", False),
        (True, "</think>\n\nAnswer: A\n", True),
        (False, "Answer choices A and B are not oral.\n", False),
        (False, "Answer A is an antiplatelet.\n", False),
        (False, "Step 4: the answer is A\n", False),
        (False, "## Reasoning\nStep 4: the answer is A\n", False),
        (False, "## Final Answer\nA. one\n", True),
        (False, "**Answer:**\nA\n", True),
    ],
)
def test_a_line_that_states_an_answer_ends_the_path_outside_of_a_thinking(thinking_open, first, ends):
    script = Script({"": [first], first: ["</think>\n## Final Response\nAnswer: B"]})
    script.thinking_open = thinking_open
    steps = tree(script, branching=(1,))
    assert steps.text.tolist() == (["", first] if ends else ["", first, "</think>\n## Final Response\nAnswer: B"])
    assert steps.iloc[-1][["answer", "stop"]].tolist() == ["A" if ends else "B", "answer"]


def test_a_short_step_may_come_twice_but_not_at_once_and_a_long_or_numbered_one_may_not():
    long = "It is the drug that lowers the cholesterol in blood.\n"
    for texts, stop in (
        (["Hm.\n", "so\n", "Hm.\n", "Answer: B"], "answer"),
        (["Hm.\n", "Hm.\n"], "repeat"),
        ([long, "so\n", long], "repeat"),
        (["Step 1: a\n", "so\n", "Step 1: a\n"], "repeat"),
    ):
        script = {"".join(texts[:n]): [texts[n]] for n in range(len(texts))}
        assert tree(Script(script), branching=(1,)).stop.dropna().tolist() == [stop]


def test_a_path_of_hundreds_of_steps_is_no_leaf_before_its_tokens_are_used():
    texts = [f"{i}.5\n" for i in range(600)]
    script = {"".join(texts[:n]): [texts[n]] for n in range(600)} | {"".join(texts): ["Answer: B"]}
    steps = tree(Script(script), branching=(1,), max_path_tokens=10**5)
    assert steps.depth.max() == 601 and steps.stop.dropna().tolist() == ["answer"]


def test_leaves_that_a_limit_cut_are_told_with_the_parameter_to_raise():
    growth = SearchSettings(max_path_tokens=200, max_depth=9)
    ledger = {"ended_answer": 94, "ended_run_on": 2, "ended_tokens": 3, "ended_depth": 1, "merged": 7, "calls": 500}
    message = (
        r"limits cut 6% of 100 leaves, which then have no answer. Raise: max_path_tokens \(200\) cut 3%, "
        r"max_step_tokens \(50\) cut 2%, max_depth \(9\) cut 1%$"
    )
    with pytest.warns(UserWarning, match=message):
        assert warn_of_limits(ledger, growth=growth, sampling=SAMPLING) == 0.06
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_of_limits(ledger | {"ended_answer": 114}, growth=growth, sampling=SAMPLING) == 0.05
        assert warn_of_limits({}, growth=growth, sampling=SAMPLING) == 0


def test_a_cut_leaf_names_the_limit_that_cut_it():
    """A step that fills the path's tokens is cut by these, whether or not it fills its own."""
    counts = Counter()
    script = {"": ["abcdefgh"], "abc\n": ["defgh"]}
    for children, stops, limit in (
        ({"": ["abcdefgh"]}, {"abcdefgh": "length"}, 8),
        (script, {"abcdefgh": "length"}, 99),
    ):
        growth = SearchSettings((1,), max_path_tokens=limit)
        grow_trees([QUESTION], Script(children, stops), growth=growth, sampling=SAMPLING, seed=0, counts=counts)
    assert counts == {"ended_tokens": 1, "ended_run_on": 1}


def test_a_path_without_an_answer_is_asked_for_one():
    """The scripted model ends its turn with the token that stands for it, which must go before the turn goes on."""

    class Ending(Script):
        def _written(self, text):
            row = super()._written(text)
            return Continuation(text, (*row.token_ids, 0), -1.0, "end") if row.stop == "end" else row

    script = Ending({"": ["so\n", "hm"], "so\n": [""], "hm\nAnswer:": [" B"], "so\nAnswer:": [" A"]})
    steps = tree(script, branching=(2, 1), force_answer=True)
    leaves = steps[steps.kind == "leaf"].set_index("text")
    assert leaves.answer.to_dict() == {"\nAnswer: B": "B", "Answer: A": "A"}
    assert leaves.outcome.to_dict() == {"\nAnswer: B": 1.0, "Answer: A": -1.0}
    assert step_values(steps).iloc[0] == 0
    assert tree(script, branching=(2, 1)).stop.dropna().tolist() == ["unreadable", "unreadable"]


def test_every_child_has_the_seed_of_its_place():
    script = Script({"": ["a\n", "b\n"], "a\n": ["Answer: B"], "b\n": ["Answer: A"]})
    tree(script, branching=(2, 1))
    assert script.seeds == [derive_seed(0, "q", place) for place in (".0", ".1", ".0.0", ".1.0")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branching": ()}, r"branching is \[\], expected at least one number"),
        ({"branching": (3, 0)}, r"branching is \[3, 0\]"),
        ({"max_depth": 0}, "max_depth is 0, expected at least 1"),
        ({"unfinished": "maybe"}, "unfinished is 'maybe', expected one of wrong, drop"),
        ({"steps": "word"}, "steps is 'word', expected one of line, paragraph, sentence"),
    ],
)
def test_impossible_growth_is_refused(settings, message):
    with pytest.raises(MedReflError, match=message):
        SearchSettings(**settings)


COUNTING = {"": [f"{i}\n" for i in range(4)]} | {
    f"{i}\n": [f"Answer: {'B' if i % 2 else 'A'}", f"{i}{i}\n"] for i in range(4)
}  # four steps; below each a leaf and a step that leads to a wrong leaf
COUNTING |= {f"{i}\n{i}{i}\n": ["Answer: A"] for i in range(4)}


@pytest.mark.parametrize(
    ("limits", "cut", "open_at_1", "leaves"),
    [
        ({}, {}, 4, 8),
        ({"max_frontier": 2}, {"cut_open": 2}, 2, 4),
        ({"max_leaves": 3}, {"cut_leaves": 1 + 3}, 3, 3),
    ],
)
def test_limits_cut_by_the_seed_count_what_they_cut_and_leave_valid_trees(limits, cut, open_at_1, leaves):
    counts, kept = Counter(), set()
    for seed in range(12):
        counts.clear()
        script = Script(COUNTING)
        steps = grow_trees(
            [QUESTION], script, growth=SearchSettings((4, 2, 1), **limits), sampling=SAMPLING, seed=seed, counts=counts
        )
        assert (steps.kind == "leaf").sum() == leaves
        assert {name: n for name, n in counts.items() if name.startswith("cut_") and n} == cut
        assert len(script.seeds) == 4 + 2 * open_at_1 + (steps.depth == 3).sum()  # what was cut was not expanded
        assert set(steps.parent_id.dropna()) <= set(steps.node_id) and len(value_table(steps)) == len(steps)
        kept.add(tuple(steps.text))
        again = grow_trees(
            [QUESTION], Script(COUNTING), growth=SearchSettings((4, 2, 1), **limits), sampling=SAMPLING, seed=seed
        )
        pd.testing.assert_frame_equal(steps, again)
    assert len(kept) > 1 if limits else len(kept) == 1


def test_a_question_with_the_leaves_that_were_asked_for_grows_no_further():
    counts = Counter()
    settings = {"sampling": SAMPLING, "seed": 0, "counts": counts}
    steps = grow_trees(
        [QUESTION], Script(COUNTING), growth=SearchSettings((4, 2, 1), target_right=2, target_wrong=2), **settings
    )
    assert steps.depth.max() == 2 and counts["cut_decided"] == 4
    assert sorted(steps.outcome.dropna()) == [-1, -1, 1, 1]
    counts.clear()
    steps = grow_trees(
        [QUESTION], Script(COUNTING), growth=SearchSettings((4, 2, 1), target_right=2, target_wrong=3), **settings
    )
    assert steps.depth.max() == 3 and not counts["cut_decided"]


def test_wrong_leaves_without_an_answer_decide_nothing():
    script = Script({"": ["Answer: B", "hm", "a\n"], "a\n": ["Answer: A"]})
    steps = tree(script, branching=(3, 1), target_right=1, target_wrong=1)
    assert steps.answer.dropna().tolist() == ["B", "A"]


def test_endings_are_counted_by_reason():
    counts = Counter()
    script = Script({"": ["a\n", "on", "\n", "Answer: B"], "a\n": ["a\n"]}, {"on": "length"})
    grow_trees([QUESTION], script, growth=SearchSettings((4, 1)), sampling=SAMPLING, seed=0, counts=counts)
    assert counts == {"ended_run_on": 1, "ended_empty": 1, "ended_answer": 1, "ended_repeat": 1}


class Chains(Script):
    """Whole chains in turn for each prefix, and their lines as steps."""

    def expand(self, prefixes, k, steps, sampling, seeds, progress=None):
        assert steps is None
        self.seeds += [seed for row in seeds for seed in row]
        rows = [self.children["".join(map(chr, p.token_ids))] for p in prefixes]
        return [[Continuation(t, tuple(map(ord, t)), -1.0, "end") for t in row[:k]] for row in rows]

    def cut(self, chain, steps):
        lines = chain.text.splitlines(keepends=True)
        return [
            Continuation(t, tuple(map(ord, t)), -1.0, "end" if n == len(lines) else "boundary")
            for n, t in enumerate(lines, 1)
        ]


def test_full_path_lays_chains_into_one_tree_and_branches_from_its_steps():
    script = Chains(
        {
            "": ["a\nb\nAnswer: B", "a\nc\nAnswer: A", "a\nb\nAnswer: B"],
            "a\n": ["d\nAnswer: A"],
            "a\nb\n": ["Answer: A"],
            "a\nc\n": ["Answer: A"],
        }
    )
    steps = tree(script, search_mode="full-path", branching=(3, 1), max_frontier=3).fillna({"parent_id": -1})
    assert (
        list(zip(steps.parent_id, steps.text, steps.weight, strict=True))
        == [
            (-1, "", 1),
            (0, "a\n", 3),  # three chains pass through it
            (1, "b\n", 2),
            (2, "Answer: B", 2),
            (1, "c\n", 1),
            (4, "Answer: A", 2),  # the second chain's, and that of the branch at "c"
            (1, "d\n", 1),
            (6, "Answer: A", 1),
            (2, "Answer: A", 1),
        ]
        or steps.weight.iloc[1] == 3
    )
    assert step_values(steps.replace({"parent_id": {-1: None}})).iloc[0] == (2 - 4) / 6
    assert len(set(script.seeds)) == 6


def test_full_path_draws_the_steps_it_branches_from_and_keeps_the_limits():
    chains = {"": [f"{i}\nAnswer: B" for i in range(5)]} | {f"{i}\n": ["Answer: A", "Answer: B"] for i in range(5)}
    picked = set()
    for seed in range(8):
        growth = SearchSettings((5, 2), search_mode="full-path", max_frontier=2)
        steps = grow_trees([QUESTION], Chains(chains), growth=growth, sampling=SAMPLING, seed=seed)
        branched = steps[steps.text == "Answer: A"].parent_id
        assert len(branched) == 2
        picked.add(tuple(branched))
    assert len(picked) > 1
    steps = tree(Chains(chains), search_mode="full-path", branching=(5, 2), max_frontier=2, max_leaves=7)
    assert (steps.kind == "leaf").sum() == 6  # five chains, and room for one start of two
    steps = tree(Chains(chains), search_mode="full-path", branching=(5, 2), max_frontier=2, max_leaves=3)
    assert (steps.kind == "leaf").sum() == 3


def test_full_path_needs_to_know_where_to_branch():
    with pytest.raises(MedReflError, match="max_frontier is 0, but search_mode full-path needs"):
        SearchSettings((3, 2), search_mode="full-path")


def test_questions_that_are_decided_get_no_tree():
    ask = [Question(str(i), "Which?", {"A": "one", "B": "two"}, "B") for i in range(3)]
    ease = pd.DataFrame({"question_id": ["0", "1", "2"], "chains": 4, "right": [4, 1, 0]})
    mixed, left_out = screen_questions(ask, ease)
    assert [q.question_id for q in mixed] == ["1"] and left_out == {"too_easy": 1, "too_hard": 1}


@pytest.fixture(scope="module")
def student(tiny_student):
    return LocalGenerator(tiny_student)


@pytest.mark.parametrize("steps", ["paragraph", "sentence"])
def test_the_student_writes_other_steps_too_the_same_with_and_without_kept_caches(student, tiny_student, steps):
    """The student writes one line a step and no blank line; a token read ahead is not in the step."""
    growth = SearchSettings((2, 2, 2), steps=steps)
    settings = {"growth": growth, "sampling": Sampling(1.0, 1.0, 250), "seed": 3}
    questions = clinic.make_exam(2, seed=2)
    before = student.usage.completion_tokens
    found = grow_trees(questions, student, **settings)
    written = student.usage.completion_tokens - before
    plain = grow_trees(questions, LocalGenerator(tiny_student, keep_gib=0.0), **settings)
    assert found.token_ids.map(list).tolist() == plain.token_ids.map(list).tolist()
    assert written >= found.n_tokens.sum()
    inner = found[found.kind == "step"]
    if steps == "paragraph":
        assert inner.empty and found.text[found.kind == "leaf"].str.count("\n").gt(2).all()
    else:
        assert all(step_end(text + "\nThen", steps) is not None for text in inner.text)


def test_the_students_trees_are_the_same_again_and_in_any_shard(student, tmp_path):
    questions = clinic.make_exam(6, seed=2)
    settings = {"growth": SearchSettings((2, 2)), "sampling": Sampling(1.0, 1.0, 80), "seed": 1}
    whole, _ = roll_out(questions, student, tmp_path / "a", shards=tmp_path / "sa", shard_size=6, **settings)
    parts, _ = roll_out(questions, student, tmp_path / "b", shards=tmp_path / "sb", shard_size=4, **settings)
    pd.testing.assert_frame_equal(whole.drop(columns="logprob"), parts.drop(columns="logprob"))
    leaves = whole[whole.kind == "leaf"]
    assert (leaves.stop == "answer").mean() > 0.9 and set(leaves.outcome) == {1.0, -1.0}
    assert leaves.groupby("question_id").weight.sum().eq(4).all()  # 2 x 2 paths a question, merged or not


def test_the_bar_shows_leaves_and_what_is_spent_of_the_budget(tiny_student, tmp_path, capsys):
    generator = LocalGenerator(tiny_student, budget=Budget(max_calls=900, max_cost=5.0, output_price=100.0))
    settings = dict(growth=SearchSettings((2, 2)), sampling=Sampling(1.0, 1.0, 64), seed=0)
    steps, _ = roll_out(clinic.make_exam(2, seed=2), generator, tmp_path / "a", shards=tmp_path / "s", **settings)
    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    assert f"calls={generator.spent.calls}/900" in last and f"cost={generator.spent.written / 1e4:.6g}/5" in last
    assert f"right={(steps.outcome > 0).sum()}, wrong={(steps.outcome < 0).sum()}" in last and "tokens/s=" in last
    assert generator.spent.calls > 10


def test_full_path_with_the_student_cuts_chains_as_steps_are_cut(student):
    questions = clinic.make_exam(4, seed=2)
    growth = SearchSettings((3, 2), search_mode="full-path", max_frontier=2)
    steps = grow_trees(questions, student, growth=growth, sampling=Sampling(1.0, 1.0, 80), seed=1)
    inner = steps[steps.kind == "step"]
    assert inner.text.str.endswith("\n").all() and (inner.text.str.count("\n") == 1).all()
    assert steps[steps.kind == "leaf"].groupby("question_id").weight.sum().eq(3 + 2 * 2).all()
    assert (steps[steps.kind != "root"].logprob < 0).all() and len(value_table(steps)) == len(steps)
    again = grow_trees(questions[::-1], student, growth=growth, sampling=Sampling(1.0, 1.0, 80), seed=1)
    one = [table[table.question_id == questions[0].question_id].text.tolist() for table in (steps, again)]
    assert one[0] == one[1]


def test_a_rerun_grows_only_what_is_missing_and_other_settings_lose_nothing_before_they_are_done(
    student, tmp_path, monkeypatch
):
    questions = clinic.make_exam(4, seed=2)
    folder, shards = tmp_path / "steps", tmp_path / "shards"
    settings = {"shards": shards, "growth": SearchSettings((1,)), "sampling": Sampling(1.0, 1.0, 80), "shard_size": 2}
    asked, left = [], [10**9]
    onward = student.expand_onward

    def counted(first, steps, sampling, then):
        def told(expansion, written):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            asked.append(expansion.of[1].question.question_id)
            return then(expansion, written)

        return onward(first, steps, sampling, told)

    monkeypatch.setattr(student, "expand_onward", counted)
    first, ledger = roll_out(questions, student, folder, seed=1, **settings)
    bytes_of = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(bytes_of) == ["part-00000.parquet", "part-00001.parquet"]
    assert ledger["completion_tokens"] >= first.n_tokens.sum() and ledger["ended_answer"] == 4
    one = sorted(shards.iterdir())[0]
    assert table_notes(one)["calls"] > 0
    # One shard is lost: it alone grows again, and every byte is as it was.
    one.unlink()
    (folder / "part-00007.parquet").write_bytes(b"of an older, longer run")
    asked.clear()
    again, ledger_again = roll_out(questions, student, folder, seed=1, **settings)
    assert len(set(asked)) == 2 and len(asked) < 20
    pd.testing.assert_frame_equal(first, again)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == bytes_of
    assert ledger == ledger_again
    # Another seed is stopped half way: the trees of the first are still there, and cost nothing to go back to.
    per_shard = len(asked)
    asked.clear()
    left[0] = per_shard + 1
    with pytest.raises(KeyboardInterrupt):
        roll_out(questions, student, folder, seed=2, **settings)
    left[0] = 10**9
    kept = len(list(shards.iterdir()))
    assert kept >= 2
    asked.clear()
    back, _ = roll_out(questions, student, folder, seed=1, **settings)
    assert asked == []
    pd.testing.assert_frame_equal(first, back)
    # The others are set aside, now that these trees are complete; the seed that was stopped takes its part back.
    assert len(list(shards.glob("*.parquet"))) == 2 and len(list(shards.glob("superseded/*"))) == kept - 2 > 0
    pd.testing.assert_frame_equal(read_table(folder, STEPS), first)
    part = {path.name: path.stat().st_mtime_ns for path in shards.glob("superseded/*")}
    roll_out(questions, student, folder, seed=2, **settings)
    now = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert len(now) == 2 and part.items() < now.items() and len(list(shards.glob("superseded/*"))) == 2


def shard_names(folder: Path, generator: LocalGenerator, question: Question = QUESTION, **settings) -> set[str]:
    """The names of the shards that one question is grown in; the folder holds no other."""
    settings = {
        "growth": SearchSettings((1,), max_path_tokens=6),
        "sampling": Sampling(1.0, 1.0, 4),
        "seed": 0,
    } | settings
    for part in folder.glob("shards/*.parquet"):
        part.unlink()
    with suppress(MedReflError):  # a screening of so few tokens leaves no question
        roll_out([question], generator, folder / "steps", shards=folder / "shards", **settings)
    return {part.stem for part in folder.glob("shards/*.parquet")}


def test_whatever_changes_the_trees_changes_the_name_of_their_shard(student, tmp_path, monkeypatch):
    """Otherwise another temperature or model would be given old trees."""
    with_options = replace(QUESTION, options={"A": "two", "B": "one"})
    changes = [
        *({"sampling": Sampling(*to)} for to in ((0.9, 1.0, 4), (1.0, 0.9, 4), (1.0, 1.0, 3), (1.0, 1.0, 4, 1.1))),
        *({"growth": SearchSettings((1,), **{name: value})} for name, value in (
            ("max_path_tokens", 7), ("max_depth", 2), ("steps", "sentence"), ("unfinished", "drop"), ("max_leaves", 3),
            ("force_answer", True), ("max_frontier", 2), ("target_right", 1), ("target_wrong", 1),
        )),
        {"growth": SearchSettings((2,), max_path_tokens=6)},
        {"growth": SearchSettings((1,), max_path_tokens=6, search_mode="full-path", max_frontier=1)},
        {"seed": 1},
        *({"question": q} for q in (with_options, replace(QUESTION, gold="A"), replace(QUESTION, stem="Which one?"))),
        {"question": replace(QUESTION, question_id="p")},
    ]  # fmt: skip
    found = [shard_names(tmp_path, student, **change) for change in [{}, *changes]]
    screened = {"growth": SearchSettings((1,), max_path_tokens=6), "screening_chains": 1}
    found += [shard_names(tmp_path, student, **screened | change) for change in ({}, {"screening_chains": 2})]
    with monkeypatch.context() as patch:
        patch.setattr(student, "key", "another model")
        found += [shard_names(tmp_path, student), shard_names(tmp_path, student, **screened)]
    names = set.union(*found)
    assert len(names) == sum(map(len, found)) >= len(changes) + 5  # no name twice
    assert shard_names(tmp_path, student) == found[0]
    # What changes no tree changes no name.
    assert shard_names(tmp_path, student, replace(QUESTION, source="another file"), shard_size=7) == found[0]


def test_comments_and_docstrings_grow_no_new_trees_and_code_does(student, tmp_path, monkeypatch):
    before = shard_names(tmp_path, student)
    copied = Path(shutil.copytree(Path(answers.__file__).parent, tmp_path / "answers"))
    monkeypatch.setattr(answers, "__file__", str(copied / "__init__.py"))
    shutil.copy(prompts.__file__, tmp_path / "prompts.py")
    monkeypatch.setattr(prompts, "__file__", str(tmp_path / "prompts.py"))
    for file in (copied / "reader.py", tmp_path / "prompts.py"):
        source = file.read_text()
        docstring = ast.get_docstring(ast.parse(source), clean=False)
        assert docstring in source
        file.write_text("# A comment.\n\n" + source.replace(docstring, "Other words.") + "\n\n# Another.\n")
        assert shard_names(tmp_path, student) == before
        file.write_text(source + "\n_ADDED = 1\n")
        assert not shard_names(tmp_path, student) & before
        file.write_text(source)
        assert shard_names(tmp_path, student) == before


def test_a_change_of_the_code_that_writes_or_reads_makes_new_trees(tmp_path):
    """In a copy of the package; what reads replies of a server counts, and what the model in this process imports."""
    shutil.copytree(Path(medrefl_utils.__file__).parent, tmp_path / "medrefl_utils")
    changed = [
        *("trees/rollout.py", "trees/search.py", "exam/steps.py", "exam/answers/reader.py", "models/chat_templates.py"),
        *("models/generators/endpoint.py", "models/generators/local.py", "models/generators/continuous.py"),
        *("models/generators/servers/replies.py", "models/generators/servers/features.py"),
    ]
    script = (
        "from pathlib import Path; from medrefl_utils.trees import rollout; keys = [rollout._code()]\n"
        f"for name in {changed}:\n"
        "    file = Path('medrefl_utils', name); whole = file.read_text(); file.write_text(whole + '_CHANGED = 1')\n"
        "    keys.append(rollout._code()); file.write_text(whole)\n"
        "print(*keys, rollout._code())"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    first, *others, last = told.stdout.split()
    assert first == last and len({first, *others}) == 1 + len(changed)


def test_the_first_pass_leaves_out_what_is_decided_and_says_so(student, tmp_path):
    questions = clinic.make_exam(16, seed=2)
    settings = {"growth": SearchSettings((2,)), "sampling": Sampling(1.0, 1.0, 80), "seed": 1, "screening_chains": 3}
    steps, ledger = roll_out(questions, student, tmp_path / "steps", shards=tmp_path / "shards", **settings)
    grown = steps.question_id.nunique()
    assert 0 < grown < 16 and grown + ledger["too_easy"] + ledger["too_hard"] == 16
    assert ledger["calls"] >= 16 * 3 + 2 * grown
    alone = grow_trees(questions, student, growth=SearchSettings((2,)), sampling=Sampling(1.0, 1.0, 80), seed=1)
    alone = alone[alone.question_id.isin(steps.question_id)].reset_index(drop=True)
    pd.testing.assert_frame_equal(steps.drop(columns="logprob"), alone.drop(columns="logprob"), check_dtype=False)
