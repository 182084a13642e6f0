"""Questions that are longer than a model's context: named and left out, the rest stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from medrefl_utils.core import MedReflError, Question
from medrefl_utils.exam import prompts
from medrefl_utils.models import TokenCounter, context_length, load_tokenizer, split_by_context
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


def test_what_does_not_fit_is_counted_and_named(counter):
    questions = [Question(f"q{i}", "cough " * n, OPTIONS, "A") for i, n in enumerate((1, 50, 2, 80))]
    tokens = counter.prompts([ask(q) for q in questions])
    context = tokens[1] + 9
    split = split_by_context(questions, counter, prompt=ask, context=context, new_tokens=10)
    assert [q.question_id for q in split.fitting] == ["q0", "q2"]
    assert split.too_long == {"q1": tokens[1], "q3": tokens[3]}
    assert split.line() == (
        f"2 of 4 questions are left out: their prompt exceeds the model's context of {context} tokens less 10 for the "
        f"response: q1 ({tokens[1]} tokens), q3 ({tokens[3]} tokens)"
    )
    exactly = split_by_context(questions, counter, prompt=ask, context=context, new_tokens=9)
    assert [q.question_id for q in exactly.fitting] == ["q0", "q1", "q2"]


def test_a_model_without_a_limit_takes_all_and_many_are_not_all_named(counter):
    questions = [Question(f"q{i}", "cough " * 50, OPTIONS, "A") for i in range(5)]
    none = split_by_context(questions, counter, prompt=ask, context=None, new_tokens=10)
    assert none.fitting == questions and none.line() == ""
    all_of_them = split_by_context(questions, counter, prompt=prompts.exam, context=20, new_tokens=10)
    assert not all_of_them.fitting and all_of_them.line().endswith(" and 2 more")
    assert split_by_context([], counter, prompt=ask, context=20, new_tokens=10).fitting == []
