"""Counts of dropped rows, and the one function that stops a stage which loses too many."""

from __future__ import annotations

import pytest

from medrefl_utils.core import DropCounts, MedReflError, check_dropped, check_some_left


def lost(**faults: int) -> DropCounts:
    dropped = DropCounts({"cap": 100})
    for reason, count in faults.items():
        for number in range(count):
            dropped.drop(reason, f"question 'q{number}': {reason}")
    return dropped


def test_selections_are_counted_and_are_no_faults() -> None:
    dropped = lost(same_text=2)
    assert dropped == {"cap": 100, "same_text": 2} and dropped.faults == {"same_text": 2}
    assert dropped.examples == {"same_text": "question 'q0': same_text"}
    check_dropped("pairs", DropCounts({"cap": 100}), 0, 0.0)


def test_a_selection_with_an_example_is_no_fault() -> None:
    dropped = lost(same_text=1)
    dropped.leave_out("poor", "question 'q7': poor")
    assert dropped["poor"] == 1 and dropped.examples["poor"] == "question 'q7': poor"
    for counts in (dropped, DropCounts(dropped)):
        assert counts.faults == {"same_text": 1} and set(counts.faults.examples) == {"same_text"}
    both = lost(cut=1)
    both.add(dropped)
    assert both.faults == {"same_text": 1, "cut": 1} and both["poor"] == 1
    check_dropped("reflections", dropped, 1, 0.5)


def test_counts_of_two_steps_are_added_with_the_first_example() -> None:
    both = lost(same_text=2)
    both.add(lost(same_text=1, chosen_elsewhere=1))
    both.add({"margin": 3})
    assert both == {"cap": 200, "same_text": 3, "chosen_elsewhere": 1, "margin": 3}
    assert set(both.examples) == {"same_text", "chosen_elsewhere"}
    assert DropCounts(both).examples == both.examples


@pytest.mark.parametrize(
    ("faults", "kept", "share", "stops"), [(5, 5, 0.5, False), (6, 5, 0.5, True), (1, 9, 0.0, True), (9, 0, 1.0, False)]
)
def test_the_stage_stops_when_more_than_the_share_is_dropped(faults: int, kept: int, share: float, stops: bool) -> None:
    dropped = lost(same_text=faults)
    if not stops:
        return check_dropped("pairs", dropped, kept, share)
    with pytest.raises(MedReflError) as stopped:
        check_dropped("pairs", dropped, kept, share)
    message = str(stopped.value)
    assert message.startswith(
        f"pairs: {faults} of {faults + kept} are dropped (same_text {faults}), which is more than"
    )
    assert "max_dropped" in message and "question 'q0': same_text" in message and "\n" not in message


def test_nothing_left_is_an_error_with_its_reasons() -> None:
    check_some_left("pairs", 1, {}, "x")
    with pytest.raises(MedReflError, match=r"pairs: none is left \(all_right 3, all_wrong 2\); raise temperature"):
        check_some_left("pairs", 0, {"all_right": 3, "cap": 0, "all_wrong": 2}, "raise temperature")
    with pytest.raises(MedReflError, match=r"questions: none is left \(there were none\); add some"):
        check_some_left("questions", 0, {}, "add some")
