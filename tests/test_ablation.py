"""Arms of equal size and their controls; paired differences; an ablation from its notebook, whole and interrupted."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from medrefl_utils.core import (
    ABLATION,
    CONTINUATIONS,
    CONTRASTS,
    PAIRS,
    RESPONSES,
    Continuation,
    MedReflError,
    Question,
    RunFiles,
    Sampling,
    read_table,
)
from medrefl_utils.evaluation import (
    ablation_results,
    draw_equal_arms,
    evaluate_arm,
    holm,
    make_protocol,
    paired_difference,
    shared_pairs,
)
from medrefl_utils.models import Usage
from medrefl_utils.pairs import pair_id
from tests.test_pipeline import medrefl

KINDS = ["reasoning"] * 9 + ["reflection_mid"] * 3 + ["reflection_post"] * 2 + ["random_cot"] * 7
ARMS = ["reasoning", "reflection", "reasoning+reflection", "random_cot"]


def pair(number: int, kind: str) -> dict[str, object]:
    prompt = [{"role": "user", "content": f"Which {number}?"}]
    sides = {name: [{"role": "assistant", "content": f"{name} {number}"}] for name in ("chosen", "rejected")}
    return {
        **dict.fromkeys(PAIRS.names),
        **{"pair_id": pair_id(kind, prompt, *sides.values()), "question_id": f"q{number}", "kind": kind},
        **{"prompt": prompt, **sides, "chosen_value": 1.0, "rejected_value": -0.5, "chosen_nodes": [1]},
        **{"rejected_nodes": [2], "prompt_tokens": 3, "chosen_tokens": 5, "rejected_tokens": 7},
    }


TABLE = pd.DataFrame([pair(number, kind) for number, kind in enumerate(KINDS)])


def texts(table: pd.DataFrame, side: str) -> list[str]:
    return [messages[0]["content"] for messages in table[side]]


def test_every_arm_gets_as_many_pairs_as_the_poorest_has():
    drawn, left_out = draw_equal_arms(TABLE, ARMS, [1, 2])
    arms = drawn[1]
    assert {arm: len(table) for arm, table in arms.items()} == dict.fromkeys(ARMS, 5) and not left_out
    assert set(arms["reflection"]["kind"]) == {"reflection_mid", "reflection_post"}
    assert set(arms["random_cot"]["kind"]) == {"random_cot"}
    assert set(arms["reasoning+reflection"]["kind"]) <= {"reasoning", "reflection_mid", "reflection_post"}
    assert arms["reasoning"].equals(draw_equal_arms(TABLE, ARMS, [1])[0][1]["reasoning"])
    assert not arms["reasoning"].equals(drawn[2]["reasoning"])


def test_an_arm_with_too_few_pairs_is_named_and_the_others_go_on():
    lost = {"reflection_mid_no_reflection": 40, "reflections_reflection_unsaid": 31, "reasoning_margin": 99}
    drawn, left_out = draw_equal_arms(TABLE, ARMS, [0], n=6, lost=lost)
    assert {arm: len(table) for arm, table in drawn[0].items()} == dict.fromkeys([ARMS[0], *ARMS[2:]], 6)
    assert left_out == {
        "reflection": "not trained: 5 of 6 pairs (dropped: reflection_mid_no_reflection 40,"
        " reflections_reflection_unsaid 31)"
    }
    drawn, left_out = draw_equal_arms(TABLE, ARMS, [0], least=6)
    assert len(drawn[0]["reasoning"]) == 7 and left_out == {"reflection": "not trained: 5 of 6 pairs"}
    without = TABLE[~TABLE["kind"].str.startswith("reflection")]
    assert draw_equal_arms(without, ARMS, [0])[1] == {"reflection": "not trained: 0 of 1 pairs"}


def test_it_stops_where_no_arm_is_left_and_at_an_unknown_one():
    with pytest.raises(MedReflError, match=r"no arm is left \('reflection' is not trained: 5 of 6 .*: lower pairs_per"):
        draw_equal_arms(TABLE, ["reflection"], [0], n=6)
    with pytest.raises(MedReflError, match=r"'thinking' is given, expected some of reasoning"):
        draw_equal_arms(TABLE, ["reasoning+thinking"], [0])


def test_a_random_arm_that_is_the_reasoning_arm_is_left_out_with_its_share():
    """Of 7 random pairs 2 are reasoning pairs (29%); with 1 (14%) the arm stays."""
    reasoning = TABLE[TABLE["kind"] == "reasoning"]
    for repeated, kept in ((2, False), (1, True)):
        other = TABLE[TABLE["kind"] == "random_cot"].copy()
        other.iloc[:repeated] = reasoning.iloc[:repeated].assign(kind="random_cot")
        table = pd.concat([reasoning, other], ignore_index=True)
        assert shared_pairs(other, reasoning) == repeated / 7
        drawn, left_out = draw_equal_arms(table, ["reasoning", "random_cot"], [0], n=7)
        if kept:
            assert not left_out
        elif left_out:  # the two are in the arm only if the draw has them
            assert left_out == {"random_cot": "not trained: 29% of its random pairs are reasoning pairs, at most 20%"}
            assert list(drawn[0]) == ["reasoning"]
    whole, out = draw_equal_arms(
        pd.concat([reasoning, reasoning.assign(kind="random_cot")]), ["reasoning", "random_cot"], [0]
    )
    assert list(whole[0]) == ["reasoning"] and "100% of its random pairs" in out["random_cot"]


def test_a_random_pair_is_shared_by_both_of_its_texts():
    reasoning = TABLE[TABLE["kind"] == "reasoning"].iloc[:2].reset_index(drop=True)
    other = reasoning.assign(kind="random_cot")
    assert shared_pairs(other, reasoning) == 1
    half = other.assign(rejected=[other["rejected"][1], other["rejected"][1]])
    assert shared_pairs(half, reasoning) == 0.5  # the first has the chosen side alone
    assert shared_pairs(other.assign(question_id=["q1", "q0"]), reasoning) == 0
    assert shared_pairs(other.iloc[:0], reasoning) == 0


def test_the_controls_have_the_pairs_of_their_arm_with_sides_exchanged():
    arms = ["reasoning", "shuffled reasoning", "swapped reasoning"]
    drawn, _ = draw_equal_arms(TABLE, arms, [0], n=8)
    plain, shuffled, swapped = (drawn[0][arm] for arm in arms)
    assert texts(swapped, "chosen") == texts(plain, "rejected") and texts(swapped, "rejected") == texts(plain, "chosen")
    assert set(swapped["chosen_value"]) == {-0.5} and set(swapped["chosen_tokens"]) == {7}
    assert swapped["chosen_nodes"].tolist() == [[2]] * 8
    exchanged = [a != b for a, b in zip(texts(shuffled, "chosen"), texts(plain, "chosen"), strict=True)]
    assert sum(exchanged) == 4
    assert [a != b for a, b in zip(shuffled["pair_id"], plain["pair_id"], strict=True)] == exchanged
    assert shuffled["question_id"].tolist() == plain["question_id"].tolist()
    for table in (shuffled, swapped):
        row = table.iloc[0]
        assert row["pair_id"] == pair_id("reasoning", row["prompt"], row["chosen"], row["rejected"])


# --- results ---


def answers(model: str, protocol: str, right: np.ndarray) -> pd.DataFrame:
    """Responses of the shape (runs, questions)."""
    runs, n = right.shape
    frame = pd.DataFrame(index=range(right.size), columns=RESPONSES.names)
    return frame.assign(
        **{"model": model, "protocol": protocol, "run": np.repeat(np.arange(runs), n), "gold": "A"},
        **{"question_id": [f"q{i % n}" for i in range(right.size)], "correct": right.ravel()},
    )


def continuations(model: str, right: np.ndarray) -> pd.DataFrame:
    """Continuations of the shape (places, runs, questions, samples), right or not, in all three places."""
    places, runs, n, samples = right.shape
    frame = pd.DataFrame(index=range(right.size), columns=CONTINUATIONS.names)
    where = np.indices(right.shape).reshape(4, -1)
    names = np.array(["wrong step", "wrong answer", "right answer"])
    return frame.assign(
        **{"model": model, "behind": names[where[0]], "run": where[1], "sample": where[3], "gold": "A"},
        **{"question_id": [f"q{i}" for i in where[2]], "wrong_share": 0.25, "reconsiders": True},
        **{"before": np.where(where[0] == 2, "A", "B"), "answer": np.where(right.ravel(), "A", "B")},
    )


def results() -> tuple[pd.DataFrame, pd.DataFrame, dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    chances = {"base": 0.5, "good": 0.7, "same": 0.5, "bad": 0.3}
    asked = {model: {p: rng.random((3, 120)) < c for p in ("sampled", "greedy")} for model, c in chances.items()}
    asked["good"]["greedy"] = asked["base"]["greedy"].copy()  # all of its gain is in the other protocol
    continued = {model: rng.random((3, 3, 120, 4)) < c for model, c in chances.items()}
    responses = pd.concat([answers(m, p, right) for m, ways in asked.items() for p, right in ways.items()])
    repairs = pd.concat([continuations(m, right) for m, right in continued.items()])
    mixed = responses.sample(frac=1, random_state=1), repairs.sample(frac=1, random_state=1)
    found = ablation_results(*(t.sort_values("model", key=lambda c: c.map(list(chances).index)) for t in mixed), 9)
    return *found, asked, continued


def test_results_by_hand():
    table, contrasts, asked, continued = results()
    assert list(table) == ABLATION.names and list(contrasts) == CONTRASTS.names
    rows = table.set_index(["arm", "protocol"])
    for model, ways in asked.items():
        for protocol, right in ways.items():
            row = rows.loc[(model, protocol)]
            assert (row["accuracy"], row["n"], row["runs"]) == (pytest.approx(right.mean()), 120, 3)
            assert row["n_pairs"] == (0 if model == "base" else 9)
            gains = [] if model == "base" else (right.mean(axis=1) - asked["base"][protocol].mean(axis=1)).tolist()
            assert row["gains"] == pytest.approx(gains), (model, protocol)
            step, wrong, kept = (continued[model][place].mean() for place in range(3))
            assert row["repair"] == pytest.approx(step) and row["mends"] == pytest.approx(wrong)
            assert row["breaks"] == pytest.approx(1 - kept) and row["fake"] == pytest.approx(1 - wrong)
            assert row["net"] == pytest.approx(0.25 * wrong - 0.75 * (1 - kept))
            assert row["net_low"] < row["net"] < row["net_high"]
    assert rows.loc[("good", "greedy"), "gain"] == 0 < rows.loc[("good", "sampled"), "gain_low"]


def test_contrasts_are_paired_with_the_base_and_between_arms_and_holm_is_within_a_figure():
    table, contrasts, asked, continued = results()
    rows = contrasts.set_index(["figure", "arm", "against"])
    assert len(contrasts) == 7 * (3 + 3) and set(contrasts["runs"]) == {3} and set(contrasts["n"]) == {120}
    apart = (continued["good"][0].mean(axis=2) - continued["same"][0].mean(axis=2)).ravel()
    names, runs = [f"q{i}" for i in range(120)] * 3, np.repeat(range(3), 120)
    row, alone = rows.loc[("repair rate", "good", "same")], paired_difference(apart, names, runs)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(alone[:3], abs=0.006)
    assert row["difference"] == pytest.approx(apart.mean()) and row["detectable"] == pytest.approx(
        alone.detectable, rel=0.05
    )
    for figure, of_figure in contrasts.groupby("figure"):
        for family in (of_figure["against"] == "base", of_figure["against"] != "base"):
            assert of_figure.loc[family, "holm_p"].tolist() == pytest.approx(holm(of_figure.loc[family, "p"])), figure
    assert rows.loc[("net self-correction", "good", "base"), "low"] > 0
    assert rows.loc[("net self-correction", "bad", "base"), "high"] < 0
    gain = table.set_index(["arm", "protocol"]).loc[("bad", "sampled")]
    same = rows.loc[("accuracy, sampled", "bad", "base")]
    assert (gain["gain"], gain["gain_low"], gain["gain_high"]) == (same["difference"], same["low"], same["high"])


def test_stems_are_clusters_of_the_contrasts():
    """Twice the same questions under one stem give the interval of once."""
    rng = np.random.default_rng(1)
    base, arm = rng.random((2, 2, 80)) < np.array([0.4, 0.6])[:, None, None]
    once = pd.concat([answers("base", "greedy", base), answers("arm", "greedy", arm)])
    again = once.assign(question_id=once["question_id"] + "x")
    twice = pd.concat([once, again]).assign(stem_id=lambda t: t["question_id"].str.removesuffix("x"))
    none = continuations("base", np.zeros((3, 1, 0, 1), bool))
    widths = [
        (row["high"] - row["low"])
        for t in (once, twice, twice.assign(stem_id=None))
        for _, row in ablation_results(t, none, 1)[1].iterrows()
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.06) and widths[2] < 0.8 * widths[0]


class Refuses:
    """A server that refuses one question until it is told to accept it."""

    thinking_open, thinking_close = False, None

    def __init__(self, accepts: bool):
        self.accepts, self.asked, self.usage = accepts, 0, Usage()

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def chat(self, messages, sampling, seeds, progress=None):
        self.asked += len(messages)
        return [
            Continuation("", (), None, "refused", refusal="no")
            if not self.accepts and "one?" in message[0]["content"]
            else Continuation("Answer: A", (1,), None, "end")
            for message in messages
        ]

    def expand(self, prefixes, k, stop, sampling, seeds, progress=None):
        return []


def test_refused_prompts_are_counted_not_stored_and_asked_again(tmp_path):
    exam = [Question(name, f"{name}?", {"A": "x", "B": "y"}, "A", "exam") for name in ("one", "two")]
    begun = pd.DataFrame(columns=["question_id", "behind", "nodes", "prefix", "before", "wrong_share"])
    put = dict(model="base", run=0, exam=exam, protocols=[make_protocol("greedy", max_tokens=9)], begun=begun)
    put |= dict(sampling=Sampling(0.0, 1.0, 9), seed=0, key="k")
    stored = tmp_path / "responses.parquet"
    for accepts, returned, kept, asked in ((False, 2, 1, 2), (False, 2, 1, 2), (True, 2, 2, 2), (True, 2, 2, 0)):
        server = Refuses(accepts)
        responses, _ = evaluate_arm(tmp_path, lambda server=server: server, **put)
        assert (len(responses), len(read_table(stored, RESPONSES)), server.asked) == (returned, kept, asked)
        assert (responses["stop"] == "refused").sum() == (not accepts)
    for other in (dict(samples=2), dict(seed=1), dict(key="l"), dict(runs_on="vllm")):
        server = Refuses(accepts=True)
        evaluate_arm(tmp_path, lambda server=server: server, **put | other)
        assert server.asked == 2, other


@pytest.mark.timeout(600)
def test_the_ablations_profile_ends_with_the_table_and_goes_on_where_it_stopped(root):
    files = RunFiles(root / "runs" / "test_ablation")
    shutil.rmtree(files.root, ignore_errors=True)
    small = {
        "shared.run": "test_ablation",
        "01_tree_rollout.n_questions": 32,
        "03_pair_construction.n_evaluation_questions": 40,
        "07_ablation.n_questions": 24,
        "07_ablation.self_correction_questions": 12,
        "07_ablation.pairs_per_arm": 8,
        "07_ablation.seeds": "[0, 1]",
        # an arm that has too few pairs, whatever the student writes
        "03_pair_construction.max_reflection_pairs": 3,
        "07_ablation.arms": "[reasoning, reflection_post, swapped reasoning]",
        "07_ablation.batch_size": 4,
        "07_ablation.self_correction_samples": 3,
    }
    command = ["run", "params/ablation.yaml", *(f"--set={key}={value}" for key, value in small.items())]
    try:
        done = medrefl(root, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "8 pairs per arm, 24 questions, 2 seeds" in done.stdout and "net, points" in done.stdout
        assert re.search(r"^ *swapped reasoning +sampled +\d+\.\d +[+-]\d", done.stdout, re.MULTILINE)
        assert re.search(r"reflection_post: not trained: [0-3] of 8 pairs", done.stdout), done.stdout
        assert re.search(r"net self-correction: \d+ questions and 2 seeds detect \d", done.stdout)
        whole = read_table(files.ablation, ABLATION)
        assert whole["arm"].drop_duplicates().tolist() == ["base", "reasoning", "swapped reasoning", "reflection_post"]
        out = whole[whole["left_out"].notna()]
        assert out["arm"].tolist() == ["reflection_post"] and out["gain"].isna().all()
        table = whole[whole["left_out"].isna()]
        assert set(table["protocol"]) == {"sampled", "greedy"} and set(table["n"]) == {24} and set(table["runs"]) == {2}
        tuned = table[table["arm"] != "base"]
        assert set(tuned["n_pairs"]) == {8} and all(len(gains) == 2 for gains in tuned["gains"])
        assert tuned["gain"].tolist() == pytest.approx([sum(gains) / 2 for gains in tuned["gains"]])
        assert table["repair"].between(0, 1).all() and table["fake"].between(0, 1).all()
        contrasts = read_table(files.contrasts, CONTRASTS)
        pairs_of_arms = set(zip(contrasts["arm"], contrasts["against"], strict=True))
        arms = ("reasoning", "swapped reasoning")
        assert pairs_of_arms == {*((arm, "base") for arm in arms), arms} and contrasts["figure"].nunique() == 7
        repairs = read_table(files.arms / "reasoning-0" / "continuations.parquet", CONTINUATIONS)
        assert set(repairs["sample"]) == {0, 1, 2}
        assert not files.scores.exists() and (files.figures / "ablation.png").exists()
        assert len(read_table(files.pairs, PAIRS)) > 8

        kept = (files.arms / "reasoning-0" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
        lost = files.arms / "swapped reasoning-1" / "responses.parquet"
        before = lost.read_bytes()
        lost.unlink()
        notebook = root / "notebooks" / "07_ablation.ipynb"
        import papermill

        papermill.execute_notebook(
            notebook, None, {**_parameters(files), "run": "runs/test_ablation"}, cwd=root, progress_bar=False
        )
        assert lost.read_bytes()[:4] == before[:4] == b"PAR1"
        assert (files.arms / "reasoning-0" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == kept
        assert read_table(files.ablation, ABLATION).equals(whole)
        assert read_table(files.contrasts, CONTRASTS).equals(contrasts)
    finally:
        shutil.rmtree(files.root, ignore_errors=True)


def _parameters(files: RunFiles) -> dict[str, object]:
    import json

    return json.loads(files.manifest.read_text())["parameters"]["07_ablation"]
