"""What a model writes: each check can fail, what fails is asked for again with another seed, then counted."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
import pytest

from medrefl_utils.core import PAIRS, REFLECTIONS, Continuation, MedReflError, Question, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import derive_seed
from medrefl_utils.models.student import _first_difference
from medrefl_utils.pairs import (
    CorrectionText,
    accepted_reflections,
    check_reflection,
    judge_pairs,
    rewrite_as_thought,
    write_by_truth,
    write_reflections,
)
from medrefl_utils.trees import locate_errors_by_model, paths

SAMPLING = Sampling(1.0, 1.0, 64)
QUESTION = Question("q", "What is it?", {"A": "zelorin", "B": "marvutide", "C": "oxpril"}, "A")
TURN = CorrectionText(QUESTION, ("Step 1: fever.\n",), ("Step 2: so oxpril.\n",), ("Step 2: a rash.\n", "Answer: A"))
INVALID = CorrectionText(QUESTION, TURN.public, TURN.wrong, ("Step 2: nothing.\n", "Answer: B"))


class Script:
    """A generator that answers by a function of the prompt and the attempt, and keeps what it was asked."""

    thinking_open = False

    def __init__(self, reply, stop: str = "end"):
        self.reply, self.stop, self.asked = reply, stop, []

    def chat(self, messages: Sequence, sampling: Sampling, seeds: Sequence[int], progress=None) -> list[Continuation]:
        assert len(messages) == len(seeds)
        out = []
        for prompt, seed in zip(messages, seeds, strict=True):
            attempt = sum(old == prompt for old, _ in self.asked)
            self.asked.append((prompt, seed))
            out.append(Continuation(self.reply(prompt[0]["content"], attempt), (), 0.0, self.stop))
        return out


def fault(text: str, turn: CorrectionText = TURN, stop: str = "end") -> str:
    return check_reflection(turn, Continuation(text, (), 0.0, stop))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Wait, a rash was overlooked. So it is zelorin.", ""),
        ("Hmm.\n\nI missed the rash.\nSo it goes on.", ""),
        ("  \n ", "empty"),
        ("The answer key says otherwise. So I was wrong.", "leak"),
        ("The other path mentions a rash. I had missed it.", "leak"),
        ("The steps I was given name a rash. I had missed it.", "leak"),
        ("I was shown the correct answer, and see the flaw.", "leak"),
        ("According to the reference solution there is a rash.", "leak"),
        ("The key is that a different branch of the nerve is hurt. A saline solution was given.", ""),
        ("The answer is A, since there is a rash. I had missed it.", "letter"),
        ("I was wrong to exclude option A. The rash settles it.", "letter"),
        ("Wait, it is not so that Answer: C. Answer: A is it. So the evidence leads there.", "letter"),
        ("I was wrong to choose C. The rash was overlooked. So it is option A.", ""),  # reasons first
        ("The answer is A", "letter"),  # nothing before it
        ("The answer is C was too hasty. A rash was overlooked.", ""),  # the wrong letter that was there before
        # It denies a sentence: the wrong steps must have it, and the reflection must not claim it again.
        ("Wait, it is not so that so oxpril. I missed the rash.", ""),
        ("Wait, it is not so that fever leaves oxpril. I missed the rash.", "unsaid"),
        ("Wait, it is not so that a rash. I missed it.", ""),  # one word is no sentence
        ("It isn't true that zelorin fits best, because there is a rash.", "unsaid"),
        ("I wrongly said that there is no rash. There is one.", "unsaid"),
        ("I wrongly assumed that there is no rash. There is one.", ""),  # a thought need not have been said
        ("I wrongly assumed that there is no rash. What I missed is that there is no rash.", "contradiction"),
        ("I was wrong to think that fever settles it. Fever settles it.", "contradiction"),
        ("I was mistaken in thinking that fever settles it. In fact, a rash settles it.", ""),
    ],
)
def test_what_a_reflection_may_not_say(text: str, found: str) -> None:
    assert fault(text) == found


LONG = CorrectionText(
    Question("q", "Which drug?", {"A": "labetalol", "B": "hydralazine", "C": "enalapril"}, "A"),
    ("Step 1: She is in her third trimester.\n",),
    ("Step 2: Her blood pressure calls for treatment with enalapril at once.\n", "Answer: C"),
    ("Step 2: Labetalol is safe.\n", "Answer: A"),
)


@pytest.mark.parametrize(
    ("denied", "found"),
    [
        ("her blood pressure calls for treatment with enalapril at once", ""),
        ("HER blood pressure calls for treatment with enalapril", ""),  # a part of the step
        ("the blood pressure calls for treatment with enalapril at once", ""),  # one word of nine differs
        ("her blood pressure calls for treatment with enalapril at once, since it harms the foetus", ""),  # a reason
        ("her blood pressure calls for treatment with hydralazine at once", "unsaid"),  # of another option
        ("labetalol is safe", "unsaid"),  # said by the steps that replace the wrong ones
        ("she is in her third trimester", "unsaid"),  # said by the steps that both paths share
        ("enalapril is safe in pregnancy", "unsaid"),
        ("her blood pressure calls for treatment with enalapril and labetalol at once", "unsaid"),
        ("her blood pressure calls for safe treatment with enalapril at once", "unsaid"),  # "safe" replaces it
    ],
)
def test_what_is_denied_must_be_among_the_wrong_steps(denied: str, found: str) -> None:
    assert fault(f"Hold on: it is not true that {denied}. The drug harms the foetus.", LONG) == found


def test_what_is_denied_is_not_claimed_again() -> None:
    denial = "Wait, it is not so that her blood pressure calls for treatment with enalapril at once."
    assert fault(f"{denial} What I missed is that she is pregnant.", LONG) == ""
    again = "her blood pressure calls for treatment with enalapril at once."
    for claim in (f"What I missed is that {again}", f"So {again}", f"In truth, {again}", f"It is true that {again}"):
        assert fault(f"{denial} {claim} I will read on.", LONG) == "contradiction", claim
    assert fault(f"{denial} I was taught that {again}", LONG) == ""  # reported, not claimed


def test_a_list_of_options_is_one_sentence() -> None:
    steps = ("Step 4: A. zelorin no, B. marvutide no, C. oxpril yes.\n",)
    turn = CorrectionText(
        QUESTION, (), steps, ("Step 4: A. zelorin yes, B. marvutide no, C. oxpril no.\n", "Answer: A")
    )
    said = "Wait, it is not so that A. zelorin no, B. marvutide no, C. oxpril yes. What I missed is that "
    assert fault(f"{said}the rash decides.", turn) == ""
    assert fault(f"{said}A. zelorin no, B. marvutide no, C. oxpril yes. So on.", turn) == "contradiction"


def test_a_reflection_that_was_cut_off_fails() -> None:
    assert fault("I overlooked the", stop="length") == "cut"


def test_the_writers_own_thinking_is_no_part_of_a_reflection() -> None:
    assert fault("<think>The answer key says A.</think>\nWait, a rash was overlooked. So it is zelorin.") == ""
    assert fault("<think>A rash, then.</think>\n") == "empty"
    assert fault("<think>A rash, then, and", stop="length") == "cut"
    script = Script(lambda *_: "<think>A plan.</think>\n\nWait,\na rash was overlooked.")
    written, dropped = write_reflections({("q", 2, 5): TURN}, script, sampling=SAMPLING, seed=7)
    assert written["text"][0] == "Wait, a rash was overlooked." and not dropped
    assert "<think>" in written["replies"][0][0]
    assert accepted_reflections(written) == {("q", 2, 5): "\n\nWait,\na rash was overlooked."}


def test_an_invalid_reflection_may_name_neither_the_gold_letter_nor_its_own_first() -> None:
    assert fault("The answer is B. There is nothing.", INVALID) == "letter"
    assert fault("The answer is A. There is nothing.", INVALID) == "letter"
    assert fault("The answer is C. That was hasty.", INVALID) == ""


def test_the_clinics_own_reflections_pass() -> None:
    beliefs = clinic.misconceptions()
    checked = 0
    for case in clinic.make_cases(60, 5):
        wrong, right = clinic.solve(case, slip=0.5, misled=1.0, beliefs=beliefs), clinic.solve(case)
        if wrong[:-1] != right[:-1]:
            k = _first_difference(wrong, right)
            text = clinic.reflect(wrong[k], right[k])
            turn = CorrectionText(case.question, tuple(right[:k]), tuple(wrong[k:]), tuple(f"{s}\n" for s in right[k:]))
            assert fault(text, turn) == "", text
            checked += 1
    assert checked > 20


def test_an_affirmation_may_deny_nothing() -> None:
    kept = CorrectionText(QUESTION, TURN.public, TURN.wrong, ())
    said = TURN.wrong[0].strip().rstrip(".")
    assert fault(f"Wait, is it so that {said}? I look again. It holds, so I go on.", kept) == ""
    assert fault(f"Wait, it is not so that {said}. So on.", kept) == "denies"
    assert fault("Wait, I was wrong to think that nothing matters. So on.", kept) == "denies"
    assert fault("The answer is A. It holds.", kept) == "letter"


def test_an_affirmation_has_its_own_prompt() -> None:
    kept = CorrectionText(QUESTION, TURN.public, TURN.wrong, ())
    script = Script(lambda *_: "Wait, is that so? It holds.")
    written, dropped = write_reflections({("q", 2, 5): kept}, script, sampling=SAMPLING, seed=7)
    assert written["text"].tolist() == ["Wait, is that so? It holds."] and not dropped
    [(asked, _)] = script.asked
    assert asked == prompts.affirmation(QUESTION, TURN.public, TURN.wrong)
    assert "Steps that are kept:\n" + TURN.wrong[0].strip() in asked[0]["content"]


def test_the_truth_denies_the_first_false_step_and_claims_what_replaces_it() -> None:
    case = next(case for case in clinic.make_cases(50, 5) if len(case.findings) == 4 and case.kind == "test")
    truth = clinic.solve(case)
    slip = clinic.another_step(case, truth[:2], truth[2], random.Random(0), right=False)
    wrong = clinic.solve(case, before=[*truth[:2], slip])
    lines = [f"{step}\n" for step in truth]
    turns = {
        ("q", 3, 9): CorrectionText(case.question, tuple(truth[:2]), tuple(wrong[2:3]), tuple(lines[2:])),
        ("q", 8, 9): CorrectionText(case.question, tuple(truth[:1]), tuple(wrong[1:]), tuple(lines[1:])),
        ("q", 3, 8): CorrectionText(case.question, tuple(truth[:2]), (slip,), ()),
        ("q", 8, 8): CorrectionText(case.question, (), tuple(wrong), ()),
        ("q", 2, 9): CorrectionText(case.question, tuple(truth[:1]), tuple(truth[1:2]), ()),
    }
    written, dropped = write_by_truth(turns)
    assert written["text"].tolist() == [
        clinic.reflect(slip, truth[2]),
        clinic.reflect(slip, truth[1]),
        clinic.affirm(slip),
        clinic.affirm(slip),
        clinic.affirm(truth[1]),
    ]
    assert not dropped and list(accepted_reflections(written)) == list(turns)
    assert pa.Table.from_pandas(written, schema=REFLECTIONS, preserve_index=False).num_rows == 5
    with pytest.raises(MedReflError, match="question 'q' is not of the clinic's exam"):
        write_by_truth({("q", 2, 5): TURN})


def test_reflections_are_asked_for_again_twice_with_new_seeds_then_dropped_and_counted() -> None:
    def reply(prompt: str, attempt: int) -> str:
        if "nothing." in prompt:
            return "I was shown the answer."
        return "" if attempt == 0 else "Wait,\na rash was overlooked.  So on."

    turns = {("q", 2, 5): TURN, ("q", 2, 6): INVALID}
    script = Script(reply)
    written, dropped = write_reflections(turns, script, sampling=SAMPLING, seed=7)
    assert [len(replies) for replies in written["replies"]] == [2, 3]
    assert written["faults"].tolist() == [["empty"], ["leak"] * 3]
    assert written["text"][0] == "Wait, a rash was overlooked. So on." and written["text"].isna().tolist() == [
        False,
        True,
    ]
    assert dropped == {"reflection_leak": 1}
    assert dropped.examples == {"reflection_leak": "question 'q', reply 'I was shown the answer.'"}
    assert accepted_reflections(written) == {("q", 2, 5): "Wait,\na rash was overlooked.  So on."}  # raw
    assert len({seed for _, seed in script.asked}) == len(script.asked) == 5
    expected = prompts.reflection(QUESTION, TURN.public, TURN.wrong, TURN.right)
    assert script.asked[0] == (expected, derive_seed(7, "reflections", expected, 0))
    assert written["prompt"][0] == expected[0]["content"] and "a rash." in written["prompt"][0]
    assert pa.Table.from_pandas(written, schema=REFLECTIONS, preserve_index=False).num_rows == 2


def test_a_reflection_that_makes_no_sense_is_left_out_and_shown_but_stops_no_run() -> None:
    script = Script(lambda *_: "Wait, it is not so that fever leaves oxpril. I missed the rash.")
    written, dropped = write_reflections({("q", 2, 5): TURN}, script, sampling=SAMPLING, seed=7)
    assert written["faults"].tolist() == [["unsaid"] * 3] and written["text"].isna().all()
    assert dropped == {"reflection_unsaid": 1} and dropped.faults == {}
    assert "it is not so that fever leaves oxpril" in dropped.examples["reflection_unsaid"]


def test_a_reflections_seeds_do_not_depend_on_what_else_is_asked() -> None:
    alone, both = Script(lambda *_: "So."), Script(lambda *_: "So.")
    write_reflections({("q", 2, 6): INVALID}, alone, sampling=SAMPLING, seed=7)
    write_reflections({("q", 2, 5): TURN, ("q", 2, 6): INVALID}, both, sampling=SAMPLING, seed=7)
    assert alone.asked[0] == both.asked[1]


def pair(chosen: str = "Step 1: rash.\nAnswer: A", rejected: str = "Step 1: fever.\nAnswer: B") -> dict:
    sides = {
        side: [{"role": "assistant", "content": text}] for side, text in (("chosen", chosen), ("rejected", rejected))
    }
    prompt = [{"role": "user", "content": "What is it?"}]
    return {
        **dict.fromkeys(PAIRS.names),
        "pair_id": "old",
        "question_id": "q",
        "kind": "reasoning",
        "prompt": prompt,
        **sides,
    }


PAIR_TABLE = pd.DataFrame([pair(), pair("Step 1: spots.\nAnswer: A"), pair("Step 1: mumble.\nAnswer: A")])
JUDGED = {"rash": "Logic: 3\nCorrectness: 4/5", "spots": "Correctness: 2\nLogic: 5", "mumble": "Rather good."}


def test_the_judge_keeps_what_reaches_the_threshold_with_its_words() -> None:
    script = Script(lambda prompt, attempt: next(text for word, text in JUDGED.items() if word in prompt))
    kept, dropped = judge_pairs(PAIR_TABLE, {"q": QUESTION}, script, sampling=SAMPLING, seed=0, min_judge_score=3)
    assert dropped == {"judge_unreadable": 1, "judged_low": 1}
    assert dropped.examples == {"judge_unreadable": "question 'q', reply 'Rather good.'"}
    assert len(kept) == 1 and len(script.asked) == 3 + 2
    assert kept["judgement"][0] == {
        "prompt": prompts.judge(QUESTION, ["Step 1: rash.", "Answer: A"])[0]["content"],
        **{"reply": "Logic: 3\nCorrectness: 4/5", "correctness": 4, "logic": 3},
    }
    table = pa.Table.from_pandas(kept, schema=PAIRS, preserve_index=False)
    assert table["judgement"][0].as_py()["correctness"] == 4
    with pytest.raises(MedReflError, match="min_judge_score is 0, expected 1 to 5"):
        judge_pairs(PAIR_TABLE, {"q": QUESTION}, script, sampling=SAMPLING, seed=0, min_judge_score=0)


def test_the_thinker_may_not_change_the_answer() -> None:
    thought = {"rash": "I see a rash, so\nAnswer: A", "fever": "Fever makes me say\nAnswer: B", "spots": "Answer: C"}

    def reply(prompt: str, attempt: int) -> str:
        return next((text for word, text in thought.items() if word in prompt), "I think.\nAnswer: A")

    script = Script(reply)
    kept, dropped = rewrite_as_thought(PAIR_TABLE, {"q": QUESTION}, script, sampling=SAMPLING, seed=0)
    assert [side[0]["content"] for side in kept["chosen"]] == ["I see a rash, so\nAnswer: A", "I think.\nAnswer: A"]
    assert {side[0]["content"] for side in kept["rejected"]} == {"Fever makes me say\nAnswer: B"}
    assert dropped == {"thinker_answer": 1}
    assert dropped.examples == {"thinker_answer": "question 'q', reply 'Answer: C'"}
    assert "old" not in set(kept["pair_id"]) and kept["pair_id"].is_unique
    again = rewrite_as_thought(
        PAIR_TABLE.head(1), {"q": QUESTION}, Script(lambda *_: "x", "length"), sampling=SAMPLING, seed=0
    )
    assert again[0].empty and again[1] == {"thinker_cut": 1}
    planned = Script(lambda prompt, _: f"<think>Plan.</think>\nAnswer: {'A' if 'rash' in prompt else 'B'}")
    kept, _ = rewrite_as_thought(PAIR_TABLE.head(1), {"q": QUESTION}, planned, sampling=SAMPLING, seed=0)
    assert kept["chosen"][0][0]["content"] == "Answer: A"  # without the thinker's own thinking
    opened = PAIR_TABLE.head(1).assign(chosen=[[{"role": "assistant", "content": "Option C is right, but"}]])
    for inside, n in ((False, 0), (True, 1)):  # inside a thinking the side states no answer, nor does its rewriting
        found, _ = rewrite_as_thought(
            opened, {"q": QUESTION}, Script(lambda prompt, _: "Option A is" if "but" in prompt else "Answer: B"),
            sampling=SAMPLING, seed=0, thinking_open=inside,
        )  # fmt: skip
        assert len(found) == n
    same = rewrite_as_thought(
        PAIR_TABLE.head(1).assign(rejected=PAIR_TABLE["chosen"].head(1)), {"q": QUESTION},
        Script(lambda *_: "Answer: A"), sampling=SAMPLING, seed=0,
    )  # fmt: skip
    assert same[0].empty and same[1] == {"thinker_same": 1}


STEPS = pd.DataFrame(
    [
        ("q", 0, None, "", float("nan"), None),
        ("q", 1, 0, "Step 1: fever.\n", float("nan"), None),
        ("q", 2, 1, "Answer: B", -1.0, "answer"),
        ("q", 3, 1, "Answer: A", 1.0, "answer"),
        ("q", 4, 0, "Step 1: mumble.\n", float("nan"), None),
        ("q", 5, 4, "Answer: C", -1.0, "answer"),
        ("q", 6, 4, "Who knows", -1.0, "tokens"),
    ],
    columns=["question_id", "node_id", "parent_id", "text", "outcome", "stop"],
)


def test_a_model_names_the_first_wrong_step() -> None:
    script = Script(lambda prompt, attempt: "First wrong step: [2]" if "fever" in prompt else "Step 9")
    located, dropped = locate_errors_by_model({"q": QUESTION}, STEPS, paths(STEPS), script, sampling=SAMPLING, seed=0)
    assert located["leaf"].tolist() == [2, 5] and located["node_id"].tolist() == [2, pd.NA]
    assert dropped == {"locator_unreadable": 1}
    assert dropped.examples == {"locator_unreadable": "question 'q', path to leaf 5, reply 'Step 9'"}
    assert "[1] Step 1: fever.\n[2] Answer: B" in script.asked[0][0][0]["content"]
    assert len(script.asked) == 2 + 2  # the unreadable one three times


@pytest.mark.parametrize("text", ["First wrong step: 1", "1", "Step 1 is wrong; step 2 follows.", "[1]"])
def test_ways_to_name_a_step(text: str) -> None:
    script = Script(lambda *_: text)
    located, _ = locate_errors_by_model({"q": QUESTION}, STEPS, paths(STEPS), script, sampling=SAMPLING, seed=0)
    assert located["node_id"].tolist() == [1, 4]
