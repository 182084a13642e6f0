"""Lengths in the student's tokens: the limit, the warning and the matching, each by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrefl_utils.core import PAIRS, MedReflError
from medrefl_utils.models import TokenCounter, load_tokenizer
from medrefl_utils.pairs import (
    apply_length_limit,
    count_tokens,
    length_imbalance,
    length_warnings,
    match_lengths,
    replace_sides,
)


class Words:
    """Counts words; a template adds two to a prompt."""

    def prompts(self, messages):
        return [sum(len(m["content"].split()) for m in prompt) + 2 for prompt in messages]

    def texts(self, texts):
        return [len(text.split()) for text in texts]


def pair(chosen: str, rejected: str, kind: str = "reasoning") -> dict:
    empty = dict.fromkeys(PAIRS.names)
    prompt = [{"role": "user", "content": "What is it?"}]
    return replace_sides({**empty, "question_id": "q", "kind": kind, "prompt": prompt}, chosen, rejected)


def table(*pairs: dict) -> pd.DataFrame:
    return count_tokens(pd.DataFrame(list(pairs), columns=PAIRS.names), Words())


SHORT = pair("one\nAnswer: A", "one two\nAnswer: B")
LONG = pair("same\nso zelorin it is\nAnswer: A", "same\nor rather oxpril\nAnswer: B")


def test_lengths_are_counted_by_the_students_tokenizer() -> None:
    counted = table(SHORT, LONG)
    assert counted["prompt_tokens"].tolist() == [5, 5]
    assert counted["chosen_tokens"].tolist() == [3, 7] and counted["rejected_tokens"].tolist() == [4, 6]


def test_a_real_tokenizer_counts_the_template_too(tiny_student) -> None:
    tokenizer = load_tokenizer(tiny_student)
    counted = count_tokens(pd.DataFrame([SHORT]), TokenCounter(tokenizer))
    rendered = tokenizer.apply_chat_template(
        SHORT["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert counted["prompt_tokens"][0] == len(rendered)
    assert counted["chosen_tokens"][0] == len(tokenizer("one\nAnswer: A", add_special_tokens=False).input_ids)
    assert TokenCounter(tokenizer).texts([]) == []


def test_a_pair_over_the_limit_is_dropped_and_counted() -> None:
    pairs = table(SHORT, LONG)
    for limit, left in ((13, 2), (12, 1), (10, 1), (9, 0)):  # 5 + 7 + the end, 5 + 4 + the end
        kept, dropped = apply_length_limit(pairs, Words(), max_length=limit, overlong_pairs="drop")
        assert len(kept) == left and dropped == {"overlong": 2 - left, "truncated": 0}


def test_a_pair_over_the_limit_is_cut_at_a_lines_end() -> None:
    pairs = table(SHORT, LONG)
    kept, dropped = apply_length_limit(pairs, Words(), max_length=12, overlong_pairs="truncate")
    assert dropped == {"overlong": 0, "truncated": 1}
    assert kept["chosen"][1][0]["content"] == "same\nso zelorin it is"
    assert kept["rejected"][1][0]["content"] == "same\nor rather oxpril\nAnswer: B"  # it fits
    assert kept["chosen_tokens"].tolist() == [3, 5] and kept["pair_id"][1] != pairs["pair_id"][1]
    kept, dropped = apply_length_limit(pairs, Words(), max_length=8, overlong_pairs="truncate")
    assert kept["chosen"][0][0]["content"] == "one" and dropped == {"overlong": 1, "truncated": 1}  # "same" twice
    assert apply_length_limit(pairs, Words(), max_length=6, overlong_pairs="truncate")[1] == {
        "overlong": 2,
        "truncated": 0,
    }


def test_a_text_of_one_paragraph_is_cut_at_a_sentences_end() -> None:
    chosen = "The patient takes zelorin. It is given i.v. twice. So it is A. Answer: A"
    pairs = table(pair(chosen, f"{chosen} not"), pair("one two three four five six seven\nx", "a b c d e f g h i"))
    kept, dropped = apply_length_limit(pairs, Words(), max_length=5 + 10 + 1, overlong_pairs="truncate")
    assert dropped == {"overlong": 1, "truncated": 0}  # both sides become the same text
    other = "Oxpril is taken with food and not by mouth alone. So it is B. Answer: B"
    pairs = table(pair(chosen, other))
    kept, dropped = apply_length_limit(pairs, Words(), max_length=5 + 11 + 1, overlong_pairs="truncate")
    assert dropped == {"overlong": 0, "truncated": 1}
    assert kept["chosen"][0][0]["content"] == "The patient takes zelorin. It is given i.v. twice."
    assert kept["rejected"][0][0]["content"] == "Oxpril is taken with food and not by mouth alone."
    assert kept["chosen_tokens"].tolist() == [9] and kept["rejected_tokens"].tolist() == [10]
    assert apply_length_limit(pairs, Words(), max_length=5 + 9 + 1, overlong_pairs="truncate")[1]["overlong"] == 1


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(MedReflError, match="overlong_pairs is 'keep', expected one of drop, truncate"):
        apply_length_limit(table(SHORT), Words(), max_length=9, overlong_pairs="keep")
    with pytest.raises(MedReflError, match="max_length is 0"):
        apply_length_limit(table(SHORT), Words(), max_length=0, overlong_pairs="drop")
    with pytest.raises(MedReflError, match="length_tolerance is -1"):
        match_lengths(table(SHORT), -1)


def lengths(*sides: tuple[int, int], kind: str = "reasoning") -> pd.DataFrame:
    return pd.DataFrame(sides, columns=["chosen_tokens", "rejected_tokens"]).assign(kind=kind)


def test_imbalance_by_hand_and_its_warning() -> None:
    pairs = pd.concat([lengths((30, 20), (40, 30), (20, 25)), lengths((10, 10), (11, 10), kind="random_cot")])
    told = length_imbalance(pairs)
    assert told.loc["reasoning"].tolist() == [3, 30, 25, 1.2, pytest.approx(2 / 3)]
    [warning] = length_warnings(pairs, 0.1)
    assert warning.startswith("reasoning: chosen sides have 30 tokens and rejected ones 25 on average (+20%")
    assert "67% of 3 pairs" in warning and "\n" not in warning
    assert length_warnings(pairs, 0.25) == []
    assert len(length_warnings(lengths((20, 25)), 0.1)) == 1  # the rejected side may be the longer one
    assert length_imbalance(lengths()).empty and length_warnings(lengths(), 0.1) == []


def test_the_most_one_sided_pairs_go_until_the_lengths_match() -> None:
    pairs = lengths((30, 20), (22, 20), (20, 20), (50, 20), (18, 20))
    kept, gone = match_lengths(pairs, 0.0)
    assert gone == 2 and kept["chosen_tokens"].tolist() == [22, 20, 18]
    kept, gone = match_lengths(pairs, 0.15)  # 90 against 80 is within 15%
    assert gone == 1 and kept["chosen_tokens"].tolist() == [30, 22, 20, 18]
    mirrored = pairs.rename(columns={"chosen_tokens": "rejected_tokens", "rejected_tokens": "chosen_tokens"})
    assert match_lengths(mirrored, 0.0)[0]["rejected_tokens"].tolist() == [22, 20, 18]
    assert match_lengths(lengths(), 0.0)[1] == 0


SIDES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["a", "b"])), min_size=1, max_size=30
)


@given(SIDES, st.sampled_from([0.0, 0.1, 0.5]))
def test_what_is_left_is_matched_and_no_pair_went_in_vain(sides: list, tolerance: float) -> None:
    pairs = pd.DataFrame(sides, columns=["chosen_tokens", "rejected_tokens", "kind"]).assign(n=range(len(sides)))
    kept, gone = match_lengths(pairs, tolerance)
    assert len(kept) + gone == len(pairs) and kept["n"].is_monotonic_increasing
    for kind, rows in pairs.groupby("kind"):
        left = kept[kept["kind"] == kind]
        longer, other = ("chosen_tokens", "rejected_tokens")
        if rows[longer].sum() < rows[other].sum():
            longer, other = other, longer
        assert left[longer].sum() <= (1 + tolerance) * left[other].sum() or left.empty
        lost = rows[~rows["n"].isin(left["n"])]
        if len(lost):  # with the least one-sided of the lost it would not be
            least = lost.loc[(lost[longer] - lost[other]).idxmin()]
            assert left[longer].sum() + least[longer] > (1 + tolerance) * (left[other].sum() + least[other])
