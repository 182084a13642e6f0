"""Where models are put, by hand; and that a model goes on from there as if it had written it."""

import pandas as pd

from medrefl_utils.core import CONTINUATIONS, STEPS, Continuation, Question, Sampling
from medrefl_utils.evaluation import continue_from, example_continuations, starting_points
from medrefl_utils.evaluation.correction_rates import RIGHT_ANSWER, WRONG_ANSWER, WRONG_STEP
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import LocalGenerator
from medrefl_utils.models.generators.interface import derive_seed
from medrefl_utils.trees import SearchSettings, grow_trees

GREEDY = Sampling(0.0, 1.0, 256)
QUESTION = Question("q", "Which?", {"A": "one", "B": "two", "C": "three"}, "B")


def node(node_id: int, parent_id: int | None, text: str, answer: str | None = None, outcome: float = float("nan")):
    kind = "root" if parent_id is None else "leaf" if outcome == outcome else "step"
    return {
        **dict.fromkeys(STEPS.names),
        **{"question_id": "q", "node_id": node_id, "parent_id": parent_id, "text": text, "kind": kind},
        **{"answer": answer, "outcome": outcome, "stop": "answer" if kind == "leaf" else None, "weight": 1},
    }


# "a" is good (right, right, wrong below it), "b" is where the second wrong path errs; its leaf "Answer: C" ends it.
TREE = pd.DataFrame(
    [
        node(0, None, ""),
        node(1, 0, "a\n"),
        node(2, 0, "b\n"),
        node(3, 1, "Answer: B", "B", 1.0),
        node(4, 1, "c\n"),
        node(5, 2, "Answer: C", "C", -1.0),
        node(6, 4, "Answer: B", "B", 1.0),
    ]
)


class Says:
    """A generator whose every text is the same; it remembers where it was put."""

    def __init__(self, text: str, thinking_open: bool = False):
        self.text, self.seen, self.thinking_open = text, [], thinking_open

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def expand(self, prefixes, k, stop, sampling, seeds, progress=None):
        assert stop is None and all(len(row) == k for row in seeds)
        self.seen += ["".join(map(chr, prefix.token_ids)) for prefix in prefixes]
        self.seeds = seeds
        return [[Continuation(self.text, tuple(map(ord, self.text)), -1.0, "end")] * k for _ in prefixes]


def test_one_wrong_path_up_to_its_error_and_whole_and_one_right_path():
    begun = starting_points(TREE, seed=0).set_index("behind")
    assert begun.loc[WRONG_STEP, ["nodes", "prefix", "before"]].tolist() == [[2], "b\n", "C"]
    assert begun.loc[WRONG_ANSWER, ["nodes", "prefix", "before"]].tolist() == [[2, 5], "b\nAnswer: C", "C"]
    assert begun.loc[RIGHT_ANSWER, "before"] == "B" and begun.loc[RIGHT_ANSWER, "nodes"] in ([1, 3], [1, 4, 6])


def test_the_share_of_wrong_answers_is_the_mean_over_the_questions():
    """Question q: 1 of 3 stated answers is wrong; r: a leaf that was written thrice is wrong, one states no answer."""
    rows = [node(0, None, ""), node(1, 0, "Answer: C", "C", -1.0), node(2, 0, "hm", None, -1.0)]
    other = pd.DataFrame(rows).assign(question_id="r", weight=[1, 3, 1])
    other.loc[2, "stop"] = "unreadable"
    begun = starting_points(pd.concat([TREE, other], ignore_index=True), seed=0)
    assert set(begun["wrong_share"].round(9)) == {round((1 / 3 + 1) / 2, 9)} and set(begun["question_id"]) == {"q"}


def test_an_error_that_is_the_last_step_gives_no_starting_point():
    """Below "a", the answer itself is the first step that falls: nothing is left to repair."""
    rows = [
        node(0, None, ""),
        node(1, 0, "a\n"),
        node(2, 1, "Answer: B", "B", 1.0),
        node(3, 1, "Answer: C", "C", -1.0),
    ]
    assert starting_points(pd.DataFrame(rows), seed=0).empty


def test_seeds_are_those_of_the_run_and_the_same_for_all_models():
    begun, seeds = starting_points(TREE, 0), {}
    for model, seed, samples in (("base", 0, 1), ("medrefl", 0, 1), ("base", 1, 1), ("base", 0, 3)):
        told = Says("x")
        rows = continue_from(
            begun, {"q": QUESTION}, told, model=model, sampling=GREEDY, seed=seed, run=seed, samples=samples
        )
        seeds[model, seed, samples] = told.seeds
        assert rows["sample"].tolist() == [*range(samples)] * 3 and set(rows["run"]) == {seed}
    assert seeds["base", 0, 1] == seeds["medrefl", 0, 1] == [row[:1] for row in seeds["base", 0, 3]]
    assert seeds["base", 0, 1] == [[derive_seed(0, "q", place)] for place in (WRONG_STEP, WRONG_ANSWER, RIGHT_ANSWER)]
    flat = [seed for row in (*seeds["base", 0, 3], *seeds["base", 1, 1]) for seed in row]
    assert len(set(flat)) == len(flat) == 12


def test_a_question_without_a_right_path_takes_no_part():
    wrong = TREE.assign(outcome=TREE["outcome"].where(TREE["outcome"].isna(), -1.0))
    none = starting_points(wrong, seed=0)
    assert none.empty
    told = continue_from(none, {"q": QUESTION}, Says("x"), model="base", sampling=GREEDY, seed=0)
    assert told.empty and list(told) == CONTINUATIONS.names and example_continuations(told).empty


def test_a_model_goes_on_behind_the_step_and_has_said_wait_behind_an_answer():
    generator = Says("Step 2: so it is.\nAnswer: B")
    rows = continue_from(starting_points(TREE, 0), {"q": QUESTION}, generator, model="base", sampling=GREEDY, seed=0)
    assert generator.seen[:2] == ["b\n", "b\nAnswer: C\nWait,"]
    assert rows["answer"].tolist() == ["B"] * 3
    assert rows.set_index("behind")["reconsiders"].to_dict() == {
        WRONG_STEP: False,
        WRONG_ANSWER: True,
        RIGHT_ANSWER: True,
    }


def test_without_a_new_answer_the_old_one_stands():
    rows = continue_from(starting_points(TREE, 0), {"q": QUESTION}, Says(" hm"), model="base", sampling=GREEDY, seed=0)
    assert rows.set_index("behind")["answer"].fillna("-").to_dict() == {
        WRONG_STEP: "-",
        WRONG_ANSWER: "C",
        RIGHT_ANSWER: "B",
    }


def test_a_turn_that_the_template_began_inside_a_thinking_is_read_as_one():
    """A wrong step is inside the thinking; a finished answer is outside of it."""
    generator = Says("Option B is right, but", thinking_open=True)
    rows = continue_from(starting_points(TREE, 0), {"q": QUESTION}, generator, model="base", sampling=GREEDY, seed=0)
    assert rows.set_index("behind")["answer"].fillna("-").to_dict() == {
        WRONG_STEP: "-",
        WRONG_ANSWER: "B",
        RIGHT_ANSWER: "B",
    }
    closed = Says("so.\n</think>\nB", thinking_open=True)
    rows = continue_from(starting_points(TREE, 0), {"q": QUESTION}, closed, model="base", sampling=GREEDY, seed=0)
    assert rows["answer"].tolist() == ["B"] * 3


def test_the_student_goes_on_from_its_own_steps_as_it_did(tiny_student):
    """Greedy, behind the beginning of a greedy path, it writes the very rest of that path."""
    exam = clinic.make_exam(12, seed=3, split="test")
    generator = LocalGenerator(tiny_student)
    steps = grow_trees(exam, generator, growth=SearchSettings((3, 2, 2)), sampling=Sampling(1.0, 1.0, 128), seed=0)
    begun = starting_points(steps, 0)
    assert begun["question_id"].nunique() >= 3
    by_id = {question.question_id: question for question in exam}
    name = begun["question_id"].iloc[0]
    whole = generator.chat([prompts.exam(by_id[name])], GREEDY, [0])[0].text
    lines = whole.splitlines(keepends=True)
    first = begun.head(1).assign(prefix="".join(lines[:2]), behind=WRONG_STEP)
    [rest] = continue_from(first, by_id, generator, model="base", sampling=GREEDY, seed=0)["text"]
    assert rest == "".join(lines[2:])
    again = [
        continue_from(begun, by_id, generator, model="base", sampling=Sampling(1.0, 1.0, 128), seed=0) for _ in range(2)
    ]
    assert again[0].equals(again[1]) and set(again[0]["behind"]) == {WRONG_STEP, WRONG_ANSWER, RIGHT_ANSWER}
