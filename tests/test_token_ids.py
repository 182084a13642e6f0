"""Training reads of a pair the token ids that rollout and evaluation make, whatever the model's template does."""

from __future__ import annotations

import pandas as pd
import pytest
from transformers import AutoTokenizer
from trl.data_utils import _tokenize as trl_tokens

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.models import LocalGenerator, load_tokenizer
from medrefl_utils.training import (
    SharedPrefixCollator,
    end_of_turn,
    generation_end_tokens,
    row_tokens,
    shared_prefix_length,
    tokenize_pairs,
)
from medrefl_utils.training.shared_prefix import CHOSEN, PREFIX, REJECTED
from tests.models import STYLES, make_pairs, save_model

PAIRS = pd.DataFrame(make_pairs(3) + make_pairs(3, "reflection_mid"))


@pytest.fixture(scope="module", params=[*STYLES, "tiny_student"])
def generator(request, tmp_path_factory, tiny_student):
    if request.param == "tiny_student":
        return LocalGenerator(tiny_student)
    return LocalGenerator(str(save_model(tmp_path_factory.mktemp(request.param), request.param)))


def ids_of(generator, pairs=PAIRS, max_length=5000):
    end = end_of_turn(generator.tokenizer, generation_end_tokens(generator.model.generation_config))
    return end, *tokenize_pairs(pairs, generator.tokenizer, end=end, max_length=max_length)


def test_a_pair_is_the_generators_own_tokens_and_one_end(generator):
    end, ids, counts = ids_of(generator)
    assert end in generator.ends and counts == {"cut": 0, "left_out": 0}
    for pair, row in zip(PAIRS.itertuples(), ids.itertuples(), strict=True):
        assert row.prompt_ids == generator.prompt_ids(pair.prompt)
        for side, found in ((pair.chosen, row.chosen_ids), (pair.rejected, row.rejected_ids)):
            assert tuple(found) == (*generator.encode(side[0]["content"]), end)
            assert [token for token in found if token in generator.ends] == [end]
            assert generator.tokenizer.decode(found[:-1]) == side[0]["content"]


def test_the_end_is_the_one_that_the_templates_close_a_turn_with(generator, request):
    style = request.node.callspec.params["generator"]
    name = {"qwen25": "<|im_end|>", "tiny_student": "<|end|>"}.get(style, "<|eot_id|>")
    assert ids_of(generator)[0] == generator.tokenizer.convert_tokens_to_ids(name)


def test_a_prompt_begins_at_most_once(generator):
    bos = generator.tokenizer.bos_token_id
    assert all(row.count(bos) == (bos is not None) for row in ids_of(generator)[1].prompt_ids)


def test_what_a_generator_writes_is_read_back_as_it_was(generator):
    """A response sampled by the generator, put into a pair as text, comes back as the same kind of sequence."""
    written = generator.chat([PAIRS.prompt[0]], Sampling(temperature=0, max_tokens=12), [0])[0]
    side = [{"role": "assistant", "content": written.text}]
    pairs = PAIRS.head(1).assign(chosen=[side])
    end, ids, _ = ids_of(generator, pairs)
    assert generator.tokenizer.decode(ids.chosen_ids[0][:-1]) == written.text and ids.chosen_ids[0][-1] == end


def test_trls_own_tokens_go_on_after_the_end_of_a_qwen_turn(tmp_path):
    """The trap: its template writes a line break after <|im_end|>, at which no generator ever arrives."""
    tokenizer = AutoTokenizer.from_pretrained(save_model(tmp_path, "qwen25"))
    theirs = trl_tokens(tokenizer, PAIRS.prompt[0] + PAIRS.chosen[0])["input_ids"]
    assert theirs[-2] == tokenizer.convert_tokens_to_ids("<|im_end|>") and theirs[-1] != theirs[-2]


def test_a_template_that_trims_does_not_reach_into_a_side(tmp_path):
    tokenizer = load_tokenizer(str(save_model(tmp_path, "llama31")))
    pairs = PAIRS.head(1).assign(chosen=[[{"role": "assistant", "content": "\n Step 1"}]])
    ids, _ = tokenize_pairs(pairs, tokenizer, end=tokenizer.eos_token_id, max_length=5000)
    assert tokenizer.decode(ids.chosen_ids[0][:-1]) == "\n Step 1"


def test_what_is_too_long_is_cut_and_counted(tiny_student):
    tokenizer = load_tokenizer(tiny_student)
    whole, _ = tokenize_pairs(PAIRS, tokenizer, end=1, max_length=5000)
    limit = int(whole.prompt_ids.str.len().max()) + 20
    ids, counts = tokenize_pairs(PAIRS, tokenizer, end=1, max_length=limit)
    assert ids.length.max() == limit and counts["cut"] > 0
    # In the second half both sides share all but their answers, which the cut takes.
    assert counts["left_out"] > 0 and len(ids) + counts["left_out"] == len(PAIRS)
    kept = whole.set_index("pair_id").loc[ids[ids.kind == "reasoning"].pair_id]
    for before, after in zip(kept.itertuples(), ids.itertuples(), strict=False):
        assert after.chosen_ids == before.chosen_ids[: limit - len(before.prompt_ids)]
    with pytest.raises(MedReflError, match=r"none of 6 pairs has two different sides within max_length 16"):
        tokenize_pairs(PAIRS, tokenizer, end=1, max_length=16)


def test_a_row_holds_both_sequences(generator):
    _, ids, _ = ids_of(generator)
    batch = SharedPrefixCollator(0)(ids.to_dict("records"))
    for i, pair in enumerate(ids.itertuples()):
        tokens, part, position = (batch[name][i] for name in ("input_ids", "part", "position_ids"))
        for which, side in ((CHOSEN, pair.chosen_ids), (REJECTED, pair.rejected_ids)):
            mine = (part == PREFIX) | (part == which)
            assert tokens[mine].tolist() == pair.prompt_ids + side
            assert position[mine].tolist() == list(range(len(pair.prompt_ids) + len(side)))
    assert row_tokens(ids, True).tolist() == (batch["part"] != 3).sum(1).tolist()
    assert row_tokens(ids, False).tolist() == [2 * len(p) + len(c) + len(r) for p, c, r in ids.iloc[:, 3:6].to_numpy()]


def test_shared_tokens():
    assert shared_prefix_length([1, 2, 3], [1, 2, 4]) == 2
    assert shared_prefix_length([1, 2], [1, 2, 4]) == 2 and shared_prefix_length([1], [2]) == 0
