"""One step of DPO: equal to a loss written by hand, to TRL's own, and the same with the shared prefix read once."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from medrefl_utils.core import MedReflError
from medrefl_utils.models import load_tokenizer
from medrefl_utils.training import PairTrainer, SharedPrefixTrainer, tokenize_pairs
from medrefl_utils.training.shared_prefix import PAD
from tests.models import make_pairs, save_model

PAIRS = pd.DataFrame(make_pairs(2) + make_pairs(3, "reflection_mid"))
BETA = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("llama"), hidden=32, layers=2))


@pytest.fixture(scope="module")
def ids(folder):
    tokenizer = load_tokenizer(folder)
    return tokenize_pairs(PAIRS, tokenizer, end=tokenizer.eos_token_id, max_length=5000)[0]


def make_trainer(kind, folder, ids, out, *, attention="sdpa", checkpointing=False):
    """A trainer in fp32 whose adapter is not at its start, so that no gradient is 0 by construction."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
    data = Dataset.from_dict({name: ids[name].tolist() for name in ("prompt_ids", "chosen_ids", "rejected_ids")})
    options = (
        {} if kind is SharedPrefixTrainer else {"data_collator": DataCollatorForPreference(tokenizer.pad_token_id)}
    )
    trainer = kind(
        model=model,
        args=DPOConfig(
            output_dir=str(out), beta=BETA, use_cpu=True, bf16=False, report_to="none", max_length=None,
            gradient_checkpointing=checkpointing,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        **options,
    )  # fmt: skip
    for name, parameter in sorted(trainer.model.named_parameters()):
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return trainer


def step(trainer):
    """Loss and gradients of all pairs in one batch."""
    trainer.model.train()
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def by_hand(trainer, ids):
    """-log sigmoid(beta ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected)))), mean over pairs."""
    model = trainer.model

    def logp(prompt, side):
        tokens = torch.tensor([prompt + side])
        logits = model(tokens).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(side)[:, None]).sum()

    losses = []
    for pair in ids.itertuples():
        now = [logp(pair.prompt_ids, side) for side in (pair.chosen_ids, pair.rejected_ids)]
        with torch.no_grad(), model.disable_adapter():
            base = [logp(pair.prompt_ids, side) for side in (pair.chosen_ids, pair.rejected_ids)]
        margin = BETA * ((now[0] - base[0]) - (now[1] - base[1]))
        losses.append(torch.log1p(torch.exp(-margin)))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def agree(one, two, tolerance):
    assert one[0] == pytest.approx(two[0], abs=tolerance)
    assert one[1].keys() == two[1].keys() and all("lora" in name for name in one[1])
    assert max(grad.abs().max() for grad in two[1].values()) > 0.01  # there is something to agree on
    for name, grad in one[1].items():
        assert torch.allclose(grad, two[1][name], atol=tolerance, rtol=tolerance), name


@pytest.fixture(scope="module")
def hand(folder, ids, tmp_path_factory):
    return by_hand(make_trainer(PairTrainer, folder, ids, tmp_path_factory.mktemp("hand")), ids)


def test_trls_step_is_the_dpo_loss_written_by_hand(folder, ids, hand, tmp_path):
    assert hand[0] != pytest.approx(0.6931, abs=1e-2)
    agree(step(make_trainer(PairTrainer, folder, ids, tmp_path)), hand, 1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_shared_prefix_changes_neither_loss_nor_gradient(folder, ids, hand, tmp_path, attention, checkpointing):
    trainer = make_trainer(SharedPrefixTrainer, folder, ids, tmp_path, attention=attention, checkpointing=checkpointing)
    agree(step(trainer), hand, 1e-5)


def test_what_is_logged_is_what_trl_logs(folder, ids, tmp_path):
    ours, theirs = (make_trainer(kind, folder, ids, tmp_path) for kind in (SharedPrefixTrainer, PairTrainer))
    step(ours)
    step(theirs)
    for name, value in ours._metrics["train"].items():
        if name != "logps/end":
            assert value == pytest.approx(theirs._metrics["train"][name], rel=1e-6, abs=1e-4), name
    assert len(ours._metrics["train"]) == 7


def test_the_reference_is_the_base_and_can_be_given(folder, ids, tmp_path):
    ours, theirs = (make_trainer(kind, folder, ids, tmp_path) for kind in (SharedPrefixTrainer, PairTrainer))
    before = step(ours)
    ours.model.zero_grad()
    logps = [t.reference(t.data_collator(t.train_dataset.to_list())) for t in (ours, theirs)]
    assert torch.allclose(torch.stack(logps[0]), torch.stack(logps[1]), atol=1e-4)
    given = pd.DataFrame({"chosen": logps[0][0].tolist(), "rejected": logps[0][1].tolist()})
    for trainer in (ours, theirs):
        trainer.use_references(given, given.head(0))
        agree(step(trainer), before, 1e-5)
    ours.model.zero_grad()
    shifted = ours.train_dataset.remove_columns("ref_chosen_logps").add_column("ref_chosen_logps", [0.0] * len(ids))
    ours.train_dataset = shifted
    assert step(ours)[0] != pytest.approx(before[0], abs=1e-2)  # the given ones are used


@pytest.mark.parametrize(("side", "place"), [("chosen", 0), ("rejected", 1)])
def test_the_sides_do_not_read_each_other(folder, ids, tmp_path, side, place):
    """Another text on one side leaves the other side's log-probability as it was, but for rounding."""
    trainer = make_trainer(SharedPrefixTrainer, folder, ids, tmp_path)
    row = ids.iloc[-1].to_dict()
    tokens = row[f"{side}_ids"]
    other = row | {f"{side}_ids": [*tokens[:-2], 7, 8, 9, tokens[-1]]}
    first, second = (trainer.reference(trainer.data_collator([r])) for r in (row, other))
    assert first[1 - place].item() == pytest.approx(second[1 - place].item(), abs=1e-4)
    assert first[place].item() != pytest.approx(second[place].item(), abs=1e-2)


@pytest.mark.parametrize(("bf16", "multiple"), [(True, 32), (False, 8)])
def test_rows_are_padded_to_lengths_that_come_again(folder, ids, tmp_path, bf16, multiple):
    AcceleratorState._reset_state(reset_partial_state=True)  # one process computes in one precision
    trainer = SharedPrefixTrainer(
        AutoModelForCausalLM.from_pretrained(folder), args=DPOConfig(tmp_path, use_cpu=True, bf16=bf16),
        processing_class=load_tokenizer(folder), train_dataset=Dataset.from_dict({"length": [1]}),
    )  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    batch = trainer.data_collator(ids.to_dict("records"))
    assert {tensor.shape[1] % multiple for tensor in batch.values()} == {0}
    assert (batch["part"] == PAD).all(0).sum() < multiple


def test_the_end_of_the_turn_is_logged(folder, ids, tmp_path):
    trainer = make_trainer(SharedPrefixTrainer, folder, ids.head(1), tmp_path)
    step(trainer)
    row = ids.iloc[0]
    with torch.no_grad():
        logits = trainer.model(torch.tensor([row.prompt_ids + row.chosen_ids])).logits[0, -2]
    assert trainer._metrics["train"]["logps/end"][0] == pytest.approx(logits.log_softmax(-1)[row.chosen_ids[-1]].item())


def test_a_model_that_does_not_heed_the_mask_is_refused(folder, ids, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(MedReflError, match="needs full attention, the model has sliding_attention: set shared_prefix"):
        SharedPrefixTrainer(model)
    model.config.layer_types = ["full_attention"] * 2
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(MedReflError, match="needs sdpa or eager attention, the model has flash_attention_2"):
        SharedPrefixTrainer(model)
