"""DPO on the 4-bit student: what it must change, what it must not, and the traps of the stack."""

import math

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from medrefl_utils import clinic, prompts
from medrefl_utils.models import load_model, load_tokenizer
from medrefl_utils.records import PAIRS, TRAINING, MedReflError
from medrefl_utils.training import Dpo, train_dpo


def make_pairs(n: int) -> pd.DataFrame:
    """Pairs of the clinic's own chains: the true one against one that is made to end elsewhere."""
    rows = []
    for case in clinic.make_cases(n, seed=11):
        chain = clinic.solve(case)
        other = next(letter for letter in case.question.options if letter != case.question.gold)
        sides = {"chosen": chain, "rejected": [*chain[:-1], f"Answer: {other}"]}
        rows.append(
            {"pair_id": case.question.question_id, "question_id": case.question.question_id, "kind": "reasoning"}
            | {"prompt": prompts.exam(case.question)}
            | {side: [{"role": "assistant", "content": "\n".join(text)}] for side, text in sides.items()}
        )
    return pd.DataFrame(rows)


PAIRS_24 = make_pairs(24)
SMALL = Dpo(learning_rate=1e-3, warmup_steps=1, epochs=2, batch_size=4, accumulation=2, max_length=1024)


@pytest.fixture(scope="module")
def trained(tiny_student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    return train_dpo(PAIRS_24, tiny_student, folder, dpo=SMALL, seed=0), folder


def test_the_log_tells_of_learning(trained):
    log, _ = trained
    assert set(log) == set(TRAINING.names) and log.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert math.isclose(log.loss[0], math.log(2), abs_tol=1e-3)  # the adapter starts as the reference
    assert log.loss.iloc[-1] < log.loss[0] and log.margin.iloc[-1] > 0.01
    assert set(PAIRS.names) >= set(PAIRS_24.columns)


def test_the_adapter_loads_and_prefers_the_chosen_side(trained, tiny_student):
    _, folder = trained
    tokenizer = load_tokenizer(tiny_student)
    base = load_model(tiny_student, "nf4")
    tuned = load_model(tiny_student, "nf4", adapter=folder)

    def margin(model):
        total = 0.0
        for row in PAIRS_24.itertuples():
            sides = []
            for side in (row.chosen, row.rejected):
                head = tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=False)
                n = len(tokenizer(head).input_ids)
                ids = torch.tensor([tokenizer(head + side[0]["content"] + tokenizer.eos_token).input_ids])
                with torch.inference_mode():
                    logps = model(ids).logits[0, n - 1 : -1].log_softmax(-1).gather(1, ids[0, n:, None])
                sides.append(logps.sum().item())
            total += sides[0] - sides[1]
        return total / len(PAIRS_24)

    assert margin(tuned) > margin(base) + 0.1


def test_training_is_seeded(trained, tiny_student, tmp_path):
    log, folder = trained
    again = train_dpo(PAIRS_24, tiny_student, tmp_path, dpo=SMALL, seed=0)
    assert (log.loss - again.loss).abs().max() < 1e-4
    one, two = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path))
    assert all(torch.allclose(one[k], two[k], atol=1e-4) for k in one)


def test_a_small_step_still_moves_nearly_all_of_the_adapter(tiny_student, tmp_path):
    """In bf16, to which TRL casts a QLoRA adapter, steps of 1e-5 are lost to rounding."""
    dpo = Dpo(learning_rate=1e-5, warmup_steps=0, batch_size=4, accumulation=1, max_length=1024)
    train_dpo(PAIRS_24.head(12), tiny_student, tmp_path, dpo=dpo, seed=0)
    after = load_file(tmp_path / "adapter_model.safetensors")
    moved = torch.cat([(t != 0).flatten() for name, t in after.items() if "lora_B" in name])
    assert all(t.dtype == torch.float32 for t in after.values())
    assert moved.float().mean() > 0.99
    # lora_A moves from the second step on, once B is not 0: a bf16 A of this size would stand still.
    fine = torch.cat([t.flatten() for name, t in after.items() if "lora_A" in name])
    assert (fine != fine.to(torch.bfloat16).float()).float().mean() > 0.9


def test_a_forward_in_eval_mode_leaves_the_gradient_as_it_was(tiny_student):
    """bitsandbytes repacks 4-bit layers in an eval forward on some CPUs, after which backward is silently wrong."""
    norms = []
    for evaluated_before in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(load_model(tiny_student, "nf4"), LoraConfig(r=8, target_modules="all-linear"))
        ids = torch.arange(300, 364)[None]
        if evaluated_before:
            with torch.no_grad():
                model.eval()(ids)
        model.train()(ids, labels=ids).loss.backward()
        norms.append(sum(p.grad.norm() ** 2 for p in model.parameters() if p.grad is not None).sqrt().item())
    assert norms[0] > 0 and math.isclose(*norms, rel_tol=1e-4)


def test_no_pairs_is_an_error(tiny_student, tmp_path):
    with pytest.raises(MedReflError, match="there are no pairs to train on"):
        train_dpo(PAIRS_24.head(0), tiny_student, tmp_path, dpo=SMALL, seed=0)


@pytest.mark.parametrize("name", ["beta", "rank", "learning_rate", "batch_size", "max_length"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(MedReflError, match=f"training: {name} is 0, expected above 0"):
        Dpo(**{name: 0})
