"""The in-process generator against transformers' own ``generate`` and against itself in other batches."""

import copy
import math
import shutil
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from medrefl_utils.core import Continuation, MedReflError, Sampling
from medrefl_utils.exam import clinic, prompts, step_end
from medrefl_utils.models import Budget, Generator, LocalGenerator, Prefix, derive_seed, open_generator
from medrefl_utils.models.chat_templates import thinking_is_open
from medrefl_utils.models.generators import continuous, local
from medrefl_utils.models.generators.drawing import draw_tokens, uniform_numbers
from medrefl_utils.models.generators.interface import Expansion
from medrefl_utils.models.generators.ragged_rows import RaggedRows, take_trunks
from medrefl_utils.models.generators.shared_prefix import cache_argument
from medrefl_utils.models.memory import is_out_of_memory
from medrefl_utils.trees import SearchSettings, grow_trees

QUESTIONS = clinic.make_exam(12, seed=3, split="test")
PROMPTS = [prompts.exam(q) for q in QUESTIONS]
SEEDS = [derive_seed(0, q.question_id) for q in QUESTIONS]


@pytest.fixture(scope="module")
def generator(tiny_student):
    return LocalGenerator(tiny_student)


def test_greedy_equals_generate_token_by_token(generator):
    ours = generator.chat(PROMPTS, Sampling(0.0, 1.0, 160), SEEDS)
    for messages, row in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([generator.prompt_ids(messages)])
        theirs = generator.model.generate(ids, max_new_tokens=160, do_sample=False)[0, ids.shape[1] :].tolist()
        assert list(row.token_ids) == theirs


@pytest.mark.parametrize("penalty", [1.1, 1.3])
def test_repetition_penalty_equals_generate(generator, penalty):
    ours = generator.chat(PROMPTS[:4], Sampling(0.0, 1.0, 60, repetition_penalty=penalty), SEEDS[:4])
    for messages, row in zip(PROMPTS, ours, strict=False):
        ids = torch.tensor([generator.prompt_ids(messages)])
        theirs = generator.model.generate(ids, max_new_tokens=60, do_sample=False, repetition_penalty=penalty)
        assert list(row.token_ids) == theirs[0, ids.shape[1] :].tolist()


def test_what_is_drawn_does_not_depend_on_the_batch(generator):
    sampling = Sampling(1.0, 0.9, 120)
    together = generator.chat(PROMPTS, sampling, SEEDS)
    generator.max_rows = 5
    try:
        apart = generator.chat(PROMPTS[::-1], sampling, SEEDS[::-1])[::-1]
    finally:
        generator.max_rows = 0
    assert [row.token_ids for row in together] == [row.token_ids for row in apart]


def test_rows_follow_the_memory_that_is_free(tiny_student, monkeypatch):
    """Little memory: fewer rows decoded together, the same texts; a number given is a hard bound."""
    forward, together, written = RaggedRows.forward, [], {}

    def counted(rows, tokens):
        together.append(len(rows))
        return forward(rows, tokens)

    monkeypatch.setattr(RaggedRows, "forward", counted)
    for name, options in {"much": {}, "little": {"free": lambda: 12 * 2**20}, "given": {"max_rows": 3}}.items():
        generator, done = LocalGenerator(tiny_student, **options), []
        together.clear()
        prefixes = [Prefix(p) for p in PROMPTS]
        rows = generator.expand(prefixes, 2, "line", Sampling(1.0, 1.0, 60), [[1, 2]] * 12, done.append)
        written[name] = [row.token_ids for pair in rows for row in pair], max(together)
        assert done == [2] * 12
    assert written["much"][0] == written["little"][0] == written["given"][0]
    assert written["much"][1] == 24 and 4 <= written["little"][1] < 12 and written["given"][1] == 3
    with pytest.raises(MedReflError, match=r"max_rows is -1, expected 0 \(as many as fit\) or a number of rows"):
        LocalGenerator(tiny_student, max_rows=-1)


@pytest.fixture
def plain(tiny_student, monkeypatch):
    """The student as a model whose attention cannot be replaced."""
    with monkeypatch.context() as patch:
        patch.setattr(local, "take_trunks", lambda model: False)
        return LocalGenerator(tiny_student)


@pytest.mark.parametrize("sampling", [Sampling(1.0, 1.0, 60), Sampling(0.7, 0.9, 120, 2.0), Sampling(0.0, 1.0, 60)])
def test_a_model_that_keeps_its_attention_writes_the_same(generator, plain, sampling):
    prefixes, seeds = [Prefix(p) for p in PROMPTS], [[1, 2]] * 12
    assert plain.model.config._attn_implementation == "sdpa"
    before = copy.copy(generator.usage)
    steps = "line" if sampling.repetition_penalty == 1 else None  # a whole turn repeats its words
    ours = generator.expand(prefixes, 2, steps, sampling, seeds)
    theirs = plain.expand(prefixes, 2, steps, sampling, seeds)
    assert [[row.token_ids for row in pair] for pair in ours] == [[row.token_ids for row in pair] for pair in theirs]
    used = generator.usage.since(before)
    assert used | {"seconds": 0} == asdict(plain.usage) | {"seconds": 0}


def test_trees_of_a_model_that_keeps_its_attention_are_the_same(generator, plain):
    settings = {"growth": SearchSettings((3, 2)), "sampling": Sampling(1.0, 1.0, 60), "seed": 7}
    assert as_lists(grow_trees(QUESTIONS[:4], plain, **settings)) == as_lists(
        grow_trees(QUESTIONS[:4], generator, **settings)
    )


def test_a_batch_that_runs_out_of_memory_is_halved_and_written_all_the_same(plain, generator, monkeypatch):
    sampling, seeds = Sampling(1.0, 1.0, 60), [[1, 2]] * 12
    prefixes = [Prefix(p) for p in PROMPTS]
    steps = generator.expand(prefixes, 2, "line", sampling, seeds)
    repeat, limit = DynamicCache.batch_repeat_interleave, 6

    def repeated(cache, k):
        if cache.layers[0].keys.shape[0] * k > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        repeat(cache, k)

    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", repeated)
    with pytest.warns(UserWarning) as told:
        found = plain.expand(prefixes, 2, "line", sampling, seeds)
    assert [str(one.message) for one in told] == [
        "out of memory with 24 rows decoded together: continuing with 12",
        "out of memory with 12 rows decoded together: continuing with 6",
    ]
    assert [row.token_ids for pair in found for row in pair] == [row.token_ids for pair in steps for row in pair]
    limit = 1
    message = r"out of memory with 2 continuations of one prompt of \d+ tokens, 60 new tokens each: use fewer"
    with pytest.raises(MedReflError, match=message), pytest.warns(UserWarning):
        plain.expand(prefixes, 2, "line", sampling, seeds)


def test_main_memory_that_runs_out_is_told_like_a_cards():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value) and not is_out_of_memory(RuntimeError("shapes do not match"))


def test_logprobs_are_the_models_own(generator):
    [row] = generator.chat(PROMPTS[:1], Sampling(0.7, 0.8, 60), SEEDS[:1])
    ids = generator.prompt_ids(PROMPTS[0])
    with torch.inference_mode():
        logits = generator.model(torch.tensor([ids + list(row.token_ids)])).logits[0, len(ids) - 1 : -1]
    expected = logits.float().log_softmax(-1).gather(1, torch.tensor(row.token_ids)[:, None]).sum().item()
    assert math.isclose(row.logprob, expected, abs_tol=1e-3)


def test_a_step_ends_with_its_line_and_goes_on_where_it_ended(generator):
    whole = generator.chat(PROMPTS[:1], Sampling(0.0, 1.0, 160), SEEDS[:1])[0]
    prefix, text = Prefix(PROMPTS[0]), ""
    for _ in range(len(prompts.split_steps(whole.text))):
        [[step]] = generator.expand([prefix], 1, "line", Sampling(0.0, 1.0, 80), [[0]])
        assert step.text.count("\n") == (1 if step.stop == "boundary" else 0)
        text += step.text
        prefix = Prefix(prefix.messages, prefix.token_ids + step.token_ids)
    assert step.stop == "end" and text == whole.text and prefix.token_ids == whole.token_ids


def test_each_child_has_a_seed_of_its_own(generator):
    sampling = Sampling(1.0, 1.0, 120)
    [children] = generator.expand([Prefix(PROMPTS[1])], 4, None, sampling, [[1, 2, 3, 1]])
    assert children[0].token_ids == children[3].token_ids
    assert len({child.token_ids for child in children}) > 1
    alone = [generator.expand([Prefix(PROMPTS[1])], 1, None, sampling, [[s]])[0][0] for s in (1, 2, 3)]
    assert [c.token_ids for c in children[:3]] == [c.token_ids for c in alone]


def test_length_stops_and_says_so(generator):
    [row] = generator.chat(PROMPTS[:1], Sampling(0.0, 1.0, 5), SEEDS[:1])
    assert row.stop == "length" and len(row.token_ids) == 5


def test_a_prompt_beyond_the_context_is_refused(generator):
    with pytest.raises(
        MedReflError, match=r"a prompt of \d+ tokens and 4096 new ones exceed the model's context of 4096"
    ):
        generator.chat(PROMPTS[:1], Sampling(0.0, 1.0, 4096), SEEDS[:1])


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(20_000, 1)
    sampling = Sampling(1.0, 0.8, 1)
    uniform = torch.tensor([uniform_numbers(derive_seed(i), sampling)[0] for i in range(20_000)])
    tokens, _ = draw_tokens(logits, sampling, uniform, None)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    # top-p 0.8 keeps the two tokens that reach 0.8 together.
    assert torch.allclose(shares, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015)


@pytest.mark.parametrize(
    ("temperature", "top_p", "penalty"),
    [(0.2, 1.0, 1.0), (0.5, 1.0, 1.0), (0.6, 0.7, 1.0), (1.0, 1.0, 1.1), (0.35, 1.0, 1.3), (0.8, 0.25, 1.1)],
)
def test_shares_of_draws_are_the_probabilities_of_transformers(temperature, top_p, penalty):
    """At uniform numbers on a grid, a token's share is its probability, to one draw of each border between tokens."""
    n, size, prompt = 4_000, 30, (3, 3, 17, 29)
    torch.manual_seed(0)
    then = torch.randn(1, size)  # so flat that many tokens have a share
    seen = torch.zeros(n, size, dtype=torch.bool)
    seen[:, [*prompt, 5]] = True
    sampling = Sampling(temperature, top_p, 2, repetition_penalty=penalty)
    uniform = ((torch.arange(n) + 0.5) / n).double()
    tokens, logprobs = draw_tokens(then.repeat(n, 1), sampling, uniform, None if penalty == 1.0 else seen)
    theirs = then.clone()
    for processor in (
        RepetitionPenaltyLogitsProcessor(penalty),
        TemperatureLogitsWarper(temperature),
        TopPLogitsWarper(top_p),
    ):
        theirs = processor(torch.tensor([[*prompt, 5]]), theirs)
    shares = torch.bincount(tokens, minlength=size) / n
    assert (shares - theirs.softmax(-1)[0]).abs().max() <= 1.5 / n
    assert torch.equal(logprobs, then.log_softmax(-1)[0, tokens])  # the model's own, before any setting


def test_seed_of_is_stable_and_tells_places_apart():
    assert derive_seed(0, "q1", ".0") == 0x2A14376AF681EE75  # a change here changes every tree
    assert len({derive_seed(s, q, p) for s in range(5) for q in ("a", "b") for p in (".0", ".1", ".0.1")}) == 30


def test_a_token_that_was_read_ahead_is_in_no_step(tiny_student, monkeypatch):
    """The first word of the next sentence shows that a sentence is complete; the next step draws it anew."""
    generator = LocalGenerator(tiny_student)
    ids = generator.encode("The INR is high. She bleeds.")
    said = generator.encode("The INR is high.")
    written = iter(range(len(ids)))

    def scripted(logits, sampling, uniform, seen):
        tokens = torch.full((len(logits),), ids[next(written)])
        return tokens, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]

    with monkeypatch.context() as patch:
        patch.setattr(continuous, "draw_tokens", scripted)
        [rows] = generator.expand([Prefix(PROMPTS[0])], 2, "sentence", Sampling(1.0, 1.0, 40), [[1, 2]])
    assert [(row.text, row.token_ids, row.stop) for row in rows] == [("The INR is high.", said, "boundary")] * 2
    assert len(rows[0].logprobs) == len(said) and rows[0].logprob == pytest.approx(sum(rows[0].logprobs))
    ahead = generator.usage.completion_tokens - 2 * len(said)
    assert ahead >= 2 and generator.spent.written == generator.usage.completion_tokens


@pytest.mark.parametrize(
    ("ending", "opens"),
    [("<|assistant|><think>\n", True), ("<|assistant|>", False), ("<|assistant|><think>\n\n</think>\n\n", False)],
)
def test_a_template_that_opens_the_thinking_is_known_by_its_prompt(generator, ending, opens):
    tokenizer = copy.deepcopy(generator.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}" + ending.replace("\n", "\\n")
    tokenizer.chat_template = tokenizer.chat_template.replace("\\n", "{{ '\\n' }}")
    assert thinking_is_open(tokenizer) is opens
    assert (generator.thinking_open, generator.thinking_close) == (False, None)


def test_a_generator_knows_the_mark_that_closes_its_templates_thinking(tiny_student, tmp_path):
    folder = Path(shutil.copytree(tiny_student, tmp_path / "model"))
    template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>[THINK]"
    (folder / "chat_template.jinja").write_text(template)
    opened = LocalGenerator(str(folder))
    assert (opened.thinking_open, opened.thinking_close) == (True, "[/THINK]")


class Slow(Generator):
    """The slow way: the whole prefix through the model for every token, no cache, the draw by numpy."""

    thinking_open = False

    def __init__(self, generator):
        self.generator, self.ties, self.drawn = generator, 0, 0

    def expand(self, prefixes, k, steps, sampling, seeds, progress=None):
        return [
            [self._row(prefix, steps, sampling, seed) for seed in row[:k]]
            for prefix, row in zip(prefixes, seeds, strict=True)
        ]

    def _row(self, prefix, steps, sampling, seed):
        g = self.generator
        ids = [*g.prompt_ids(prefix.messages), *prefix.token_ids]
        uniform = np.random.Generator(np.random.Philox(seed)).random(sampling.max_tokens)
        written, why, total = [], "length", 0.0
        for u in uniform:
            with torch.inference_mode():
                logits = g.model(torch.tensor([ids + written]), use_cache=False).logits[0, -1].double()
            mass = (logits / sampling.temperature).softmax(-1).numpy().cumsum()
            token = int(np.searchsorted(mass, u * mass[-1], side="right"))
            self.drawn += 1
            self.ties += np.abs(mass - u * mass[-1]).min() < 1e-6  # a draw this near to a border may fall either way
            total += float(logits.log_softmax(-1)[token])
            written.append(token)
            text = g.tokenizer.decode(written, skip_special_tokens=True)
            if token in g.ends:
                why = "end"
                break
            if step_end(text, steps) is not None:
                why = "boundary"
                break
        text = g.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Continuation(text, tuple(written), total, why)


def test_sampled_trees_are_those_of_the_slow_way_token_by_token(generator):
    """In fp32. A draw that falls within rounding of a border between two tokens may differ: such ties are counted."""
    slow, settings = Slow(generator), {"growth": SearchSettings((3, 2)), "sampling": Sampling(1.0, 1.0, 60), "seed": 4}
    ours = grow_trees(QUESTIONS[:3], generator, **settings)
    theirs = grow_trees(QUESTIONS[:3], slow, **settings)
    assert slow.drawn > 300 and slow.ties == 0  # none here; where there is one, trees may part
    assert ours.token_ids.map(list).tolist() == theirs.token_ids.map(list).tolist()
    pd.testing.assert_frame_equal(
        ours.drop(columns=["token_ids", "logprob"]), theirs.drop(columns=["token_ids", "logprob"])
    )
    assert (ours.logprob - theirs.logprob).abs().max() < 1e-4


@pytest.mark.parametrize("heads", [8, 2])  # of keys and values: every query head its own, and four to one
def test_cached_logits_equal_fresh_ones(heads):
    """Rows of unequal trunks and unequal own tokens, copied, some removed; then trunks that nobody uses go."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=heads, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    trunks = [torch.randint(0, 101, (n,)).tolist() for n in (9, 30, 17)]
    group, own = [0, 1, 1, 2, 0], [torch.randint(0, 101, (n,)).tolist() for n in (4, 0, 7, 2, 1)]
    assert take_trunks(model) and model.config._attn_implementation == "medrefl_trunk"
    rows = RaggedRows(model)
    slots = rows.trunks.add([_read(model, trunk) for trunk in trunks])
    parts = [_read(model, trunks[g] + o, len(trunks[g])) for g, o in zip(group, own, strict=True)]
    rows.add([slots[g] for g in group], parts)
    texts = [trunks[g] + o for g, o in zip(group, own, strict=True)]
    for row in range(len(texts)):
        rows.copy(row, 1)
    texts += [list(text) for text in texts]
    for turn in range(40):
        tokens = torch.randint(0, 101, (len(texts),)).tolist()
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        with torch.inference_mode():
            logits = rows.forward(tokens)
            fresh = torch.stack([model(torch.tensor([text]), use_cache=False).logits[0, -1] for text in texts])
        assert (logits - fresh).abs().max() < 1e-4
        if turn in (3, 20):
            gone = [0, 2, 3, 6, 7, 8] if turn == 3 else [0, 3]
            for place, row in rows.remove(gone):
                texts[place] = texts[row]
            del texts[len(rows) :]
        if turn == 20:
            used = sorted(set(rows.slots), reverse=True)
            assert len(used) < len(trunks)
            rows.keep_trunks(used)


def _read(model, ids, after=0):
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([ids]), use_cache=True, **cache_argument(model, cache))
    return [(layer.keys[0, :, after:], layer.values[0, :, after:]) for layer in cache.layers]


def test_a_model_with_another_attention_is_decoded_the_plain_way(tmp_path, tiny_student):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    tokenizer = LocalGenerator(tiny_student).tokenizer
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=1024,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generator = LocalGenerator(str(tmp_path))
    assert generator.model.config._attn_implementation == "sdpa"
    [row] = generator.chat(PROMPTS[:1], Sampling(0.0, 1.0, 20), [0])
    ids = torch.tensor([generator.prompt_ids(PROMPTS[0])])
    theirs = generator.model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    assert list(row.token_ids) == theirs


def test_a_chain_is_cut_as_steps_are(generator):
    [chain] = generator.chat(PROMPTS[:1], Sampling(1.0, 1.0, 200), [3])
    steps = generator.cut(chain, "line")
    assert "".join(step.text for step in steps) == chain.text and len(steps) > 2
    assert tuple(token for step in steps for token in step.token_ids) == chain.token_ids
    assert [step.stop for step in steps] == ["boundary"] * (len(steps) - 1) + ["end"]
    assert sum(step.logprob for step in steps) == pytest.approx(chain.logprob)


def test_the_parameters_choose_the_generator_and_a_missing_extra_is_one_line(tiny_student):
    assert type(open_generator(tiny_student)) is LocalGenerator
    with pytest.raises(MedReflError, match="engine is 'tgi', expected one of local, vllm"):
        open_generator(tiny_student, engine="tgi")
    with pytest.raises(MedReflError, match="workers is -1"):
        open_generator(tiny_student, workers=-1)
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(MedReflError, match="vLLM is not installed: run pip install"):
            open_generator(tiny_student, engine="vllm")


def as_lists(tree: pd.DataFrame) -> list:
    return [
        list(row)
        for row in tree[["question_id", "node_id", "parent_id", "text", "stop", "weight"]].astype(str).to_numpy()
    ]


def levels(generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a generator write level by level, as those do that cannot do better."""
    monkeypatch.setattr(generator, "expand_onward", partial(Generator.expand_onward, generator))


@pytest.mark.parametrize(
    "growth",
    [{}, {"steps": "sentence"}, {"max_leaves": 5}, {"max_frontier": 3}, {"target_right": 1, "target_wrong": 1}],
)
def test_trees_without_a_barrier_are_those_of_the_levels(tiny_student, monkeypatch, growth):
    """Whatever is limited, and with room for few rows only: then most steps wait, and some are read again."""
    settings = {"growth": SearchSettings((3, 2), **growth), "sampling": Sampling(1.0, 1.0, 60), "seed": 7}
    whole = LocalGenerator(tiny_student)
    ours = grow_trees(QUESTIONS[:5], whole, **settings)
    crowded = LocalGenerator(tiny_student, max_rows=3, keep_gib=0)
    few = grow_trees(QUESTIONS[:5], crowded, **settings)
    levels(slow := LocalGenerator(tiny_student), monkeypatch)
    theirs = grow_trees(QUESTIONS[:5], slow, **settings)
    assert len(ours) > 30 and as_lists(ours) == as_lists(theirs) == as_lists(few)
    assert (ours.logprob - theirs.logprob).abs().max() < 1e-4
    assert whole.usage.calls == slow.usage.calls == crowded.usage.calls
    assert whole.usage.completion_tokens == slow.usage.completion_tokens == whole.spent.written
    # No prefix is read twice, unless memory is short.
    prompts_alone = sum(len(whole.prompt_ids(prompts.exam(question))) for question in QUESTIONS[:5])
    assert prompts_alone == whole.usage.prompt_tokens < crowded.usage.prompt_tokens


def test_a_step_goes_on_before_the_other_questions_have_theirs(generator):
    """One question's steps are complete while another's first is still being written."""
    told, left = [], dict.fromkeys((q.question_id for q in QUESTIONS[:6]), 4)

    def then(expansion, written):
        told.append(expansion.of)
        left[expansion.of] -= 1
        [one] = written
        if one.stop != "boundary" or not left[expansion.of]:
            return []
        more = Prefix(expansion.prefix.messages, expansion.prefix.token_ids + one.token_ids)
        return [Expansion(more, [1], expansion.of)]

    first = [Expansion(Prefix(prompts.exam(q)), [5], q.question_id) for q in QUESTIONS[:6]]
    generator.expand_onward(first, "line", Sampling(1.0, 1.0, 60), then)
    assert set(told) == set(left)
    assert len(set(told[:6])) < 6  # level by level, the first six would be of six questions


def test_penalties_follow_each_row_through_its_moves(tiny_student, monkeypatch):
    """Rows that join late and change places keep their own set of tokens written so far."""
    settings = {"growth": SearchSettings((2, 2)), "sampling": Sampling(0.7, 0.95, 50, 1.3), "seed": 2}
    ours = grow_trees(QUESTIONS[:4], LocalGenerator(tiny_student, max_rows=4), **settings)
    levels(slow := LocalGenerator(tiny_student), monkeypatch)
    assert as_lists(ours) == as_lists(grow_trees(QUESTIONS[:4], slow, **settings))


@pytest.mark.parametrize("method", ["forward", "add"])
def test_rows_that_run_out_of_memory_wait_and_are_written_all_the_same(tiny_student, monkeypatch, method):
    settings = {"growth": SearchSettings((3, 2)), "sampling": Sampling(1.0, 1.0, 60), "seed": 7}
    expected = grow_trees(QUESTIONS[:4], LocalGenerator(tiny_student), **settings)
    whole, limit = getattr(RaggedRows, method), 5

    def limited(rows, *arguments):
        if len(rows) + (len(arguments[0]) if method == "add" else 0) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(rows, *arguments)

    monkeypatch.setattr(RaggedRows, method, limited)
    generator = LocalGenerator(tiny_student)
    with pytest.warns(UserWarning, match=r"out of memory with \d+ rows decoded together: continuing with \d+"):
        found = grow_trees(QUESTIONS[:4], generator, **settings)
    assert as_lists(found) == as_lists(expected)
    limit = 0
    with warnings.catch_warnings(), pytest.raises(MedReflError, match=r"out of memory with \d continuations of one"):
        warnings.simplefilter("ignore")
        grow_trees(QUESTIONS[:1], generator, **settings)


def test_a_budget_ends_growing_trees_before_it_is_passed(tiny_student):
    generator = LocalGenerator(tiny_student, budget=Budget(max_calls=20))
    with pytest.raises(MedReflError, match="max_calls is 20"):
        grow_trees(QUESTIONS[:4], generator, growth=SearchSettings((3, 2)), sampling=Sampling(1.0, 1.0, 60), seed=7)
    assert 0 < generator.spent.calls <= 20
