"""Tables, hashes and the manifest: whole or not at all, and one clear line when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medrefl_utils.core import QUESTIONS, STEPS, VALUES, MedReflError, RunFiles, store

ROW = {"question_id": "q1", "node_id": 0, "right": 1.0, "wrong": 0.0, "value": 1.0}


def values(**columns: object) -> pd.DataFrame:
    return pd.DataFrame([ROW]).assign(**columns)


def test_table_comes_back_with_the_schemas_columns_and_types(tmp_path: Path) -> None:
    path = store.write_table(tmp_path / "deep/values.parquet", values(extra="left out"), VALUES)
    assert pq.read_schema(path).equals(VALUES, check_metadata=False)
    assert pq.read_schema(path).field("value").metadata[b"doc"].startswith(b"step value V")
    found = store.read_table(path, VALUES)
    assert list(found.columns) == VALUES.names
    assert found.iloc[0].to_dict() == ROW
    assert found["node_id"].dtype == np.int32


def test_options_come_back_in_their_order_as_something_dict_takes(tmp_path: Path) -> None:
    options = {"B": 'two\nlines "quoted"', "A": ""}
    row = {"question_id": "q", "stem": "s", "options": options, "gold": "A", "source": "x", "split": "test"}
    path = store.write_table(tmp_path / "questions.parquet", pd.DataFrame([row]), QUESTIONS)
    assert list(dict(store.read_table(path, QUESTIONS)["options"][0]).items()) == list(options.items())


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    row = dict.fromkeys(STEPS.names) | {"question_id": "q", "node_id": 0, "outcome": float("nan"), "token_ids": [1, 2]}
    found = store.read_table(store.write_table(tmp_path / "s.parquet", pd.DataFrame([row]), STEPS), STEPS).iloc[0]
    assert list(found["token_ids"]) == [1, 2]
    assert found[["parent_id", "answer", "outcome"]].isna().all()


def test_a_folder_is_read_in_the_order_of_its_shards(tmp_path: Path) -> None:
    for name, node in (("00001", 1), ("00000", 0), ("00002", 2)):
        store.write_table(tmp_path / "steps" / f"{name}.parquet", values(node_id=node), VALUES)
    (tmp_path / "steps/.00003.parquet.1.tmp").write_bytes(b"half a shard")
    (tmp_path / "steps/.hidden.parquet").write_bytes(b"half a shard")
    assert store.read_table(tmp_path / "steps", VALUES)["node_id"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: None, "values.parquet is missing: 02_step_valuation makes it"),
        (lambda p: p.mkdir(), "values.parquet is empty: 02_step_valuation makes it"),
        (lambda p: p.write_bytes(b"no parquet at all"), "values.parquet cannot be read as this table: "),
        (lambda p: p.write_bytes(b""), "values.parquet cannot be read as this table: "),
        (
            lambda p: pq.write_table(pa.table({"question_id": ["q"], "node_id": [1]}), p),
            "values.parquet lacks the column 'right': found question_id, node_id",
        ),
        (
            lambda p: pq.write_table(pa.table({k: [v] for k, v in (ROW | {"node_id": "x"}).items()}), p),
            "values.parquet cannot be read as this table: ",
        ),
    ],
)  # fmt: skip
def test_an_unreadable_table_is_one_line(tmp_path: Path, prepare: object, message: str) -> None:
    path = tmp_path / "values.parquet"
    prepare(path)
    with pytest.raises(MedReflError) as caught:
        store.read_table(path, VALUES)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_changed_byte_of_the_data_is_read_as_another_value(tmp_path: Path) -> None:
    """The pages have checksums: without them most of these changes would be read as other numbers or texts."""
    table = pd.concat([values(node_id=node, value=node / 7) for node in range(9)], ignore_index=True)
    path = store.write_table(tmp_path / "values.parquet", table, VALUES)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for place in range(4, len(whole) - 8 - footer):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            pd.testing.assert_frame_equal(store.read_table(path, VALUES), table, check_dtype=False)
        except MedReflError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (values().drop(columns="wrong"), "lacks the column 'wrong'"),
        (values(right="many"), "a value does not fit its column"),
        (values(node_id=2**40), "a value does not fit its column"),
    ],
)
def test_a_wrong_table_is_not_written_and_the_old_one_stays(tmp_path: Path, table: pd.DataFrame, message: str) -> None:
    path = store.write_table(tmp_path / "values.parquet", values(), VALUES)
    before = path.read_bytes()
    with pytest.raises(MedReflError, match=message):
        store.write_table(path, table, VALUES)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.write_table(tmp_path / "values.parquet", values(), VALUES)
    before = path.read_bytes()

    def cut(table: pa.Table, beside: Path, **_: object) -> None:
        beside.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(store.pq, "write_table", cut)
    with pytest.raises(MedReflError, match=r"values\.parquet cannot be written: no space left$"):
        store.write_table(path, values(value=-1.0), VALUES)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_content_hash_is_of_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "sub").mkdir(parents=True)
        (folder / "a").write_text("x")
        (folder / "sub/b").write_text("y")
    assert store.content_hash(one) == store.content_hash(two)
    (two / ".hidden").write_text("z")
    assert store.content_hash(one) == store.content_hash(two)
    (two / "a").rename(two / "c")
    assert store.content_hash(one) != store.content_hash(two)
    (two / "c").rename(two / "a")
    (two / "sub/b").write_text("Y")
    assert store.content_hash(one) != store.content_hash(two)
    # sha256 of "x", by hand: printf x | sha256sum
    assert store.content_hash(one / "a") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_record_writes_outputs_figures_and_tokens(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "r")
    store.write_table(run.values, values(), VALUES)
    store.write_manifest(run, {"run": "r", "stages": {"01": {"key": "k"}, "02": {"key": "old", "seconds": 1}}})
    figures = {"n": np.int64(3), "p": float("nan"), "mean": np.float32(0.5), "path": Path("x"), "list": (1, 2)}
    store.record_stage(run, "02", [run.values], figures, tokens=np.int64(12))
    manifest = json.loads(run.manifest.read_text())
    assert manifest["run"] == "r" and manifest["stages"]["01"] == {"key": "k"}
    # The old key is gone: what a hand made is not what the chain made.
    assert manifest["stages"]["02"] == {
        "outputs": {"values.parquet": store.content_hash(run.values)},
        "figures": {"n": 3, "p": None, "mean": 0.5, "path": "x", "list": [1, 2]},
        "tokens": 12,
    }


def test_record_wants_outputs_that_exist_inside_the_run(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "r")
    with pytest.raises(MedReflError, match="^02: .*values.parquet does not exist, so it cannot be recorded$"):
        store.record_stage(run, "02", [run.values], {})
    (tmp_path / "elsewhere").write_text("x")
    with pytest.raises(MedReflError, match="outside the run's folder"):
        store.record_stage(run, "02", [tmp_path / "elsewhere"], {})
    assert not run.manifest.exists()


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(MedReflError, match="manifest.json"):
        store.read_manifest(RunFiles(tmp_path))
