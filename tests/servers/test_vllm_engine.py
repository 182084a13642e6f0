"""The vLLM generator with vLLM itself, in this process, beside the generator of transformers."""

from __future__ import annotations

import pytest

from medrefl_utils.core import Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.exam.steps import STEP_KINDS, split_into_steps
from medrefl_utils.models import CallLog, LocalGenerator, Prefix
from medrefl_utils.models.generators.vllm import VllmGenerator
from medrefl_utils.trees import SearchSettings, grow_trees
from tests.servers.greedy import compare
from tests.servers.trees import without_content

pytestmark = pytest.mark.timeout(3000)  # the first test waits for the engine
QUESTIONS = clinic.make_exam(6, seed=11)
GREEDY = Sampling(0.0, 1.0, 96)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: str) -> tuple[LocalGenerator, VllmGenerator]:
    return LocalGenerator(smollm2_folder), VllmGenerator(smollm2_folder)


@pytest.mark.parametrize("steps", STEP_KINDS)
def test_greedy_steps_are_those_of_the_other_engine(smollm2, steps):
    local, vllm = smollm2
    prefixes = [Prefix(prompts.exam(question)) for question in QUESTIONS]
    equal = ties = 0
    for _ in range(3):  # from the question, then from the steps that were written
        seeds = [[0]] * len(prefixes)
        ours = [row[0] for row in local.expand(prefixes, 1, steps, GREEDY, seeds)]
        others = [row[0] for row in vllm.expand(prefixes, 1, steps, GREEDY, seeds)]
        found = compare(local, prefixes, ours, others)
        assert not found.different and found.largest_logprob_difference < 1e-3
        equal, ties = equal + found.equal, ties + found.ties
        prefixes = [
            Prefix(p.messages, p.token_ids + one.token_ids, p.text + one.text)
            for p, one in zip(prefixes, ours, strict=True)
            if one.stop == "boundary"
        ]
    print(f"{steps}: {equal} steps equal, {ties} ties")
    assert equal >= 6 and ties <= equal / 10


def test_greedy_answers_are_those_of_the_other_engine(smollm2):
    local, vllm = smollm2
    prefixes = [Prefix(prompts.exam(question)) for question in QUESTIONS]
    messages, seeds = [p.messages for p in prefixes], [0] * len(prefixes)
    ours, others = (one.chat(messages, GREEDY, seeds) for one in smollm2)
    found = compare(local, prefixes, ours, others)
    assert not found.different and found.equal >= 4, found
    for one in ours:
        assert [p.text for p in vllm.cut(one, "line")] == [p.text for p in local.cut(one, "line")]


def test_sampled_trees_have_no_step_without_content(smollm2):
    """A real model begins turns with blank lines and headings; vLLM alone would stop there."""
    growth = SearchSettings((3, 2), 6, 200, force_answer=True)
    before = [generator.usage.prompt_tokens for generator in smollm2]
    ours, others = (
        grow_trees(QUESTIONS, one, growth=growth, sampling=Sampling(1.0, 1.0, 64), seed=4) for one in smollm2
    )
    for steps in (ours, others):
        inner = steps[steps["kind"] == "step"]
        assert len(inner) > 20 and not without_content(steps)
        assert (inner["text"].map(lambda text: len(split_into_steps(text, "line"))) == 1).all()
    assert others["text"].str.startswith("\n").sum() > 0, "some turns begin with a blank line"
    ended = [steps[steps["kind"] == "leaf"]["stop"].value_counts(normalize=True).to_dict() for steps in (ours, others)]
    assert abs(ended[0].get("empty", 0) - ended[1].get("empty", 0)) < 0.15, ended
    siblings = others[others["kind"] == "step"].groupby(["question_id", "parent_id"])["text"].nunique()
    assert siblings.max() > 1, "children draw with seeds of their own"
    read = [generator.usage.prompt_tokens - n for generator, n in zip(smollm2, before, strict=True)]
    print(f"leaves by stop {ended}; tokens computed: transformers {read[0]}, vLLM {read[1]}")


def test_a_seed_gives_the_same_text_again_and_a_log_costs_nothing(smollm2, smollm2_folder, tmp_path):
    messages = [prompts.exam(question) for question in QUESTIONS[:3]]
    sampling = Sampling(1.0, 0.9, 48, 1.1)
    _, vllm = smollm2
    first = vllm.chat(messages, sampling, [1, 2, 3])
    kept = VllmGenerator(smollm2_folder, log=CallLog(tmp_path))  # shares the engine
    assert [r.token_ids for r in kept.chat(messages, sampling, [1, 2, 3])] == [r.token_ids for r in first]
    again = VllmGenerator(smollm2_folder, log=CallLog(tmp_path))
    assert len(again.chat(messages, sampling, [1, 2, 3])) == again.usage.reused == 3 and not again.spent.calls


def test_base_and_adapter_answer_as_with_transformers(tiny_student, adapter):
    questions = clinic.make_exam(40, seed=12)
    prefixes = [Prefix(prompts.exam(question)) for question in questions]
    messages, seeds = [p.messages for p in prefixes], [0] * len(prefixes)
    sampling = Sampling(0.0, 1.0, 200)
    texts = []
    for folder in (None, adapter):
        local = LocalGenerator(tiny_student, adapter=folder)
        vllm = VllmGenerator(tiny_student, adapter=folder)
        ours, others = local.chat(messages, sampling, seeds), vllm.chat(messages, sampling, seeds)
        found = compare(local, prefixes, ours, others)
        print(f"adapter {folder is not None}: {found.equal} of 40 equal, {found.ties} ties")
        assert not found.different and found.equal >= 36
        texts.append([one.text for one in others])
    assert texts[0] != texts[1], "the adapter changes answers"
    base = VllmGenerator(tiny_student).chat(messages, sampling, seeds)
    assert [one.text for one in base] == texts[0], "the base on the engine that has the adapter"


def test_after_an_interruption_the_next_call_starts_again(tiny_student):
    generator = VllmGenerator(tiny_student)
    messages = [prompts.exam(question) for question in QUESTIONS]

    def interrupt(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.chat(messages, GREEDY, [0] * 6, interrupt)
    assert all(reply.text for reply in generator.chat(messages, GREEDY, [0] * 6))
