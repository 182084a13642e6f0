"""Questions that are longer than a model's context: named and left out, the rest stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from medrefl_utils.core import MedReflError, Question
from medrefl_utils.exam import prompts
from medrefl_utils.models import TokenCounter, context_length, drop_too_long, load_tokenizer
from medrefl_utils.models.context_limit import config_context

OPTIONS = {"A": "one", "B": "two"}


def ask(question):
    return [{"role": "user", "content": question.stem}]


@pytest.fixture(scope="module")
def counter(tiny_student):
    return TokenCounter(load_tokenizer(tiny_student))


def test_the_context_is_what_the_config_states(tiny_student, tmp_path):
    assert context_length(tiny_student) == 4096
    folder = Path(shutil.copytree(tiny_student, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    assert context_length(str(folder)) == 512
    with pytest.raises(MedReflError, match=r"^model nowhere/at-all: no such folder"):
        context_length("nowhere/at-all")


def test_each_family_has_its_own_name_for_it():
    for kind, key, n in (("gpt2", "n_positions", 1024), ("mpt", "max_seq_len", 2048), ("llama", None, 2048)):
        config = AutoConfig.for_model(kind, **({key: n} if key else {}))
        assert config_context(config) == n
    assert config_context(AutoConfig.for_model("mamba")) is None


def test_what_does_not_fit_is_counted_and_named(tiny_student, counter, tmp_path):
    questions = [Question(f"q{i}", "cough " * n, OPTIONS, "A") for i, n in enumerate((1, 50, 2, 80))]
    tokens = counter.prompts([ask(q) for q in questions])
    model = Path(shutil.copytree(tiny_student, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    context = tokens[1] + 9
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    kept, dropped = drop_too_long(questions, str(model), prompt=ask, new_tokens=10)
    assert [q.question_id for q in kept] == ["q0", "q2"] and dropped == {"too_long": 2}
    assert dropped.examples == {
        "too_long": f"question 'q1': {tokens[1]} tokens of the prompt and 10 of the response, expected at most the "
        f"model's context of {context}"
    }
    exactly, _ = drop_too_long(questions, str(model), prompt=ask, new_tokens=9)
    assert [q.question_id for q in exactly] == ["q0", "q1", "q2"]
    assert drop_too_long([], str(model), prompt=ask, new_tokens=9) == ([], {})


def test_a_long_question_does_not_fit_beside_a_path(tiny_student):
    long = Question("long", "cough and fever " * 2_000, OPTIONS, "A")
    short = Question("short", "cough", OPTIONS, "A")
    assert drop_too_long([long, short], tiny_student, prompt=prompts.exam, new_tokens=1152)[0] == [short]


def test_a_model_without_a_limit_takes_all(tmp_path):
    AutoConfig.for_model("mamba").save_pretrained(tmp_path)
    question = Question("q", "cough " * 50, OPTIONS, "A")
    assert drop_too_long([question], str(tmp_path), prompt=ask, new_tokens=10) == ([question], {})
