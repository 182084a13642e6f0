"""What counts as one question: an exact or lightly reworded copy does, another of the same template does not."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrefl_utils.core import OVERLAPS, MedReflError, Question
from medrefl_utils.exam import clinic, find_overlaps, find_similar_stems, read_texts, remove_overlaps
from tests.test_cli import medrefl

TRAIN = clinic.make_exam(300, seed=0, split="train")
TEST = clinic.make_exam(600, seed=0, split="test")


def shuffled(question: Question) -> Question:
    """The same options in another order, under other letters, and other case and punctuation in the stem."""
    texts = list(question.options.values())[::-1]
    return replace(
        question,
        question_id="copy",
        stem=question.stem.upper().replace(".", " ;"),
        options=dict(zip(question.options, texts, strict=True)),
    )


def reworded(question: Question, n: int, seed: int = 0) -> Question:
    words = question.stem.split()
    for place in random.Random(seed).sample(range(len(words)), n):
        words[place] = "otherwise"
    return replace(question, question_id="copy", stem=" ".join(words))


def test_two_splits_of_the_clinic_share_a_template_and_no_question() -> None:
    assert find_overlaps(TRAIN, TEST).empty


def test_an_exact_copy_counts_whatever_its_case_punctuation_and_order_of_options() -> None:
    found = find_overlaps(TRAIN, [*TEST, shuffled(TRAIN[7])])
    assert found[["question_id", "other_id", "other_source", "how"]].values.tolist() == [
        [TRAIN[7].question_id, "copy", "clinic", "same"]
    ]
    assert found["jaccard"][0] == found["containment"][0] == 1
    assert pa.Table.from_pandas(found, schema=OVERLAPS, preserve_index=False).num_rows == 1


def test_a_lightly_reworded_copy_counts_and_a_heavily_reworded_one_does_not() -> None:
    hits = [len(find_overlaps([q], [reworded(q, 1, i)])) for i, q in enumerate(TRAIN[:60])]
    assert sum(hits) == 60
    assert sum(len(find_overlaps([q], [reworded(q, 12, i)])) for i, q in enumerate(TRAIN[:60])) == 0


def test_other_findings_do_not_count_though_all_else_is_the_same() -> None:
    one = TRAIN[0]
    case = clinic.make_cases(1, 0, "train")[0]
    stem = one.stem
    for finding, other in zip(
        case.findings, ("mossy gums", "spotted elbows", "ticking hips", "bitter tears"), strict=False
    ):
        stem = stem.replace(finding, other)
    assert stem != one.stem and find_overlaps([one], [replace(one, question_id="copy", stem=stem)]).empty


def test_a_question_inside_a_longer_one_counts() -> None:
    vignette = " ".join(f"word{i}" for i in range(60))
    short = Question("short", vignette, {"A": "one", "B": "two"}, "A")
    longer = replace(short, question_id="long", stem=f"{vignette} {' '.join(f'more{i}' for i in range(40))}")
    [row] = find_overlaps([short], [longer]).itertuples()
    assert row.how == "contained" and row.containment == 1 and row.jaccard < 0.7


def test_the_figures_are_true_ones_not_the_hashes_estimates() -> None:
    a = Question("a", "one two three four five six", {"A": "x", "B": "y"}, "A")
    b = Question("b", "one two three four five seven", {"A": "x", "B": "y"}, "A")
    [row] = find_overlaps([a], [b], threshold=0.5).itertuples()  # 3 of 4 trigrams and both options shared, of 7 in all
    assert (row.jaccard, row.containment) == (5 / 7, 5 / 6)


def test_the_stage_stops_unless_told_to_drop() -> None:
    found = find_overlaps(TRAIN, [shuffled(TRAIN[7])])
    with pytest.raises(
        MedReflError, match=f"1 of 300 training questions .* '{TRAIN[7].question_id}' as 'copy' .same."
    ) as e:
        remove_overlaps(TRAIN, found, contaminated="stop")
    assert "\n" not in str(e.value)
    assert remove_overlaps(TRAIN, found, contaminated="drop") == TRAIN[:7] + TRAIN[8:]
    assert remove_overlaps(TRAIN, found.iloc[:0], contaminated="stop") == TRAIN
    with pytest.raises(MedReflError, match="contaminated is 'keep', expected stop or drop"):
        remove_overlaps(TRAIN, found, contaminated="keep")


def test_nothing_to_compare_and_impossible_settings() -> None:
    assert find_overlaps([], TEST).empty and find_overlaps(TRAIN, []).empty
    with pytest.raises(MedReflError, match="n is 0"):
        find_overlaps(TRAIN, TEST, n=0)
    with pytest.raises(MedReflError, match="threshold 0.2"):
        find_overlaps(TRAIN, TEST, threshold=0.2)


CHEST_PAIN = "一名54岁男性患者因持续性胸痛3小时就诊，心电图显示下壁导联ST段抬高，血压85/50，心率56次每分。"
CHINESE = Question("zh", f"{CHEST_PAIN}下列哪项处理最为恰当？", {"A": "补液", "B": "硝酸甘油", "C": "美托洛尔"}, "A")


def test_a_script_without_spaces_is_compared_by_its_characters() -> None:
    copy = replace(CHINESE, question_id="copy", stem=CHINESE.stem.replace("54岁", "56岁").replace("最为", "最"))
    [row] = find_overlaps([CHINESE], [copy]).itertuples()
    assert row.how == "reworded" and 0.75 < row.jaccard < 1
    other = "一名23岁女性患者因反复上腹痛2周就诊，胃镜显示十二指肠球部溃疡，幽门螺杆菌阳性。下列哪项处理最为恰当？"
    assert find_overlaps([CHINESE], [replace(CHINESE, question_id="other", stem=other)]).empty


def test_a_training_text_without_options_is_compared_by_its_stem() -> None:
    prompt = Question("row 1", f"{TRAIN[3].stem} Answer with a letter.", {}, "")
    assert find_overlaps([prompt], [*TEST, TRAIN[3]])[["other_id", "how"]].values.tolist() == [
        [TRAIN[3].question_id, "contained"]
    ]


def test_similar_stems_are_those_of_rapidfuzz() -> None:
    """Of "kitten sat" and "kitten sit" 18 of 20 characters stay: 90."""
    a, b = (Question(stem, stem, {}, "") for stem in ("Kitten sat.", "kitten sit"))
    found = find_similar_stems([a], [b, a], threshold=89)
    assert found.values.tolist() == [["Kitten sat.", "Kitten sat.", 100.0], ["Kitten sat.", "kitten sit", 90.0]]
    assert len(find_similar_stems([a], [b])) == 0 and find_similar_stems([], [b]).empty
    one, two = TRAIN[0], reworded(TRAIN[0], 1)
    assert len(find_similar_stems(TRAIN, [replace(one, question_id="copy"), *TEST])) >= 1
    assert list(find_similar_stems([one], [two], threshold=80)["other_id"]) == ["copy"]
    with pytest.raises(MedReflError, match="threshold is 0, expected above 0 and at most 100"):
        find_similar_stems([a], [b], threshold=0)


def test_two_files_of_any_shape_from_the_command_line(tmp_path) -> None:
    turns = [{"role": "user", "content": f"Question: {TRAIN[5].stem}"}, {"role": "assistant", "content": "A"}]
    chat = {"from": "human", "value": TRAIN[6].stem}
    rows = [
        {"prompt": turns},
        {"conversations": [chat]},
        {"instruction": "Say hello."},
        {"question": TRAIN[7].stem, "options": dict(TRAIN[7].options), "answer": 2},
        {"note": "no text"},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bench = [
        {"id": f"b{i}", "question": q.stem, "options": dict(q.options), "answer_idx": q.gold}
        for i, q in enumerate(TRAIN[5:30])
    ]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, bench)))
    assert [q.question_id for q in read_texts(str(tmp_path / "train.jsonl"))][:3] == ["row 1", "row 2", "row 3"]
    done = medrefl(tmp_path, "contamination", "train.jsonl", "bench.jsonl", "--out", "pairs.csv")
    assert done.returncode == 1, done.stderr
    assert "MinHash, n-grams: 3 of 4 training texts match 3 of 25 evaluation questions" in done.stdout
    assert "rapidfuzz, stems: 3 of 4 training texts match 3 of 25 evaluation questions" in done.stdout
    assert "b2: A" in done.stdout and TRAIN[7].stem.startswith("A"), "ids with the first words"
    pairs = pd.read_csv(tmp_path / "pairs.csv").set_index("other_id")
    assert (
        set(pairs.index) == {"b0", "b1", "b2"} and pairs.loc["b2", "how"] == "same" and pairs.loc["b1", "ratio"] == 100
    )
    (tmp_path / "clean.jsonl").write_text(json.dumps(rows[2]))
    assert medrefl(tmp_path, "contamination", "clean.jsonl", "bench.jsonl").returncode == 0
    (tmp_path / "clean.jsonl").write_text(json.dumps(rows[4]))
    done = medrefl(tmp_path, "contamination", "clean.jsonl", "bench.jsonl")
    assert done.returncode == 2 and "no row has text under question, stem, prompt" in done.stderr


WORDS = st.lists(st.sampled_from("fever rash cough pain itch".split()), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=4))
def test_hashing_misses_nothing_that_comparing_all_finds(ours: list[str], theirs: list[str]) -> None:
    options = {"A": "one", "B": "two"}
    training = [Question(f"t{i}", stem, options, "A") for i, stem in enumerate(ours)]
    evaluation = [Question(f"e{i}", stem, options, "B") for i, stem in enumerate(theirs)]

    def grams(stem: str) -> set:
        words = stem.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words)}

    expected = set()
    for i, a in enumerate(ours):
        for j, b in enumerate(theirs):
            shared, both = len(grams(a) & grams(b)) + 2, len(grams(a) | grams(b)) + 2
            small = min(len(grams(a)), len(grams(b))) + 2
            if shared / both >= 0.8 or a == b:
                expected.add((f"t{i}", f"e{j}"))
            elif shared / small >= 0.95 and shared / both < 0.6:
                expected.discard((f"t{i}", f"e{j}"))  # contained, and so far apart that hashing need not see it
    found = find_overlaps(training, evaluation, threshold=0.8)
    pairs = set(zip(found["question_id"], found["other_id"], strict=True))
    assert expected <= pairs
    assert all(row.jaccard >= 0.8 or row.containment >= 0.95 or row.how == "same" for row in found.itertuples())


def test_medqa_questions_overlap_the_other_version_of_their_file(shared_data) -> None:
    from medrefl_utils.exam import load_questions

    four = load_questions(str(shared_data / "benchmarks" / "medqa_usmle_4op_test.jsonl"), limit=200)
    five = load_questions(str(shared_data / "benchmarks" / "medqa_usmle_5op_test.jsonl"), limit=200)
    found = find_overlaps(four, five)
    assert found["question_id"].nunique() > 190  # the same stems, less one option
    assert find_overlaps(four[:100], five[100:]).empty
