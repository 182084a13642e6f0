"""Trees: their shape, their leaves and weights with a scripted generator; their seeds and shards with the student."""

from collections.abc import Mapping

import pandas as pd
import pytest

from medrefl_utils import clinic, prompts
from medrefl_utils.generators import seed_of
from medrefl_utils.generators.local import LocalGenerator
from medrefl_utils.records import Continuation, MedReflError, Question, Sampling
from medrefl_utils.rollout import Growth, grow, roll_out
from medrefl_utils.values import step_values

QUESTION = Question("q", "Which?", {"A": "one", "B": "two"}, "B")
SAMPLING = Sampling(1.0, 1.0, 50)


class Script:
    """A generator that says what a table says: text so far -> the texts of its children, in turn."""

    def __init__(self, children: Mapping[str, list[str]], stops: Mapping[str, str] | None = None):
        self.children, self.stops, self.seeds = children, stops or {}, []

    def expand(self, prefixes, k, stop, sampling, seeds, progress=None):
        assert stop == prompts.STEP_BOUNDARY
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
    return grow([QUESTION], script, growth=Growth(**growth), sampling=SAMPLING, seed=0)


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
        ({"": ["Answer: none\n"]}, {}, {}, "unreadable"),
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


def test_a_path_without_an_answer_is_asked_for_one():
    """The scripted model ends its turn with the token that stands for it, which must go before the turn goes on."""

    class Ending(Script):
        def _written(self, text):
            row = super()._written(text)
            return Continuation(text, (*row.token_ids, 0), -1.0, "end") if row.stop == "end" else row

    script = Ending({"": ["a\n", "hm"], "a\n": [""], "hm\nAnswer:": [" B"], "a\nAnswer:": [" A"]})
    steps = tree(script, branching=(2, 1), ask_answer=True)
    leaves = steps[steps.kind == "leaf"].set_index("text")
    assert leaves.answer.to_dict() == {"\nAnswer: B": "B", "Answer: A": "A"}
    assert leaves.outcome.to_dict() == {"\nAnswer: B": 1.0, "Answer: A": -1.0}
    assert step_values(steps).iloc[0] == 0
    assert tree(script, branching=(2, 1)).stop.dropna().tolist() == ["unreadable", "unreadable"]


def test_every_child_has_the_seed_of_its_place():
    script = Script({"": ["a\n", "b\n"], "a\n": ["Answer: B"], "b\n": ["Answer: A"]})
    tree(script, branching=(2, 1))
    assert script.seeds == [seed_of(0, "q", place) for place in (".0", ".1", ".0.0", ".1.0")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branching": ()}, r"branching is \[\], expected at least one number"),
        ({"branching": (3, 0)}, r"branching is \[3, 0\]"),
        ({"max_depth": 0}, "max_depth is 0, expected at least 1"),
        ({"unfinished": "maybe"}, "unfinished is 'maybe', expected one of wrong, drop"),
    ],
)
def test_impossible_growth_is_refused(settings, message):
    with pytest.raises(MedReflError, match=message):
        Growth(**settings)


@pytest.fixture(scope="module")
def student(tiny_student):
    return LocalGenerator(tiny_student)


def test_the_students_trees_are_the_same_again_and_in_any_shard(student, tmp_path):
    questions = clinic.make_exam(6, seed=2)
    settings = {"growth": Growth((2, 2)), "sampling": Sampling(1.0, 1.0, 80), "seed": 1, "model_key": "m"}
    whole = roll_out(questions, student, tmp_path / "a", shard_size=6, **settings)
    parts = roll_out(questions, student, tmp_path / "b", shard_size=4, **settings)
    pd.testing.assert_frame_equal(whole.drop(columns="logprob"), parts.drop(columns="logprob"))
    leaves = whole[whole.kind == "leaf"]
    assert (leaves.stop == "answer").mean() > 0.9 and set(leaves.outcome) == {1.0, -1.0}
    assert leaves.groupby("question_id").weight.sum().eq(4).all()  # 2 x 2 paths a question, merged or not


def test_a_rerun_grows_only_the_shards_that_are_missing_or_changed(student, tmp_path, monkeypatch):
    questions = clinic.make_exam(4, seed=2)
    settings = {"growth": Growth((1,)), "sampling": Sampling(1.0, 1.0, 80), "model_key": "m", "shard_size": 2}
    first = roll_out(questions, student, tmp_path, seed=1, **settings)
    (tmp_path / "part-00001.parquet").unlink()
    (tmp_path / "part-00007.parquet").write_bytes(b"of an older, longer run")
    asked = []
    expand = student.expand
    monkeypatch.setattr(
        student, "expand", lambda prefixes, *rest: asked.append(len(prefixes)) or expand(prefixes, *rest)
    )
    again = roll_out(questions, student, tmp_path, seed=1, **settings)
    assert asked[0] == 2 and sum(asked) < 2 * len(asked) + 1
    pd.testing.assert_frame_equal(first, again)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["part-00000.parquet", "part-00001.parquet"]
    asked.clear()
    roll_out(questions, student, tmp_path, seed=2, **settings)
    assert asked[0] == 2 and asked.count(2) >= 2  # another seed: every shard again
