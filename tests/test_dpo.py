"""DPO on the 4-bit student: what it must change, what it must not, and the traps of the stack."""

import contextlib
import gc
import json
import math
import os
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tensorboardX.proto import event_pb2
from trl import DPOConfig

from medrefl_utils.core import PAIRS, TRAINING, MedReflError, RunFiles
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import LocalGenerator, load_model, load_tokenizer
from medrefl_utils.runs import STAGES, load_profile
from medrefl_utils.runs.distributed_training import training_settings
from medrefl_utils.runs.stages import CONTINUES, FOLLOWS
from medrefl_utils.training import (
    DpoSettings,
    EfficiencySettings,
    MonitorSettings,
    SharedPrefixTrainer,
    dpo,
    split_held_out,
    train_dpo,
)
from medrefl_utils.training.dpo import last_checkpoint
from medrefl_utils.training.shared_prefix import CHOSEN, PREFIX, REJECTED
from medrefl_utils.training.trainer_setup import lora_config, optimizer_steps


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
SMALL = DpoSettings(
    learning_rate=1e-3, warmup_steps=1, epochs=2, batch_size=4, gradient_accumulation=2, max_length=1024
)


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


def test_the_learning_rate_warms_up_and_follows_a_cosine(trained):
    """By hand: after one step of warm-up, half a cosine over the other five; a step logs the rate it was made with."""
    cosine = [SMALL.learning_rate * (1 + math.cos(math.pi * done / 5)) / 2 for done in range(5)]
    assert trained[0].learning_rate.tolist() == pytest.approx([0.0, *cosine])


@pytest.mark.parametrize("name", ["llama31_8b", "qwen25_7b", "huatuo_o1_8b", "medreason_8b"])
def test_the_trainer_gets_the_published_arguments(name, root, tmp_path):
    """Those of train/train_config.yaml of Med-REFL's repository (LLaMA-Factory), for its 33,000 pairs."""
    notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    profile = load_profile(root / "params" / f"{name}.yaml", notebooks, root=root, follows=FOLLOWS, continues=CONTINUES)
    settings, economy, upkeep = training_settings(profile.parameters["04_dpo_lora_4bit"], RunFiles(tmp_path))
    steps = optimizer_steps(33_000, settings)
    found = dpo._arguments(tmp_path, name, settings, economy, 0, steps, upkeep, False)
    assert (found.lr_scheduler_type, found.learning_rate, found.warmup_steps) == ("cosine", 1e-5, 10) and steps == 516
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps, found.num_train_epochs) == (4, 16, 1)
    assert (found.max_grad_norm, found.weight_decay, found.optim, found.bf16) == (1.0, 0.0, "adamw_torch", True)
    assert (found.adam_beta1, found.adam_beta2, found.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (found.loss_type, found.beta, found.label_smoothing) == (["sigmoid"], 0.1, 0.0)
    assert (settings.max_length, settings.quantization, settings.held_out_share) == (5000, "none", 0.0)
    lora = lora_config(settings.lora_rank, settings.lora_alpha)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (64, 16, 0.0, "all-linear")


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
    dpo = DpoSettings(learning_rate=1e-5, warmup_steps=0, batch_size=4, gradient_accumulation=1, max_length=1024)
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


def test_the_base_stays_as_it_was_and_the_adapter_is_on_every_linear_map(trained, tiny_student, tmp_path, monkeypatch):
    """Bit for bit: the packed 4-bit weights with their scales, embeddings, head and norms."""
    seen = []

    def remember(trainer, *rest):
        state = trainer.model.state_dict()
        seen.append((trainer.model, {name: t.clone() for name, t in state.items() if "lora_" not in name}))

    monkeypatch.setattr(dpo, "try_longest_batch", remember)
    train_dpo(PAIRS_24.head(8), tiny_student, tmp_path, dpo=replace(SMALL, epochs=1), seed=0)
    model, before = seen[0]
    after = model.state_dict()
    assert any(t.dtype == torch.uint8 for t in before.values())  # 4-bit weights are among them
    assert all(torch.equal(t, after[name]) for name, t in before.items())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(config["target_modules"]) == linear and not config["modules_to_save"]
    saved = {name.rsplit(".", 3)[1] for name in load_file(tmp_path / "adapter_model.safetensors")}
    assert saved == linear  # none on the head, which vLLM's --enable-lora would refuse


def test_training_reads_what_rollout_and_evaluation_make(tiny_student, tmp_path, monkeypatch):
    generator = LocalGenerator(tiny_student)
    read, original = set(), SharedPrefixTrainer._logps

    def logps(self, model, batch):
        for tokens, part in zip(batch["input_ids"], batch["part"], strict=True):
            read.update(tuple(tokens[(part == PREFIX) | (part == side)].tolist()) for side in (CHOSEN, REJECTED))
        return original(self, model, batch)

    monkeypatch.setattr(SharedPrefixTrainer, "_logps", logps)
    pairs = PAIRS_24.head(6)
    train_dpo(pairs, tiny_student, tmp_path, dpo=replace(SMALL, epochs=1), seed=0)
    end = (generator.tokenizer.eos_token_id,)
    assert read == {
        (*generator.prompt_ids(pair.prompt), *generator.encode(side[0]["content"]), *end)
        for pair in pairs.itertuples()
        for side in (pair.chosen, pair.rejected)
    }


def test_the_shared_prefix_trains_the_same_adapter(trained, tiny_student, tmp_path):
    log, folder = trained
    other = train_dpo(
        PAIRS_24, tiny_student, tmp_path, dpo=SMALL, seed=0, economy=EfficiencySettings(shared_prefix=False)
    )
    for name in ("loss", "margin", "chosen_logprob", "rejected_logprob", "chosen_reward"):
        assert (log[name] - other[name]).abs().max() < 1e-2, name
    assert (log.loss - other.loss).abs().max() < 1e-3
    assert other.end_logprob.isna().all() and log.end_logprob.notna().all()


@pytest.fixture(scope="module")
def long_pairs():
    """Two pairs of more than 1024 tokens."""
    asked = [[{"role": "user", "content": prompt[0]["content"] * 16}] for prompt in PAIRS_24.prompt[:2]]
    return PAIRS_24.head(2).assign(prompt=asked)


def test_what_is_cut_is_said(long_pairs, tiny_student, tmp_path):
    """The trap: DPOConfig cuts at 1024 tokens unless told otherwise, and says nothing."""
    assert DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False).max_length == 1024
    tokenizer = load_tokenizer(tiny_student)
    tokens = [len(tokenizer.apply_chat_template(p, add_generation_prompt=True).input_ids) for p in long_pairs.prompt]
    assert min(tokens) > 1024
    pairs = long_pairs.assign(rejected=[[{"role": "assistant", "content": "No. " * 20}]] * 2)
    dpo = replace(SMALL, epochs=1, max_length=max(tokens) + 8)
    with pytest.warns(UserWarning, match=r"of 2 pairs, 2 are truncated at max_length \d+, and 0 are dropped"):
        train_dpo(pairs, tiny_student, tmp_path, dpo=dpo, seed=0)


def test_long_pairs_are_whole_by_default(long_pairs, tiny_student, tmp_path, monkeypatch, recwarn):
    widths, original = [], SharedPrefixTrainer._logps
    monkeypatch.setattr(
        SharedPrefixTrainer,
        "_logps",
        lambda self, model, batch: widths.append(batch["input_ids"].shape[1]) or original(self, model, batch),
    )
    train_dpo(long_pairs, tiny_student, tmp_path, dpo=replace(SMALL, epochs=1, max_length=5000), seed=0)
    assert min(widths) > 1024 and not [w for w in recwarn if "max_length" in str(w.message)]


def test_nothing_is_passed_that_trl_takes_and_ignores(tmp_path):
    """padding_free is accepted and switched off; arguments of older tutorials would be an error."""
    arguments = dpo._arguments(
        tmp_path, "run", SMALL, EfficiencySettings(group_by_length=True), 0, 6, MonitorSettings(), False
    )
    assert not arguments.padding_free and arguments.disable_dropout and arguments.max_length is None
    assert arguments.train_sampling_strategy == "group_by_length"
    for gone in ("max_prompt_length", "rpo_alpha", "warmup_ratio", "group_by_length"):
        with pytest.raises(TypeError, match=gone):
            DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{gone: 1})


def test_an_evaluation_before_training_leaves_the_gradient_as_it_was(trained, tiny_student, tmp_path):
    """The reference pass runs in eval mode: with the references computed as one goes, the curve must be the same."""
    log, _ = trained
    original = dpo.add_references
    try:
        dpo.add_references = lambda *rest: 0
        other = train_dpo(PAIRS_24, tiny_student, tmp_path, dpo=SMALL, seed=0)
    finally:
        dpo.add_references = original
    assert np.allclose(log.grad_norm, other.grad_norm, rtol=1e-3)


def test_checkpointing_and_grouping_change_no_loss(trained, tiny_student, tmp_path):
    log, _ = trained
    other = train_dpo(
        PAIRS_24, tiny_student, tmp_path, dpo=SMALL, seed=0, economy=EfficiencySettings(gradient_checkpointing=True)
    )
    assert (log.loss - other.loss).abs().max() < 1e-4
    grouped = train_dpo(
        PAIRS_24, tiny_student, tmp_path, dpo=SMALL, seed=0, economy=EfficiencySettings(group_by_length=True)
    )
    assert len(grouped) == len(log) and grouped.margin.iloc[-1] > 0.01


def test_16_bit_inputs_of_the_adapter_are_not_copied_to_32_and_it_learns_the_same(tiny_student, tmp_path, monkeypatch):
    seen = {}

    def run(name):
        def watched(trainer, *rest, tried=dpo.try_longest_batch):
            for linear in (m for n, m in trainer.model.named_modules() if n.endswith("lora_A.default")):
                linear.register_forward_pre_hook(lambda _, args: seen.setdefault(name, set()).add(args[0].dtype))
            tried(trainer, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(dpo, "try_longest_batch", watched)
            train_dpo(
                PAIRS_24,
                tiny_student,
                tmp_path / name,
                dpo=SMALL,
                seed=0,
                economy=EfficiencySettings(compute_dtype="bf16"),
            )
        return load_file(tmp_path / name / "adapter_model.safetensors")

    ours = run("ours")
    monkeypatch.setattr(dpo, "disable_input_dtype_casting", lambda model, active: contextlib.nullcontext())
    pefts = run("peft")
    assert seen == {"ours": {torch.bfloat16}, "peft": {torch.float32}}
    assert all(torch.equal(ours[name], pefts[name]) for name in ours)


def test_the_longest_batch_is_tried_beside_what_the_optimizer_will_take(tiny_student, tmp_path, monkeypatch):
    class Tried(Exception):
        pass

    def held(optimizer):
        found = []

        def count(trainer, *rest):
            shapes = {p.shape for p in trainer.model.parameters() if p.requires_grad}
            tensors = (one for one in gc.get_objects() if type(one) is torch.Tensor)
            found.append(sum(t.numel() for t in tensors if t.dtype == torch.float32 and t.shape in shapes))
            found.append(sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))
            raise Tried

        with monkeypatch.context() as patch, pytest.raises(Tried):
            patch.setattr(SharedPrefixTrainer, "compute_loss", count)
            train_dpo(
                PAIRS_24, tiny_student, tmp_path, dpo=SMALL, seed=0, economy=EfficiencySettings(optimizer=optimizer)
            )
        gc.collect()
        return found

    (nothing, _), (states, adapter) = held("paged_adamw_8bit"), held("adamw")
    assert states - nothing == 2 * adapter > 0


def test_held_out_pairs_are_of_other_questions_and_are_measured(tiny_student, tmp_path):
    dpo = replace(SMALL, held_out_share=0.25)
    log = train_dpo(PAIRS_24, tiny_student, tmp_path, dpo=dpo, seed=0)
    asked = log[log.held_out_loss.notna()]
    assert asked.step.tolist() == [2, 4, 6]  # 18 pairs, 8 a step, two epochs: 6 steps
    assert asked.held_out_loss.iloc[-1] < math.log(2) and asked.held_out_margin.iloc[-1] > 0
    assert asked.held_out_accuracy.between(0, 1).all()


def test_the_split_keeps_a_questions_pairs_together():
    ids = pd.DataFrame({"question_id": np.repeat([f"q{i}" for i in range(20)], 3), "pair_id": range(60)})
    train, held_out = split_held_out(ids, 0.1, seed=1)
    assert len(held_out) == 6 and held_out.question_id.nunique() == 2 and len(train) == 54
    assert not set(train.question_id) & set(held_out.question_id)
    assert train.pair_id.tolist() != sorted(train.pair_id)
    assert split_held_out(ids, 0.1, seed=1)[1].equals(held_out) and not split_held_out(ids, 0.1, seed=2)[1].equals(
        held_out
    )
    assert len(split_held_out(ids.head(3), 0.9, seed=0)[0]) == 3  # something is always trained on


class Disconnect(Exception):
    pass


def cut_off_after(step):
    def show(log):
        if log.step.iloc[-1] == step:
            raise Disconnect

    return show


@pytest.mark.parametrize(
    "economy", [EfficiencySettings(), EfficiencySettings(shared_prefix=False)], ids=["shared", "trl"]
)
def test_an_interrupted_training_goes_on_with_the_same_curve(tiny_student, tmp_path, economy):
    settings = {"dpo": replace(SMALL, held_out_share=0.2), "seed": 3, "economy": economy}
    whole = train_dpo(PAIRS_24, tiny_student, tmp_path / "whole", **settings)
    drive = MonitorSettings(
        checkpoint_folder=tmp_path / "drive", checkpoint_every=2, references=tmp_path / "references"
    )
    with pytest.raises(Disconnect):
        train_dpo(PAIRS_24, tiny_student, tmp_path / "cut", **settings, upkeep=replace(drive, show=cut_off_after(5)))
    [folder] = (tmp_path / "drive").iterdir()
    # The newest one was cut short while it was written: its state, which comes last, is not there.
    (folder / "checkpoint-9").mkdir()
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "trainer_state.json").write_text('{"global_st')
    assert last_checkpoint(folder).endswith("checkpoint-4")
    steps = []
    upkeep = replace(drive, show=lambda log: steps.append(int(log.step.iloc[-1])))
    resumed = train_dpo(PAIRS_24, tiny_student, tmp_path / "cut", **settings, upkeep=upkeep)
    assert steps == [5, 6]
    pd.testing.assert_frame_equal(whole, resumed, atol=1e-4, rtol=1e-4)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.allclose(one[k], two[k], atol=1e-4) for k in one)
    assert not folder.exists()  # what is done needs no checkpoint


def test_a_checkpoint_of_other_settings_is_not_taken_up(tiny_student, tmp_path):
    upkeep = MonitorSettings(checkpoint_folder=tmp_path / "drive", checkpoint_every=2)
    with pytest.raises(Disconnect):
        train_dpo(PAIRS_24, tiny_student, tmp_path, dpo=SMALL, seed=3, upkeep=replace(upkeep, show=cut_off_after(3)))
    for other in ({"dpo": replace(SMALL, beta=0.2), "seed": 3}, {"dpo": SMALL, "seed": 4}):
        log = []
        with pytest.raises(Disconnect):
            upkeep_here = replace(upkeep, show=lambda frame, log=log: (log.append(len(frame)), cut_off_after(1)(frame)))
            train_dpo(PAIRS_24, tiny_student, tmp_path, **other, upkeep=upkeep_here)
        assert log == [1]


def test_a_training_that_breaks_is_stopped_and_one_that_stands_still_is_told(tiny_student, tmp_path, capsys):
    broken = replace(SMALL, learning_rate=1e30, epochs=6)
    with pytest.raises(MedReflError, match=r"training: stopped at step \d+: the loss is (nan|inf)"):
        train_dpo(PAIRS_24, tiny_student, tmp_path, dpo=broken, seed=0)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    still, few = replace(SMALL, learning_rate=1e-12, batch_size=2, gradient_accumulation=1, epochs=33), PAIRS_24.head(2)
    log = train_dpo(few, tiny_student, tmp_path, dpo=still, seed=0)
    assert len(log) == 33
    said = capsys.readouterr().err
    assert said.count("training, step 31: the margin is still") == 1
    with pytest.raises(MedReflError, match="stopped at step 31: the margin is still"):
        train_dpo(
            few, tiny_student, tmp_path / "again", dpo=still, seed=0, upkeep=MonitorSettings(stop_on=["flat_margin"])
        )


SHORT_OF_MEMORY = """
import resource, sys
import torch
from pathlib import Path
import pandas as pd
from medrefl_utils.core import MedReflError
from medrefl_utils.training import DpoSettings, dpo, train_dpo
from tests.test_dpo import PAIRS_24
load = dpo.load_model
def load_and_cap(*a, **k):
    model = load(*a, **k)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]) * 2**20,) * 2)
    return model
dpo.load_model = load_and_cap
pairs = pd.concat([PAIRS_24] * 4, ignore_index=True)
try:
    train_dpo(pairs, sys.argv[1], Path(sys.argv[3]), dpo=DpoSettings(batch_size=96, gradient_accumulation=2), seed=0)
except MedReflError as error:
    print(error)
"""


def test_memory_that_runs_out_is_told_before_training_with_what_to_lower(tiny_student, tmp_path, root):
    """A real shortage: the process may take 400 MiB more than the loaded model, the longest batch needs more."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, tiny_student, "400", str(tmp_path)],
        cwd=root, capture_output=True, text=True, timeout=200, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert "training: out of memory on the longest batch (96 pairs, up to " in done.stdout, done.stderr
    assert "set batch_size to 48, gradient_accumulation to 4, which trains the same" in done.stdout
    assert "DPO:   0%" in done.stderr and "reference" not in done.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DpoSettings(held_out_share=1.0), "training: held_out_share is 1.0, expected a share"),
        (
            lambda: EfficiencySettings(optimizer="sgd"),
            "training: optimizer is 'sgd', expected adamw or paged_adamw_8bit",
        ),
        (
            lambda: EfficiencySettings(compute_dtype="int8"),
            "training: compute_dtype is 'int8', expected auto, fp32, bf16, fp16",
        ),
        (lambda: MonitorSettings(stop_on=["nan"]), "training: stop_on names 'nan', expected some of not_finite"),
        (lambda: MonitorSettings(checkpoint_every=0), "training: checkpoint_every is 0, expected at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(MedReflError, match=message):
        make()


@pytest.mark.parametrize("name", ["beta", "lora_rank", "learning_rate", "batch_size", "max_length"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(MedReflError, match=f"training: {name} is 0, expected above 0"):
        DpoSettings(**{name: 0})


def tensorboard_scalars(folder, tag):
    """{step: value} of a scalar in TensorBoard's files: records of length, checksum, event, checksum."""
    found = {}
    for file in folder.glob("events.out.tfevents.*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (n,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + n])
            found.update((event.step, value.simple_value) for value in event.summary.value if value.tag == tag)
            at += n + 16
    return found


def test_a_training_reports_to_tensorboard_beside_its_adapter(tiny_student, tmp_path):
    """By the trainer's own callback: the loss of each optimizer step, in files that outlive the checkpoints."""
    upkeep = MonitorSettings(tmp_path / "checkpoints", report_to=["tensorboard"])
    log = train_dpo(PAIRS_24, tiny_student, tmp_path / "adapter", dpo=replace(SMALL, epochs=1), seed=0, upkeep=upkeep)
    losses = tensorboard_scalars(tmp_path / "tensorboard", "train/loss")
    assert list(losses) == log.step.tolist() and np.allclose(list(losses.values()), log.loss, atol=1e-6)
    assert not any((tmp_path / "checkpoints").glob("*"))


def test_an_unknown_tracker_is_refused():
    with pytest.raises(MedReflError, match="report_to names 'mlflow', expected some of tensorboard, wandb, trackio"):
        MonitorSettings(report_to=["mlflow"])
