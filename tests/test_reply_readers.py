"""How the replies of judge, locator and reader are read: many phrasings of each, by hand."""

from __future__ import annotations

import pytest

from medrefl_utils.core import Continuation, Question
from medrefl_utils.evaluation.responses import _settled
from medrefl_utils.pairs import read_scores
from medrefl_utils.trees import read_first_wrong_step


def reply(text: str) -> Continuation:
    return Continuation(text, (), 0.0, "end")


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("Correctness: 5\nLogic: 1", (5, 1)),
        ("**Correctness**: 4/5. **Logic**: 3/5", (4, 3)),
        ("correctness = 2, logic = 2", (2, 2)),
        ("Correctness: 6\nLogic: 3", None),
        ("Correctness: 3.5\nLogic: 3", None),
        ("Correctness: 10\nLogic: 3", None),
        ("Logic: 3", None),
        ("", None),
        ("Correctness (1-5): 4\nLogic (1-5): 3", (4, 3)),
        ("Correctness: 4.\nLogic: 5.", (4, 5)),
        ("Correctness: 4.0\nLogic: 3.0", (4, 3)),
        ("Correctness score: 4\nLogic score: 2", (4, 2)),
        ("Correctness (1 = worst, 5 = best): 4\nLogic (1 = worst, 5 = best): 2", (4, 2)),
        ("| Criterion | Score |\n|---|---|\n| Correctness | 4 |\n| Logic | 5 |", (4, 5)),
        ("| Correctness | Logic |\n|---|---|\n| 4 | 5 |", (4, 5)),
        ('{"correctness": 4, "logic": 5}', (4, 5)),
        (
            '```json\n{"correctness": {"score": 4, "reason": "2 of 3"}, "logic": {"reason": "x", "score": 5}}\n```',
            (4, 5),
        ),
        ('{"Correctness": "4/5", "Logic": 3.0}', (4, 3)),
        ("Correctness: 4 out of 5\nLogic: 3 out of 5", (4, 3)),
        ("Correctness: 4/10\nLogic: 3", None),
        ("Correctness: 80%\nLogic: 3", None),
        ("Correctness: 3-4\nLogic: 3", None),
        ("Correctness: 4 or 5\nLogic: 3", None),
        ("<think>Correctness: 1 Logic: 1</think>\nCorrectness: 4\nLogic: 5", (4, 5)),
        ("I think Correctness: 1\n</think>\nLogic: 5 Correctness: 4", (4, 5)),
        ("Correctness: ４\nLogic：５", (4, 5)),
        ("Correctness: ٤\nLogic: ٥", (4, 5)),
        ("正确性：4分\n逻辑：5分", (4, 5)),
        ("### Correctness\n**4**\n\n### Logic\n**3**", (4, 3)),
        ("Correctness: **4**/5 - because step 2 is off\nLogic: *3* since 2 steps jump", (4, 3)),
        (
            "Correctness: 4\nLogic: 3\n\nThe correctness is lower because of 2 errors, and the logic of 3 steps fails.",
            (4, 3),
        ),
        ("I would rate correctness as 4 and logic as 5.", (4, 5)),
        ("Correctness: [4]\nLogic: [5]", (4, 5)),
        ("<correctness>4</correctness>\n<logic>5</logic>", (4, 5)),
        ("Correctness: 2\nLogic: 2\nRevised:\nCorrectness: 4\nLogic: 5", (4, 5)),
        ("Correctness: 45\nLogic: 3", None),
        ("Correctness: 0\nLogic: 3", None),
        ("Correctness on a scale of 1 to 5: 4\nLogic on a scale from 1 to 5: 3", (4, 3)),
        ("Correctness - 4\nLogic - 5", (4, 5)),
        ("Correctness: 4,0\nLogic: 3,0", (4, 3)),
        (
            "**Correctness:** 4\n\n- Step 1 is right.\n- Step 2: 50 mg is right.\n\n**Logic:** 5\n\n- All 3 follow.",
            (4, 5),
        ),
        ("Correctness: n\nLogic: n", None),
        ("Correctness: 4 (out of 5)\nLogic: 3 (of 5)", (4, 3)),
        ("Correctness (out of 5): 4\nLogic (/5): 3", (4, 3)),
        ("Correctness: 5 Logic: 4", (5, 4)),
        ("Correctness:5;Logic:4", (5, 4)),
        ("Correctness: 4 points\nLogic: 5 stars", (4, 5)),
        ("Medical correctness: 4\nLogical flow: 3", (4, 3)),
        ("Correctness: four\nLogic: five", (4, 5)),
        ("Correctness: four out of five\nLogic: Three.", (4, 3)),
        ("Correctness: 4\nLogic: 3\nThe correctness of one step is low.", (4, 3)),
        ("correctness_score: 4\nlogic_score: 3", (4, 3)),
        ('{"correctness_score": 4, "logic_score": 5}', (4, 5)),
        ("Correctness: 4. Logic: 3.", (4, 3)),
        ("Correctness is 4. Logic is 3.", (4, 3)),
        ("Correctness: 4 — sound\nLogic: 3 – jumps", (4, 3)),
        ("Correctness: 4/5\nLogic: 5/5\n\nOverall: 9/10", (4, 5)),
        ("Correctness: Step 2 is wrong, 3\nLogic: 4", None),
        ("Correctness: 1-5\nLogic: 1-5", None),
        ("Correctness (score): 4\nLogic (score): 5", (4, 5)),
        ("Correctness: 4 The steps are true.\nLogic: 3 Step 2 jumps.", (4, 3)),
        ("Correctness rating: 4/5\nLogic rating: 5/5", (4, 5)),
        ("**Correctness (1–5):** 4\n**Logic (1–5):** 5", (4, 5)),
        ("1. Correctness: 4\n2. Logic: 5", (4, 5)),
        ("Correctness → 4, Logic → 5", (4, 5)),
        ("Correctness: 4 | Logic: 5", (4, 5)),
        ("- Correctness: 4 - All steps.\n- Logic: 5 - ok", (4, 5)),
        ("Scores: correctness 4/5, logic 3/5. Both could improve: correctness by 1 point.", (4, 3)),
        ("Correctness:\n4\nLogic:\n5", (4, 5)),
        ("The logic is fine. Correctness: 4\nLogic: 5", (4, 5)),
        ("Korrektheit: 4\nLogik: 5", (4, 5)),
        ("<think>\nLet me rate. Correctness 5, Logic 5", None),
        ("\\boxed{Correctness: 4, Logic: 5}", (4, 5)),
        ("Correctness: 4 stars out of 5\nLogic: 5", (4, 5)),
        ("correctness=4;logic=5", (4, 5)),
        ("Correctness: Step 1 is true. Score 4.\nLogic: 4", (4, 4)),
        ("Correctness: All 3 steps are true. Score: 4/5\nLogic: Step 2 jumps. I rate it 2.", (4, 2)),
        ("Correctness: true.\nRating: 5\nLogic: sound.\nRating: 3\n\nOverall score: 4", (5, 3)),
        ("Correctness: Step 1 is true. Score 4/10.\nLogic: 4", None),
        ("Correctness: true. Score 3-4.\nLogic: 4", None),
        ("Correctness: 04\nLogic: 5", (4, 5)),
    ],
)
def test_scores_are_read_in_any_form_or_not_at_all(text: str, scores: tuple[int, int] | None) -> None:
    assert read_scores(reply(text)) == (scores, "" if scores else "unreadable")


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("First wrong step: 1", 1),
        ("1", 1),
        ("Step 1 is wrong; step 2 follows.", 1),
        ("[1]", 1),
        ("First wrong step: [2]", 2),
        ("Step 9", 9),
        ("Step 1 is right. Step 2 is right. First wrong step: 3", 3),
        ("**First wrong step:** 3", 3),
        ("**First wrong step: 3**", 3),
        ("First wrong step: **3**", 3),
        ("First wrong step: Step 3", 3),
        ("First wrong step: step [3]", 3),
        ('{"first_wrong_step": 3}', 3),
        ('```json\n{"first_wrong_step": 3, "reason": "step 2 is right"}\n```', 3),
        ("<think>First wrong step: 1? No.</think>\nFirst wrong step: 3", 3),
        ("Step 1 is wrong maybe.\n</think>\n3", 3),
        ("The first incorrect step is step 3.", 3),
        ("The first step that goes wrong is step 3, since step 2 is right.", 3),
        ("The first error occurs in step 3.", 3),
        ("Step 1 is not wrong. Step 2 is wrong.", 2),
        ("Step 2 is incorrect because it confuses INR with PT.", 2),
        ("Step 2 isn't correct.", 2),
        ("Step 1: right\nStep 2: right\nFirst wrong step: 3\nStep 4 follows.", 3),
        ("First wrong step: 2 or 3", None),
        ("First wrong step: none", None),
        ("No wrong step.", None),
        ("", None),
        ("I cannot tell.", None),
        ("First wrong step: ３", 3),
        ("First wrong step: ٣", 3),
        ("| First wrong step | 3 |", 3),
        ("First wrong step: n = 3", 3),
        ("The reasoning goes wrong at step 3.", 3),
        ("The mistake is in step 3.", 3),
        ("First wrong step: 3.", 3),
        ("First wrong step (number in brackets): 3", 3),
        ("First wrong step: #3", 3),
        ("Step 3 is the first wrong step.", 3),
        ("Step [3] is the first that goes wrong. Steps 1 and 2 are right.", 3),
        ("First wrong step: 1\n\nWait, step 1 is right.\n\nFirst wrong step: 3", 3),
        ("\\boxed{3}", 3),
        ("The first wrong step is number 3.", 3),
        ("Step 3", 3),
        ("Step 3.", 3),
        ("Step 1 and step 2 are fine, then step 3.", None),
        ("In step 2 the model confuses things.", 2),
        ("Step 3 contains an error.", 3),
        ("First wrong step: 3 (the dose of 50 mg)", 3),
        ("First Wrong Step = 3", 3),
        ("FIRST WRONG STEP: 3", 3),
        ("The first mistake is made at step 3", 3),
        ("Step 1 is right.", None),
        ("The third step is wrong.", 3),
        ("The first step is wrong.", 1),
        ("First wrong step: three", 3),
        ("The first step that goes wrong is the third step.", 3),
        ("Step two is incorrect.", 2),
        ("First wrong step:\n3", 3),
        ("First wrong step: 3/5", 3),
    ],
)
def test_the_first_wrong_step_is_read_in_any_form_or_not_at_all(text: str, step: int | None) -> None:
    assert read_first_wrong_step(reply(text)) == step


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Settles on: B", "B"),
        ("settles on: b", "B"),
        ("**Settles on:** B", "B"),
        ("The response settles on option B.", "B"),
        ("Settles on: none", ""),
        ("Settles on: None.", ""),
        ("<think>Settles on: A?</think>\nSettles on: B", "B"),
        ("Settles on A at first.\nSettles on: B", "B"),
        ("B", "B"),
        ("The response settles on a diagnosis of gout.", None),  # no letter A
        ("Settles on: E", None),  # no such option
        ("I cannot say.", None),
    ],
)
def test_the_readers_verdict_is_a_letter_none_or_unreadable(text: str, letter: str | None) -> None:
    question = Question("q", "Which?", {"A": "gout", "B": "lupus"}, "A")
    assert _settled(question)(reply(text)) == (letter, "" if letter is not None else "unreadable")


def test_a_truncated_reply_is_no_verdict() -> None:
    """The token limit may have cut a thinking without marks, or a verdict that was being revised."""
    question = Question("q", "Which?", {"A": "gout", "B": "lupus"}, "A")
    for text, read, fault in (
        ("Correctness: 4\nLogic: 5", read_scores, "unreadable"),
        ("Settles on: B", _settled(question), "cut"),
    ):
        assert read(reply(text))[0] is not None
        assert read(Continuation(text, (), 0.0, "length")) == (None, fault)
    assert read_first_wrong_step(Continuation("First wrong step: 2", (), 0.0, "length")) is None


def test_a_thinking_that_the_template_opened_is_no_verdict_until_it_is_closed() -> None:
    question = Question("q", "Which?", {"A": "gout", "B": "lupus"}, "A")
    assert read_scores(reply("Correctness: 4\nLogic: 5"), thinking_open=True) == (None, "unreadable")
    assert read_scores(reply("Hm.</think>Correctness: 4\nLogic: 5"), thinking_open=True) == ((4, 5), "")
    assert read_first_wrong_step(reply("First wrong step: 2"), thinking_open=True) is None
    assert read_first_wrong_step(reply("Hm.</think>First wrong step: 2"), thinking_open=True) == 2
    assert _settled(question, True)(reply("Settles on: B")) == (None, "unreadable")
    assert _settled(question, True)(reply("A?</think>Settles on: B")) == ("B", "")
