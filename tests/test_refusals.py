"""The table of bad inputs: each is one line, exit code 2, and no file changed; by the command, as a user types it.

``{root}`` in an expected line is the checkout, which is a folder of its own for each case.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from medrefl_utils.core import PAIRS, QUESTIONS, Question, RunFiles, write_table
from medrefl_utils.exam import questions_table
from medrefl_utils.runs import chain, preflight
from medrefl_utils.runs.cli import app

ROOT = Path(__file__).parents[1]
ROW = {"question": "Which?", "options": {"A": "one", "B": "two", "C": "three"}, "answer_idx": "B"}
PROFILE = "params/p.yaml"

Prepare = Callable[[Path], object]
Case = tuple[str, Prepare, list[str], str]


# --- what is wrong ---------------------------------------------------------------------------------------------------


def profile(name: str, content: str | bytes, line: str) -> Case:
    """A parameter file."""
    data = content.encode() if isinstance(content, str) else content
    return f"profile-{name}", lambda root: (root / PROFILE).write_bytes(data), ["run", PROFILE], f"{PROFILE}: {line}"


def value(text: str, line: str) -> Case:
    """A value given on the command line, of a parameter of one stage."""
    name = text.partition("=")[0]
    where = f"--set {name} (for {name.partition('.')[0].replace('shared', '01_tree_rollout')})"
    return f"set-{text}", lambda root: None, ["run", PROFILE, "--set", text], f"{where}: {line}"


def override(text: str, line: str) -> Case:
    """Anything else given on the command line."""
    return f"set-{text}", lambda root: None, ["run", PROFILE, "--set", text], line


def exam(
    name: str,
    content: Any,
    line: str,
    file: str = "exam.jsonl",
    stage: str = "05_benchmark_evaluation",
    offset: int = 0,
) -> Case:
    """A question file: bytes, or rows that become JSON lines. The last long stage asks for it, the first refuses it."""
    data = content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode()
    words = ["run", PROFILE, "--set", f"{stage}.questions={file}", "--set", f"{stage}.offset={offset}"]
    return f"exam-{name}", lambda root: (root / file).write_bytes(data), words, line


def model(name: str, change: Prepare, line: str, key: str = "shared.model") -> Case:
    """A copy of the tiny student, spoilt."""

    def prepare(root: Path) -> None:
        shutil.copytree(ROOT / "medrefl_utils" / "models" / "tiny_student", root / "student")
        change(root / "student")

    return f"model-{name}", prepare, ["run", PROFILE, "--set", f"{key}=student"], f"model student: {line}"


def adapter(name: str, change: Prepare, line: str) -> Case:
    """The run's adapter, spoilt, where evaluation takes it as it is."""
    words = ["run", PROFILE, "--only", "05"]
    return (
        f"adapter-{name}",
        lambda root: change(root / "runs/t/adapter"),
        words,
        f"adapter {{root}}/runs/t/adapter: {line}",
    )


def responses(name: str, rows: Any, line: str, *options: str) -> Case:
    """A file of written responses, scored against two questions."""

    def prepare(root: Path) -> None:
        write(root / "exam.jsonl", [ROW | {"id": 1}, ROW | {"id": 2, "question": "Who?", "answer_idx": "A"}])
        write(root / "said.jsonl", rows)

    return f"score-{name}", prepare, ["score", "said.jsonl", "--benchmark", "exam.jsonl", *options], line


def pairs(name: str, line: str, **changed: Any) -> Case:
    """The run's pairs, the second one spoilt, where training takes them as they are."""
    return (
        f"pairs-{name}",
        lambda root: write_pairs(root, changed),
        ["run", PROFILE, "--only", "04"],
        line,
    )


def write(path: Path, rows: Any) -> None:
    path.write_bytes(rows if isinstance(rows, bytes) else "\n".join(map(json.dumps, rows)).encode())


def write_pairs(root: Path, changed: dict[str, Any]) -> None:
    text = {
        s: [{"role": r, "content": s}]
        for s, r in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    }
    row = {"question_id": "q", "kind": "reasoning", "prompt_tokens": 3, "chosen_tokens": 3, "rejected_tokens": 3} | text
    rows = [row | {"pair_id": "p1"}, row | {"pair_id": "p2"} | changed]
    write_table(RunFiles(root / "runs/t").pairs, pa.Table.from_pylist(rows, schema=PAIRS), PAIRS)


def write_adapter(folder: Path, *, width: int = 128, rank: int = 4, layers: int = 4, **config: Any) -> None:
    tensors = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = np.zeros((rank, width), "float32")
        tensors[f"{name}.lora_B.weight"] = np.zeros((128, rank), "float32")
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {
        "base_model_name_or_path": "medrefl_utils/models/tiny_student",
        "r": 4,
        "target_modules": ["q_proj"],
    } | config
    (folder / "adapter_config.json").write_text(json.dumps(told))


def edited(name: str, **changes: Any) -> Prepare:
    """Change keys of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))

    return change


def removed(*names: str) -> Prepare:
    return lambda folder: [(folder / name).unlink() for name in names]


def replaced(name: str, content: str | bytes) -> Prepare:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def both(*changes: Prepare) -> Prepare:
    return lambda folder: [change(folder) for change in changes]


def weights(**shapes: tuple[int, ...]) -> Prepare:
    tensors = {name: np.zeros(shape, "float32") for name, shape in shapes.items()}
    return lambda folder: save_file(tensors, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def moved(name: str, to: str) -> Prepare:
    return lambda folder: (folder / name).rename(folder / to)


class _Hacked:
    """A pickle of it makes the file "hacked" where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("hacked", "w")


PICKLE = pickle.dumps(_Hacked())
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

CASES: list[Case] = [
    # --- parameter files
    (
        "profile-missing",
        lambda root: (root / PROFILE).unlink(),
        ["run", PROFILE],
        "params/p.yaml: cannot be read: No such file or directory",
    ),
    (
        "profile-folder",
        lambda root: [(root / PROFILE).unlink(), (root / PROFILE).mkdir()],
        ["run", PROFILE],
        "params/p.yaml: is not a file, expected a YAML profile",
    ),
    profile("empty", "\n", "found nothing, expected sections ('shared' and notebooks) with key: value lines"),
    profile(
        "comment-alone",
        "# nothing\n",
        "found nothing, expected sections ('shared' and notebooks) with key: value lines",
    ),
    profile("list", "- a\n- b\n", "found list, expected sections ('shared' and notebooks) with key: value lines"),
    profile("text", "just words", "found str, expected sections ('shared' and notebooks) with key: value lines"),
    profile(
        "not-yaml", "shared: [1, 2\n", "is not YAML we can use: expected ',' or ']', but got '<stream end>' (line 2)"
    ),
    profile("not-utf8", b"shared:\n  run: \xff\n", "is not UTF-8 text (byte 15)"),
    profile("binary", bytes(range(256)), "is not UTF-8 text (byte 128)"),
    profile(
        "python-object",
        "shared: !!python/object/apply:os.system ['touch hacked']\n",
        (
            "is not YAML we can use: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is "
            "not allowed here (line 1)"
        ),
    ),
    profile(
        "own-tag",
        "shared: {seed: !secret 1}\n",
        "is not YAML we can use: the tag '!secret' is not allowed here (line 1)",
    ),
    profile("bomb", BOMB, "is not YAML we can use: more than 10,000 values (line 4)"),
    profile("circle", "shared: &a\n  b: *a\n", "is not YAML we can use: an alias contains itself (line 1)"),
    profile("deep", "shared: " + "[" * 50_000, "is not YAML we can use: nested too deeply"),
    profile("huge", b"#" * 100_001, "100,001 bytes, expected a profile of at most 100,000"),
    profile(
        "repeated-key",
        "shared:\n  seed: 1\n  seed: 2\n",
        "is not YAML we can use: the key 'seed' appears twice (line 2)",
    ),
    profile(
        "unknown-section",
        "01_tree_rolout:\n  seed: 1\n",
        "unknown section '01_tree_rolout' (did you mean '01_tree_rollout'?)",
    ),
    profile(
        "unknown-key",
        "01_tree_rollout:\n  brunching: [2]\n",
        "section '01_tree_rollout': unknown key 'brunching' (did you mean 'branching'?)",
    ),
    profile(
        "unknown-shared",
        "shared:\n  sed: 1\n",
        "section 'shared': no notebook has the parameter 'sed' (did you mean 'seed'?)",
    ),
    profile("section-of-text", "shared: seed\n", "section 'shared' holds 'seed', expected key: value lines"),
    profile("no-date", "shared:\n  seed: 2024-13-45\n", "is not YAML we can use: month must be in 1..12"),
    profile(
        "endless-number",
        "shared:\n  seed: " + "9" * 5000 + "\n",
        (
            "is not YAML we can use: Exceeds the limit (4300 digits) for integer string conversion: "
            "value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit"
        ),
    ),
    profile("half-a-pair", 'shared:\n  model: "\\ud800"\n', "is not YAML we can use: half a surrogate pair (line 2)"),
    profile(
        "stages",
        "stages: [[1]]\n",
        (
            "'stages' names [1], which is not a notebook, expected one of 01_tree_rollout, 02_step_valuation, "
            "03_pair_construction, 04_dpo_lora_4bit, 05_benchmark_evaluation, 06_report, 07_ablation, "
            "08_knowledge_chains, 09_sft_lora_4bit"
        ),
    ),
    profile(
        "run-elsewhere",
        "shared:\n  run: ../x\n",
        "section 'shared': key 'run': found '../x', expected the run's name: letters, digits, '.', '_', '-'",
    ),
    profile(
        "run-too-long",
        "shared:\n  run: " + "x" * 101 + "\n",
        (
            "section 'shared': key 'run': found "
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            "xxxxxxxxxxx…, expected the run's name: letters, digits, '.', '_', '-'"
        ),
    ),
    # --- values
    value("shared.seed=x", "found 'x' (str), expected int"),
    value("shared.seed=-1", "found -1, expected at least 0"),
    override(
        "shared.run=/etc", "--set shared.run: found '/etc', expected the run's name: letters, digits, '.', '_', '-'"
    ),
    override("stages.x=1", "--set stages.x=1: expected section.key=value, such as shared.seed=1"),
    override("seed=1", "--set seed=1: expected section.key=value, such as shared.seed=1"),
    override(
        "shared.seed=[",
        "--set shared.seed=[: the value is not YAML: expected the node content, but found '<stream end>' (line 1)",
    ),
    override(
        "01_tree_rollout.search_mode=full-path",
        "max_frontier is 0, but search_mode full-path needs the number of steps that a round branches from",
    ),
    override(
        "03_pair_construction.endpoint=http://localhost:8000/v1",
        "03_pair_construction: endpoint is http://localhost:8000/v1, but endpoint_model is empty: give the model's "
        "name there",
    ),
    override("shared.questions=none.jsonl", "--set shared.questions: no such file or folder: none.jsonl"),
    override(
        "shared.questions=exam.txt",
        "exam.txt: no such file, not a dataset in the hub's local cache, and HF_HUB_OFFLINE is set",
    ),
    override("shared.questions=''", "source is empty: no such file"),
    override("shared.model=./student", "--set shared.model: no such file or folder: ./student"),
    override("shared.model=student", "model student: no such folder, and not a hub id of the form owner/name"),
    override(
        "05_benchmark_evaluation.judge=no-such/model",
        "model no-such/model: no such folder, not in the hub's local cache, and HF_HUB_OFFLINE is set",
    ),
    value("01_tree_rollout.branching=[]", "found [], expected one or more, each at least 1"),
    value("01_tree_rollout.branching=[3, 0]", "found [3, 0], expected one or more, each at least 1"),
    value("01_tree_rollout.temperature=-1", "found -1.0, expected at least 0"),
    value("01_tree_rollout.temperature=.nan", "found nan, expected at least 0"),
    value("01_tree_rollout.top_p=0", "found 0.0, expected above 0 and at most 1"),
    value("01_tree_rollout.top_p=2", "found 2.0, expected above 0 and at most 1"),
    value("01_tree_rollout.n_questions=-3", "found -3, expected at least 1"),
    value("01_tree_rollout.n_questions=0", "found 0, expected at least 1"),
    value("01_tree_rollout.max_rows=-1", "found -1, expected at least 0"),
    value("01_tree_rollout.engine=llama", "found 'llama', expected one of local, vllm"),
    value(
        "01_tree_rollout.endpoint=localhost:8000",
        "found 'localhost:8000', expected http(s)://host/v1, or an empty text",
    ),
    value(
        "03_pair_construction.kinds=[]",
        "found [], expected some of reasoning, reflection_mid, reflection_post, reflection_keep, random_cot",
    ),
    value(
        "03_pair_construction.action_weights=[0, 0, 0]",
        "found [0.0, 0.0, 0.0], expected three of at least 0, not all 0",
    ),
    value("03_pair_construction.min_judge_score=6", "found 6, expected 1 to 5"),
    value("03_pair_construction.overlap_threshold=0", "found 0.0, expected above 0 and at most 1"),
    value("04_dpo_lora_4bit.beta=0", "found 0.0, expected above 0"),
    value("04_dpo_lora_4bit.lora_rank=0", "found 0, expected at least 1"),
    value("04_dpo_lora_4bit.learning_rate=.inf", "found inf, expected above 0"),
    value("04_dpo_lora_4bit.held_out_share=1.0", "found 1.0, expected a share from 0 to below 1"),
    value("04_dpo_lora_4bit.quantization=int3", "found 'int3', expected one of nf4, none"),
    value(
        "04_dpo_lora_4bit.stop_on=[boredom]",
        "found ['boredom'], expected some of not_finite, flat_margin, chance, collapse, length, or none",
    ),
    value(
        "05_benchmark_evaluation.protocols=[greedily]",
        "found ['greedily'], expected some of published, greedy, sampled, self-consistency, budget, misled, shuffled, "
        "none-of-the-others",
    ),
    value("05_benchmark_evaluation.offset=-1", "found -1, expected at least 0"),
    value(
        "07_ablation.arms=[reasoning+magic]",
        (
            "found ['reasoning+magic'], expected one or more, each some of reasoning, "
            "reflection_mid, reflection_post, reflection_keep, random_cot, reflection, joined by +, with "
            "shuffled or swapped before for a control"
        ),
    ),
    # --- questions
    exam(
        "suffix",
        b"x",
        "./exam.txt: the suffix '.txt' is not read, expected .jsonl, .json, .parquet, .csv, .tsv",
        file="./exam.txt",
    ),
    exam("empty", b"", "exam.jsonl: no question in it (split 'test'), expected at least one"),
    exam("binary", b"\x7fELF\x02\x01\x01\x00\xff\xfe", "exam.jsonl:1: not UTF-8 at byte 8 of the line"),
    exam(
        "not-utf8",
        json.dumps(ROW).encode() + b'\n{"question": "Caf\xe9"}\n',
        "exam.jsonl:2: not UTF-8 at byte 17 of the line",
    ),
    exam(
        "broken-line",
        json.dumps(ROW).encode() + b'\n{"question": \n',
        "exam.jsonl:2: not JSON (Expecting value: line 1 column 14 (char 13))",
    ),
    exam(
        "broken-array",
        b'[{"question": "Which?"},\n {"question": ]',
        "exam.json:2: not JSON (Expecting value)",
        file="exam.json",
    ),
    exam("row-is-a-list", [ROW, [1]], "exam.jsonl:2: a JSON list, expected an object"),
    exam("deep", b"[" * 100_000, "exam.jsonl:1: not JSON (nested too deeply)"),
    exam("no-offset", [ROW], "exam.jsonl: offset 1 leaves none of 1 questions (split 'test')", offset=1),
    exam("gold-not-in-options", [ROW | {"answer_idx": "D"}], "exam.jsonl:1: gold is 'D', expected one of ABC"),
    exam("gold-missing", [{k: v for k, v in ROW.items() if k != "answer_idx"}], "exam.jsonl:1: no gold answer"),
    exam(
        "gold-in-01", [ROW | {"answer_idx": 7}], "exam.jsonl:1: gold is 7, expected one of ABC", stage="01_tree_rollout"
    ),
    exam("one-option", [ROW | {"options": {"B": "two"}}], "exam.jsonl:1: 1 option, expected at least two"),
    exam(
        "27-options", [ROW | {"options": [str(i) for i in range(27)]}], "exam.jsonl:1: 27 options, expected at most 26"
    ),
    exam("no-options", [ROW | {"options": {}}], "exam.jsonl:1: 0 options, expected at least two"),
    exam("repeated-letter", [ROW | {"options": {"A": "one", "a": "two"}}], "exam.jsonl:1: option A is given twice"),
    exam(
        "letter-of-two",
        [ROW | {"options": {"A": "one", "BB": "two"}}],
        "exam.jsonl:1: option 'BB', expected a letter A to Z",
    ),
    exam(
        "stem-missing",
        [{k: v for k, v in ROW.items() if k != "question"}],
        "exam.jsonl:1: no stem, expected it under stem or question; found options, answer_idx",
    ),
    exam("stem-empty", [ROW | {"question": "  "}], "exam.jsonl:1: stem is empty"),
    exam("stem-not-text", [ROW | {"question": 5}], "exam.jsonl:1: stem is not text"),
    exam(
        "stem-of-10-MB",
        [ROW | {"question": "x" * 10_000_000}],
        "exam.jsonl:1: stem has 10,000,000 characters, expected at most 200,000",
    ),
    exam(
        "option-too-long",
        [ROW | {"options": ["x" * 200_001, "y"], "answer_idx": "A"}],
        "exam.jsonl:1: option A has 200,001 characters, expected at most 200,000",
    ),
    exam(
        "half-a-pair",
        [ROW | {"question": "\ud800"}],
        "exam.jsonl:1: a text holds half a surrogate pair, which no file can keep",
    ),
    exam(
        "same-id",
        [ROW | {"id": 1}, ROW | {"id": 1, "question": "Who?"}],
        "exam.jsonl:2: id '1' is already the id of row 1",
    ),
    exam(
        "contradiction",
        [ROW, ROW | {"answer_idx": "A"}],
        "exam.jsonl:2: gold is 'A', but row 1 has the same question with 'B'",
    ),
    exam(
        "csv-without-columns",
        b"1,2,3\n4,5,6\n",
        "exam.csv:2: no stem, expected it under stem or question; found 1, 2, 3",
        file="exam.csv",
    ),
    exam(
        "csv-short-row",
        b"question,A,B,gold\nWhich?,one,two\n",
        "exam.csv:2: not 4 cells, as the header has",
        file="exam.csv",
    ),
    exam(
        "parquet",
        b"PAR1 nothing",
        (
            "exam.parquet: not Parquet (Could not open Parquet input source 'exam.parquet': Parquet "
            "magic bytes not found in footer. Either the file is corrupted or this is not a parquet "
            "file.)"
        ),
        file="exam.parquet",
    ),
    exam(
        "terminal-codes-in-a-name",
        [{"\x1b[31mred\n\x07": 1}],
        "exam.jsonl:1: no stem, expected it under stem or question; found red",
    ),
    exam(
        "terminal-codes",
        [ROW | {"answer_idx": "\x1b[31mred"}],
        "exam.jsonl:1: gold is '\\x1b[31mred', expected one of ABC",
    ),
    ("lint-missing", lambda root: None, ["lint", "none.jsonl"], "none.jsonl: no such file"),
    (
        "plan-gold",
        lambda root: write(root / "exam.jsonl", [ROW | {"answer_idx": "D"}]),
        ["plan", PROFILE, "--set", "shared.questions=exam.jsonl"],
        "exam.jsonl:1: gold is 'D', expected one of ABC",
    ),
    # --- models
    (
        "model-empty",
        lambda root: (root / "student").mkdir(),
        ["run", PROFILE, "--set", "shared.model=student"],
        "model student: the folder has no config.json, so it is not a model folder",
    ),
    model(
        "config-not-json",
        replaced("config.json", "{"),
        "its config.json is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
    ),
    model("config-a-list", replaced("config.json", "[]"), "its config.json is a JSON list, expected an object"),
    model(
        "unknown-type",
        edited("config.json", model_type="oracle"),
        "its model_type 'oracle' is none that transformers knows",
    ),
    model(
        "own-code",
        both(
            edited("config.json", model_type="oracle", auto_map={"AutoConfig": "oracle.Oracle"}),
            replaced("oracle.py", "open('hacked', 'w')"),
        ),
        "its model_type 'oracle' is none that transformers knows; the code beside it (auto_map) is never run",
    ),
    model(
        "encoder",
        edited("config.json", model_type="bert", architectures=["BertForMaskedLM"]),
        "is a BertForMaskedLM, expected a causal language model, such as LlamaForCausalLM",
    ),
    model(
        "translator",
        edited("config.json", model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        "is a T5ForConditionalGeneration, expected a causal language model, such as LlamaForCausalLM",
    ),
    model("no-weights", removed("model.safetensors"), "no weights there, expected model.safetensors"),
    model(
        "pickle-only",
        both(removed("model.safetensors"), replaced("pytorch_model.bin", PICKLE)),
        "pickled weights (pytorch_model.bin), which can run code, and are never read: expected model.safetensors",
    ),
    model(
        "truncated",
        cut_short,
        (
            "model.safetensors cannot be read (Error while deserializing header: incomplete "
            "metadata, file not fully covered)"
        ),
    ),
    model(
        "shard-missing",
        both(
            moved("model.safetensors", "other.safetensors"),
            replaced("model.safetensors.index.json", '{"weight_map": {"a": "model-1.safetensors"}}'),
        ),
        "model-1.safetensors cannot be read (No such file or directory: student/model-1.safetensors)",
    ),
    model(
        "shard-elsewhere",
        both(
            moved("model.safetensors", "other.safetensors"),
            replaced("model.safetensors.index.json", '{"weight_map": {"a": "../../x.safetensors"}}'),
        ),
        "model.safetensors.index.json names no files of this folder under 'weight_map'",
    ),
    model(
        "other-weights",
        weights(**{"transformer.wte.weight": (1034, 64)}),
        "its weights embed 1034 tokens x 64, but its config.json says 1034 x 128: expected the weights of that model",
    ),
    model(
        "fewer-layers",
        edited("config.json", num_hidden_layers=6),
        "its weights have 4 layers, but its config.json says 6",
    ),
    model(
        "vocabulary",
        both(
            weights(**{"model.embed_tokens.weight": (1000, 128)} | {f"model.layers.{i}.x": (1,) for i in range(4)}),
            edited("config.json", vocab_size=1000),
        ),
        "its tokenizer has 1034 tokens, expected at most the 1000 embedded",
    ),
    model("no-tokenizer", removed("tokenizer.json"), "no tokenizer there, expected tokenizer.json"),
    model(
        "tokenizer-broken",
        replaced("tokenizer.json", "{}"),
        "its tokenizer.json cannot be read (Model missing. at line 1 column 2)",
    ),
    model(
        "no-template",
        removed("chat_template.jinja"),
        "its tokenizer has no chat template, which every prompt goes through",
    ),
    model(
        "template-broken",
        replaced("chat_template.jinja", "{% for m in messages %}"),
        (
            "its chat template is broken (line 1: Unexpected end of template. Jinja was looking for "
            "the following tags: 'endfor' or 'else'. The innermost block that needs to be closed is "
            "'for'.)"
        ),
    ),
    model(
        "judge",
        removed("tokenizer.json"),
        "no tokenizer there, expected tokenizer.json",
        key="03_pair_construction.judge",
    ),
    # --- adapters
    adapter(
        "no-config", removed("adapter_config.json"), "no adapter_config.json there, so no adapter was trained into it"
    ),
    adapter(
        "config-not-json",
        replaced("adapter_config.json", "x"),
        "its adapter_config.json is not JSON (Expecting value: line 1 column 1 (char 0))",
    ),
    adapter(
        "pickle-only",
        both(removed("adapter_model.safetensors"), replaced("adapter_model.bin", PICKLE)),
        (
            "pickled weights (adapter_model.bin), which can run code, and are never read: expected "
            "adapter_model.safetensors"
        ),
    ),
    adapter(
        "other-base",
        edited("adapter_config.json", base_model_name_or_path="Qwen/Qwen2.5-7B-Instruct"),
        "was trained on Qwen/Qwen2.5-7B-Instruct, expected one of the model medrefl_utils/models/tiny_student",
    ),
    adapter(
        "other-width",
        lambda folder: write_adapter(folder, width=64),
        "model.layers.0.self_attn.q_proj has 64 where the model medrefl_utils/models/tiny_student has 128: another "
        "base",
    ),
    adapter(
        "other-depth",
        lambda folder: write_adapter(folder, layers=2),
        "is for 2 layers, but the model medrefl_utils/models/tiny_student has 4: another base",
    ),
    adapter(
        "other-rank",
        lambda folder: write_adapter(folder, rank=8),
        "its weights have rank 8, but its adapter_config.json says 4",
    ),
    (
        "merge-nothing",
        lambda root: None,
        ["merge", "runs/none", "out"],
        "runs/none: no adapter_config.json there: expected an adapter's folder, or a run's",
    ),
    (
        "merge-broken",
        lambda root: (root / "runs/t/adapter/adapter_config.json").write_text("["),
        ["merge", "runs/t", "out"],
        "runs/t/adapter/adapter_config.json: is not a JSON object, expected an adapter's config",
    ),
    (
        "merge-nameless",
        lambda root: edited("adapter_config.json", base_model_name_or_path=None)(root / "runs/t/adapter"),
        ["merge", "runs/t", "out"],
        "runs/t/adapter/adapter_config.json: names no base model; give it with --base",
    ),
    (
        "merge-into-something",
        lambda root: None,
        ["merge", "runs/t", "params"],
        "merge: params is not empty; name a new folder",
    ),
    # --- responses
    responses(
        "missing-ids",
        [{"id": 1, "response": "A"}, {"id": 3, "response": "A"}],
        "said.jsonl: 1 of 2 ids are not in exam, expected none",
    ),
    responses(
        "other-benchmark",
        [{"response": "A", "label": "B"}, {"response": "A", "label": "B"}],
        (
            "said.jsonl: tied to exam by line, the gold letters agree on 1 of 2 rows, expected all: "
            "refused, since these responses answer other questions, or other options"
        ),
    ),
    responses(
        "other-length",
        [{"response": "A", "label": "B"}],
        "said.jsonl: 1 rows without ids and 2 rows of exam, expected as many",
    ),
    responses(
        "other-questions",
        [{"response": "A", **ROW, "question": "Where?"}],
        "said.jsonl: 1 of 1 questions are not in exam, expected none",
    ),
    responses(
        "nothing-to-tie",
        [{"response": "A"}, {"response": "B"}],
        "said.jsonl: rows have no id, no question and no gold letter, expected one of them",
    ),
    responses(
        "no-field",
        [{"id": 1, "said": "A"}],
        "said.jsonl: 1 of 1 rows have no text under 'response' (the first is row 1, with id, said)",
    ),
    responses(
        "not-that-field",
        [{"id": 1, "response": "A"}],
        "said.jsonl: 1 of 1 rows have no text under 'said' (the first is row 1, with id, response)",
        "--response-field",
        "said",
    ),
    responses("empty", b"", "said.jsonl: no responses in it"),
    responses(
        "broken",
        b"{",
        "said.jsonl:1: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
    ),
    responses(
        "broken-options",
        [{"id": 1, "response": "A", "options": ["one"]}],
        "said.jsonl: row 1: 1 option, expected at least two",
    ),
    (
        "score-missing",
        lambda root: write(root / "exam.jsonl", [ROW]),
        ["score", "none.jsonl", "--benchmark", "exam.jsonl"],
        "none.jsonl: no such file",
    ),
    (
        "score-no-benchmark",
        lambda root: write(root / "said.jsonl", [ROW]),
        ["score", "said.jsonl", "--benchmark", "none.jsonl"],
        "none.jsonl: no such file",
    ),
    (
        "compare-nothing",
        lambda root: None,
        ["compare", "runs/t", "t"],
        "runs/t/responses is missing: 05_benchmark_evaluation makes it",
    ),
    (
        "compare-with-no-run",
        lambda root: None,
        ["compare", "runs/t", "runs/none"],
        "runs/none: no such run; medrefl list shows all runs",
    ),
    (
        "contaminated",
        lambda root: write(root / "exam.jsonl", [ROW | {"id": 1}, ROW | {"id": 2, "question": "Who has a fever?"}]),
        ["run", PROFILE, "--set", "01.questions=exam.jsonl", "--set", "05.questions=exam.jsonl", "--dry-run"],
        "03_pair_construction: 2 of 2 training questions are in the evaluation exam.jsonl, the first '1' as '1' (same):"
        " remove them, or add --set 03_pair_construction.contaminated=drop, which leaves them out",
    ),
    # --- pairs
    pairs(
        "no-text",
        "pairs: pair 'p2': chosen is empty, expected messages with text",
        chosen=[{"role": "assistant", "content": " "}],
    ),
    pairs("no-message", "pairs: pair 'p2': rejected is empty, expected messages with text", rejected=[]),
    pairs("not-counted", "pairs: pair 'p2': chosen_tokens is missing, expected at least 1", chosen_tokens=None),
    pairs("no-tokens", "pairs: pair 'p2': prompt_tokens is 0, expected at least 1", prompt_tokens=0),
    # --- the run's folder
    (
        "run-is-a-file",
        lambda root: (root / "runs/f").write_text("\n"),
        ["run", PROFILE, "--set", "shared.run=f"],
        "{root}/runs/f: is a file, expected a folder for the run",
    ),
    (
        "manifest-not-json",
        lambda root: (root / "runs/t/manifest.json").write_text("{"),
        ["run", PROFILE],
        (
            "{root}/runs/t/manifest.json is not JSON (Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)): delete it to run again"
        ),
    ),
    (
        "manifest-a-list",
        lambda root: (root / "runs/t/manifest.json").write_text("[]"),
        ["run", PROFILE],
        "{root}/runs/t/manifest.json holds a list, expected an object",
    ),
    (
        "manifest-stages-a-list",
        lambda root: (root / "runs/t/manifest.json").write_text('{"stages": ["01_tree_rollout"]}'),
        ["run", PROFILE],
        "{root}/runs/t/manifest.json: stages is ['01_tree_rollout']: input should be a valid dictionary; delete it to "
        "run again",
    ),
    (
        "manifest-outputs-a-text",
        lambda root: (root / "runs/t/manifest.json").write_text(
            '{"stages": {"01_tree_rollout": {"key": "k", "outputs": "steps"}}}'
        ),
        ["run", PROFILE],
        "{root}/runs/t/manifest.json: stages.01_tree_rollout.outputs is 'steps': input should be a valid dictionary; "
        "delete it to run again",
    ),
    (
        "train-on-an-empty-side",
        lambda root: write_pairs(root, {"rejected": []}),
        ["train", PROFILE],
        "pairs: pair 'p2': rejected is empty, expected messages with text",
    ),
]


# --- that it is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the real notebooks, and a run that has artifacts to lose."""
    root = tmp_path / "checkout"
    (root / "params").mkdir(parents=True)
    (root / "medrefl_utils/models").mkdir(parents=True)
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    (root / "medrefl_utils/models/tiny_student").symlink_to(ROOT / "medrefl_utils/models/tiny_student")
    (root / PROFILE).write_text("shared:\n  run: t\n")
    files = RunFiles(root / "runs/t")
    write_table(files.questions, questions_table([Question("q", "Which?", {"A": "one", "B": "two"}, "A")]), QUESTIONS)
    write_pairs(root, {})
    write_adapter(files.adapter)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MEDREFL_BENCHMARKS", raising=False)
    return root


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def refused(root: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line that a command ends with, after which every file is what it was."""
    monkeypatch.setattr(chain.Chain, "execute", lambda *_, **__: pytest.fail("a stage started"))
    before = tree(root)
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert tree(root) == before
    printed = done.stdout if "--dry-run" not in words else ""  # a dry run prints its plan first
    assert (done.exit_code, printed, done.stderr.count("\n")) == (2, "", 1), done.output
    return done.stderr.removesuffix("\n").replace(str(root), "{root}")


@pytest.mark.parametrize(("prepare", "words", "line"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_input_is_one_line_and_changes_nothing(root, prepare, words, line, monkeypatch) -> None:
    prepare(root)
    assert refused(root, words, monkeypatch) == f"error: {line}"


def test_the_pickle_would_tell_if_it_were_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(PICKLE).close()
    assert (tmp_path / "hacked").exists()


def test_a_disk_without_room_is_refused_with_the_numbers(root, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "MIN_FREE_BYTES", 10**18)
    line = refused(root, ["run", PROFILE], monkeypatch)
    assert re.fullmatch(r"error: \{root\}/runs/t: its disk has [\d,]+ MB free, expected 1,000,000,000,000 MB", line)


def test_a_place_that_cannot_be_written_is_refused(root, monkeypatch) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here, the one place that even root cannot write to")
    shutil.rmtree(root / "runs")
    (root / "runs").symlink_to("/proc/self/task")
    (root / PROFILE).write_text("shared:\n  run: t\n")
    monkeypatch.setattr("tests.test_refusals.tree", lambda root: {})  # nothing of ours is there
    line = refused(root, ["run", PROFILE], monkeypatch)
    assert line == "error: {root}/runs/t: cannot be written: No such file or directory"
