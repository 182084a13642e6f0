"""Stage 08 as a user runs it: the real notebook on the clinic, its table and its record; what is refused before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, BertTokenizerFast

from medrefl_utils.core import CHAINS, OVERLAPS, MedReflError, RunFiles, read_table
from medrefl_utils.exam import clinic, extract_answer, prompts
from medrefl_utils.models import open_embedder
from medrefl_utils.runs import check_inputs, load_profile, notebook_parameters
from medrefl_utils.runs.chain_probe import probe_chains
from tests.server import serving

ROOT = Path(__file__).parents[1]
STAGE = "08_knowledge_chains"
NOTEBOOK = {STAGE: ROOT / "notebooks" / f"{STAGE}.ipynb"}
SMALL = {"n_questions": 10, "n_evaluation_questions": 10, "filter_samples": 1, "quantization": "none", "min_lift": 0.0}


def medrefl(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medrefl_utils", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def parameters(tmp_path: Path, **changed: object) -> dict[str, object]:
    profile = tmp_path / "p.yaml"
    profile.write_text(yaml.safe_dump({"shared": {"run": "t"}, STAGE: SMALL | changed}))
    return dict(load_profile(profile, NOTEBOOK, root=ROOT).parameters[STAGE])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run of the stage; its folder is removed at the end."""
    files = RunFiles(ROOT / "runs" / "test_chains")
    shutil.rmtree(files.root, ignore_errors=True)
    profile = tmp_path_factory.mktemp("profile") / "chains.yaml"
    profile.write_text(yaml.safe_dump({"stages": [STAGE], "shared": {"run": "test_chains"}, STAGE: SMALL}))
    done = medrefl("run", str(profile))
    yield files, profile, done
    shutil.rmtree(files.root)


pytestmark = pytest.mark.timeout(900)


def test_the_stage_makes_a_row_per_question(finished) -> None:
    files, _, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    table = read_table(files.chains, CHAINS)
    questions = clinic.make_exam(10)
    assert table["question_id"].tolist() == [question.question_id for question in questions]
    assert read_table(files.chain_overlaps, OVERLAPS).empty
    for row, question in zip(table.itertuples(), questions, strict=True):
        assert row.prompt[0]["content"] == prompts.exam(question)[0]["content"]
        assert extract_answer(row.completion[0]["content"], question.options).letter == question.gold
        assert row.supported == row.n_steps == len(row.support) and row.kept == pd.isna(row.reason)
        assert row.kept == (row.pass_with >= 0.5 and row.pass_with - row.pass_without >= 0.0)
    assert table["kept"].any() and table["pass_other"].notna().all()


def test_its_record_agrees_with_its_table(finished) -> None:
    files, _, _ = finished
    table, entry = read_table(files.chains, CHAINS), json.loads(files.manifest.read_text())["stages"][STAGE]
    figures = entry["figures"]
    assert figures["kept"] == table["kept"].sum() and figures["pass_with"] == pytest.approx(table["pass_with"].mean())
    assert figures["steps"] == {"supported": 1.0, "contradicted": 0.0, "unknown": 0.0}
    assert figures["ledger"]["model"]["calls"] == 30 and entry["tokens"] > 0
    assert set(entry["outputs"]) == {
        *("chains.parquet", "chain_overlaps.parquet", "chain_exports", "figures/chains.png")
    }
    lines = (files.chain_exports / "train.jsonl").read_text().splitlines()
    assert len(lines) == figures["kept"] and (files.chain_exports / "README.md").exists()


def test_the_plan_predicts_the_calls_that_the_stage_counts(tmp_path) -> None:
    (calls, read, written, seconds), how = probe_chains(parameters(tmp_path), RunFiles(tmp_path / "run"), 2)
    assert (calls, how) == (30, "the chains of 2 of 10 questions") and min(read, written, seconds) > 0


KINDS = {
    "linking": "Which medical entities",
    "path_choice": '"Chosen: n, n"',
    "writer": "Write the reasoning of an expert",
    "filter_model": "Reason in numbered steps",
}
"""{parameter: words of the prompt that a model is asked with for it}"""


@pytest.mark.parametrize("asking", [*KINDS, "none"])
def test_the_plan_counts_every_call_that_the_parameters_ask_for(tmp_path, asking: str) -> None:
    """A probe of all questions asks the server what the stage will ask; the replies are kept for the stage."""
    changed = {"filter_model": "off"} | (
        {asking: "self" if asking == "filter_model" else "model"} if asking in KINDS else {}
    )
    run = RunFiles(tmp_path / "run")
    with serving(names={"m"}) as server:
        values = parameters(tmp_path, n_questions=3, endpoint=server.url, endpoint_model="m", **changed)
        (calls, read, written, _), how = probe_chains(values, run, 3)
        asked = of_the_stage(server.requests)
        again, _ = probe_chains(values, run, 3)
        assert again[0] == calls and len(of_the_stage(server.requests)) == len(asked)
    assert calls == sum(body.get("n", 1) for body in asked) and how == "the chains of 3 of 3 questions"
    assert (calls > 0) == (read > 0) == (written > 0) == (asking in KINDS)
    assert all(KINDS[asking] in body["messages"][0]["content"] for body in asked)


def of_the_stage(requests: list[dict]) -> list[dict]:
    """Without those that find out what the server can do."""
    return [body for body in requests if any(words in body["messages"][0]["content"] for words in KINDS.values())]


def test_the_plan_keeps_the_rate_limits_of_the_server(tmp_path) -> None:
    with serving(names={"m"}) as server:
        values = parameters(tmp_path, n_questions=3, endpoint=server.url, endpoint_model="m", filter_model="self")
        seconds = {}
        for limit in (0, 120):
            run = RunFiles(tmp_path / str(limit))
            seconds[limit] = probe_chains(values | {"requests_per_minute": limit}, run, 3)[0][3]
    assert seconds[120] > seconds[0] + 3  # nine requests, half a second apart


def test_a_second_time_executes_nothing(finished) -> None:
    _, profile, _ = finished
    again = medrefl("run", str(profile))
    assert again.returncode == 0 and "unchanged, skipped" in again.stdout
    changed = medrefl("run", str(profile), "--dry-run", "--set", f"{STAGE}.max_hops=3")
    assert "max_hops: 4 -> 3" in changed.stdout


def test_a_broken_graph_is_refused_before_anything(tmp_path) -> None:
    graph = tmp_path / "graph.csv"
    graph.write_text("relation,display_relation,x_index,x_id\n1,2,3,4\n")
    values = parameters(tmp_path, graph=str(graph))
    with pytest.raises(MedReflError, match=r"graph\.csv, line 1: the column 'x_type' is missing"):
        check_inputs({STAGE: values}, RunFiles(tmp_path / "run"), ())
    with pytest.raises(MedReflError, match="no such file or folder"):
        parameters(tmp_path, graph="./nowhere.csv")
    good = parameters(tmp_path)
    assert check_inputs({STAGE: good}, RunFiles(tmp_path / "run"), ()) == []


def test_a_missing_filter_model_is_refused_before_anything(tmp_path) -> None:
    with pytest.raises(MedReflError, match="nowhere"):
        check_inputs({STAGE: parameters(tmp_path) | {"filter_model": "./nowhere"}}, RunFiles(tmp_path / "run"), ())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"embedder": "./nowhere"}, r"\./nowhere"),
        ({"embedder": "EMPTY"}, "the folder has no config.json"),
        ({"embedder": "NO_TOKENIZER"}, "no tokenizer there, expected tokenizer.json"),
        ({"embedder": "NO_WEIGHTS"}, "no weights there, expected model.safetensors"),
        ({"embedder_endpoint": "http://x/v1"}, "embedder_endpoint_model is empty: give the name of the encoder there"),
        ({"embedder": "x", "linking": "offline"}, "embedder is x, but linking is offline, which asks no encoder"),
        (
            {"embedder_endpoint": "http://x/v1", "embedder_endpoint_model": "m", "linking": "offline"},
            "embedder_endpoint is http://x/v1, but linking is offline",
        ),
    ],
)
def test_a_faulty_encoder_is_refused_before_anything(tmp_path, tiny_student, changed: dict, expected: str) -> None:
    broken = {"EMPTY": None, "NO_TOKENIZER": "tokenizer*", "NO_WEIGHTS": "*.safetensors"}
    if (kind := changed.get("embedder")) in broken:
        folder = tmp_path / kind
        shutil.copytree(tiny_student, folder) if broken[kind] else folder.mkdir()
        for file in folder.glob(broken[kind] or "*"):
            file.unlink()
        changed = changed | {"embedder": str(folder)}
    with pytest.raises(MedReflError, match=expected):
        check_inputs({STAGE: parameters(tmp_path, **{"linking": "model"} | changed)}, RunFiles(tmp_path / "run"), ())


def test_an_encoder_needs_no_chat_template_and_its_kind_is_free(tmp_path) -> None:
    encoder = tmp_path / "encoder"
    words = {word: place for place, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fever", "cough"))}
    BertTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "[UNK]"))).save_pretrained(encoder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(encoder)
    assert open_embedder(str(encoder)).embed(["fever", "cough"]).shape == (2, 8)
    values = parameters(tmp_path, linking="model", embedder=str(encoder))
    assert check_inputs({STAGE: values}, RunFiles(tmp_path / "run"), ()) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("writer", "gpt", "expected one of rule, model"),
        ("chain_format", "json", "expected one of steps, huatuo, medreason, think"),
        ("path_targets", "all", "expected one of gold, options"),
        ("min_pass", 1.5, "expected 0 to 1"),
        ("max_hops", 0, "expected at least 1"),
        ("graph_columns", ["x"], "expected dict"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(tmp_path, name: str, value: object, expected: str) -> None:
    with pytest.raises(MedReflError, match=expected):
        parameters(tmp_path, **{name: value})


def test_a_question_that_is_in_the_evaluation_stops_the_stage_or_is_left_out(tmp_path, root) -> None:
    """03's check: training questions of the test split are those of the evaluation."""
    files = RunFiles(root / "runs" / "test_chains_overlap")
    shutil.rmtree(files.root, ignore_errors=True)
    profile = tmp_path / "p.yaml"
    same = {"split": "test", "filter_model": "off"}
    profile.write_text(yaml.safe_dump({"stages": [STAGE], "shared": {"run": files.root.name}, STAGE: SMALL | same}))
    try:
        done = medrefl("run", str(profile))
        assert done.returncode == 1 and "10 of 10 training questions are in the evaluation" in done.stderr + done.stdout
    finally:
        shutil.rmtree(files.root, ignore_errors=True)


def test_the_choices_are_those_of_the_package() -> None:
    from medrefl_utils.knowledge import CHAIN_FORMATS, PATH_TARGETS, WRITERS
    from medrefl_utils.runs.parameter_limits import LIMITS

    for name, theirs in (("chain_format", CHAIN_FORMATS), ("path_targets", PATH_TARGETS), ("writer", WRITERS)):
        assert LIMITS[name].expected == f"one of {', '.join(theirs)}"
    assert notebook_parameters(NOTEBOOK[STAGE])["writer"].default in WRITERS
