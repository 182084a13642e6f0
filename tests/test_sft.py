"""Fine-tuning on chains: what it learns and reads, what it leaves out, and that an interruption changes nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medrefl_utils.core import SFT_TRAINING, STEPS, TAUGHT, MedReflError, RunFiles, Sampling, read_table
from medrefl_utils.core.store import write_table
from medrefl_utils.exam import clinic, prompts, questions_table
from medrefl_utils.models import LocalGenerator, load_model, load_tokenizer
from medrefl_utils.training import (
    EfficiencySettings,
    MonitorSettings,
    SftSettings,
    check_sft_log,
    end_of_turn,
    find_adapter,
    generation_end_tokens,
    merge_adapter,
    sft,
    sft_examples,
    taught_questions,
    tokenize_chains,
    train_sft,
    write_sft_card,
)
from medrefl_utils.training.health_checks import PATIENCE, SFT_KINDS
from tests.models import QWEN_25, STYLES, save_model

SMALL = SftSettings(learning_rate=1e-3, epochs=2, batch_size=4, gradient_accumulation=2, max_length=1024)
FULL = replace(SMALL, full_finetuning=True, quantization="none")


def make_chains(n: int) -> pd.DataFrame:
    """The clinic's true chains, the last two refused by a filter."""
    rows = [
        {"question_id": case.question.question_id, "source": "clinic", "gold": case.question.gold}
        | {"prompt": prompts.exam(case.question), "completion": turn("\n".join(clinic.solve(case)))}
        | {"kept": i < n - 2, "reason": None if i < n - 2 else "low_pass"}
        for i, case in enumerate(clinic.make_cases(n, seed=11))
    ]
    return pd.DataFrame(rows)


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


CHAINS = make_chains(26)
EXAMPLES = sft_examples(CHAINS)[0]


@pytest.fixture(scope="module")
def trained(tiny_student, tmp_path_factory):
    """A base taught the letters alone: another form of answer than it has, so that a change shows."""
    files = RunFiles(tmp_path_factory.mktemp("run"))
    letters, _ = sft_examples(CHAINS, "letters")
    settings = replace(SMALL, epochs=8, held_out_share=0.2)
    return files, train_sft(letters, tiny_student, files.sft_model, adapter=files.sft_adapter, sft=settings, seed=0)


def test_the_loss_falls_and_the_model_answers_in_the_form_it_was_taught(trained, tiny_student):
    files, result = trained
    log = result.log
    assert list(log.columns) == SFT_TRAINING.names and log.step.tolist() == list(range(1, len(log) + 1))
    assert log.loss.iloc[-1] < 0.5 * log.loss.iloc[0] and log.accuracy.iloc[-1] > log.accuracy.iloc[0]
    asked = log.held_out_loss.dropna()
    assert len(asked) == 4 and asked.iloc[-1] < asked.iloc[0]
    asking = [prompts.exam(q) for q in clinic.make_exam(8, seed=3, split="test")]
    greedy = (Sampling(0.0, 1.0, 48), [0] * 8)
    before, after = (
        [reply.text for reply in LocalGenerator(model).chat(asking, *greedy)]
        for model in (tiny_student, str(files.sft_model))
    )
    assert all(text.startswith("Step 1:") for text in before)
    assert sum(text.startswith("Answer: ") for text in after) > 4


def test_model_and_adapter_keep_the_questions_that_they_were_taught(trained):
    files, _ = trained
    letters, _ = sft_examples(CHAINS, "letters")
    for folder in (files.sft_model, files.sft_adapter):
        taught = taught_questions(str(folder))
        assert [prompts.exam(question) for question in taught] == letters.prompt.tolist() and len(taught) == 24


def test_the_first_loss_is_the_cross_entropy_of_the_responses_alone(tiny_student, tmp_path):
    """By hand, with all examples in one step: no padding, no prompt and no batch counts."""
    all_at_once = replace(FULL, epochs=1, batch_size=5, gradient_accumulation=5)
    examples = EXAMPLES.head(23)
    result = train_sft(examples, tiny_student, tmp_path / "m", adapter=tmp_path / "a", sft=all_at_once, seed=0)
    tokenizer, model = load_tokenizer(tiny_student), load_model(tiny_student, dtype=torch.float32)
    nats = []
    for row in examples.itertuples():
        head = tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=False)
        n = len(tokenizer(head).input_ids)
        ids = torch.tensor([tokenizer(head + row.completion[0]["content"] + tokenizer.eos_token).input_ids])
        with torch.inference_mode():
            nats += (-model(ids).logits[0, n - 1 : -1].log_softmax(-1).gather(1, ids[0, n:, None]))[:, 0].tolist()
    assert result.log.loss.tolist() == pytest.approx([sum(nats) / len(nats)], rel=1e-3)


def test_training_reads_what_evaluation_asks_and_what_a_generator_writes(tiny_student, tmp_path, monkeypatch):
    read = []
    collate = sft.DataCollatorForLanguageModeling.torch_call

    def watched(self, examples):
        read.extend((tuple(e["input_ids"]), tuple(e["labels"])) for e in examples)
        return collate(self, examples)

    monkeypatch.setattr(sft.DataCollatorForLanguageModeling, "torch_call", watched)
    settings = replace(SMALL, epochs=1)
    train_sft(EXAMPLES.head(6), tiny_student, tmp_path / "m", adapter=tmp_path / "a", sft=settings, seed=0)
    generator, expected = LocalGenerator(tiny_student), set()
    for row in EXAMPLES.head(6).itertuples():
        head, tail = generator.prompt_ids(row.prompt), generator.encode(row.completion[0]["content"])
        tail = (*tail, generator.tokenizer.eos_token_id)
        expected.add(((*head, *tail), (*[-100] * len(head), *tail)))
    assert set(read) == expected


@pytest.mark.parametrize("style", [*STYLES, "think"])
def test_tokens_of_each_template_are_the_generators(style, tmp_path):
    """A template that opens the thinking: a completion's own mark is left out, as a generator writes none."""
    folder = save_model(tmp_path, "qwen25" if style == "think" else style)
    if style == "think":
        opening = QWEN_25.replace(
            "<|im_start|>assistant\\n' }}\n{%- endif %}", "<|im_start|>assistant\\n<think>\\n' }}\n{%- endif %}"
        )
        assert opening != QWEN_25
        (folder / "chat_template.jinja").write_text(opening)
    generator = LocalGenerator(str(folder))
    assert generator.thinking_open == (style == "think")
    end = end_of_turn(generator.tokenizer, generation_end_tokens(generator.model.generation_config))
    text = "It is so.\n</think>\n\nAnswer: B"
    examples = EXAMPLES.head(2).assign(completion=[turn(f"<think>\n{text}"), turn("Step 1: so.\nAnswer: B")])
    ids, dropped = tokenize_chains(examples, generator.tokenizer, end=end, max_length=4096)
    assert all(
        row.prompt_ids == list(generator.prompt_ids(p))
        for row, p in zip(ids.itertuples(), examples.prompt, strict=False)
    )
    written = text if style == "think" else f"<think>\n{text}"
    assert ids.completion_ids[0] == [*generator.encode(written), end]
    assert ids.length[0] == len(ids.prompt_ids[0]) + len(ids.completion_ids[0])
    if style == "think":
        assert len(ids) == 1 and "no </think> in the completion" in dropped.examples["thinking_not_closed"]
    else:
        assert len(ids) == 2 and not dropped


def test_what_cannot_be_taught_is_left_out_and_counted_never_truncated(tiny_student, tmp_path):
    tokenizer = load_tokenizer(tiny_student)
    whole, _ = tokenize_chains(EXAMPLES, tokenizer, end=tokenizer.eos_token_id, max_length=4096)
    limit = int(whole.length.median())
    rows = EXAMPLES.copy()
    rows.at[0, "completion"] = turn("  ")
    rows.at[1, "completion"] = turn("one") + turn("two")
    rows.at[2, "prompt"] = [{"role": "system", "content": "x"}]
    rows.at[3, "completion"] = turn(f"Step 1: a.{tokenizer.eos_token}Answer: A")
    ids, dropped = tokenize_chains(rows, tokenizer, end=tokenizer.eos_token_id, max_length=limit)
    long = int((whole.length[4:] > limit).sum())
    assert dropped == {"malformed": 3, "end_inside": 1, "too_long": long} and long > 5
    assert len(ids) == len(rows) - 4 - long and ids.length.max() <= limit
    kept = whole.set_index("question_id").loc[ids.question_id]
    assert ids.completion_ids.tolist() == kept.completion_ids.tolist()
    assert f"expected at most max_length {limit}" in dropped.examples["too_long"]
    settings, places = replace(SMALL, max_length=limit), {"adapter": tmp_path / "a", "sft": None, "seed": 0}
    places["sft"] = settings
    with pytest.raises(
        MedReflError, match=r"training: examples: \d+ of 24 are dropped \(malformed 3, .*max_dropped 0.1"
    ):
        train_sft(rows, tiny_student, tmp_path / "m", **places, max_dropped=0.1)
    with pytest.raises(MedReflError, match=r"training: examples: none is left \(too_long 24\); raise max_length"):
        train_sft(
            EXAMPLES, tiny_student, tmp_path / "m", **places | {"sft": replace(SMALL, max_length=16)}, max_dropped=1
        )


def test_a_full_fine_tuning_moves_all_weights_and_is_stored_as_its_base(tiny_student, tmp_path):
    files = RunFiles(tmp_path)
    files.sft_adapter.mkdir()
    result = train_sft(EXAMPLES, tiny_student, files.sft_model, adapter=files.sft_adapter, sft=FULL, seed=0)
    assert result.merged == "" and result.dropped == {} and result.examples == 24 and not files.sft_adapter.exists()
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (tiny_student, files.sft_model))
    assert before.keys() == after.keys() and all(after[k].dtype == before[k].dtype for k in before)
    moved = {k: (after[k] != before[k]).float().mean() for k in before if before[k].dim() == 2}
    assert len(moved) > 10 and min(moved.values()) > 0.3  # in 16 bit, a small step of a large weight rounds away
    theirs, ours = (
        json.loads((Path(folder) / "config.json").read_text()) for folder in (tiny_student, files.sft_model)
    )
    assert ours["dtype"] == theirs["dtype"] and ours["eos_token_id"] == theirs["eos_token_id"]
    assert (
        LocalGenerator(str(files.sft_model)).chat([EXAMPLES.prompt[0]], Sampling(0.0, 1.0, 200), [0])[0].stop == "end"
    )


class Disconnect(Exception):
    pass


def cut_off_after(step):
    def show(log):
        if log.step.iloc[-1] == step:
            raise Disconnect

    return show


@pytest.mark.parametrize("settings", [SMALL, FULL], ids=["adapter", "full"])
def test_an_interrupted_training_ends_with_the_same_weights(settings, tiny_student, tmp_path):
    settings = replace(settings, held_out_share=0.2)

    def train(name, **upkeep):
        kept = {"upkeep": MonitorSettings(**upkeep)} if upkeep else {}
        place, adapter = tmp_path / name / "model", tmp_path / name / "adapter"
        return train_sft(EXAMPLES, tiny_student, place, adapter=adapter, sft=settings, seed=3, **kept)

    whole = train("whole")
    drive = {"checkpoint_folder": tmp_path / "drive", "checkpoint_every": 2}
    with pytest.raises(Disconnect):
        train("cut", **drive, show=cut_off_after(3))
    steps = []
    resumed = train("cut", **drive, show=lambda log: steps.append(int(log.step.iloc[-1])))
    assert steps == [3, 4, 5, 6]
    pd.testing.assert_frame_equal(whole.log, resumed.log, atol=1e-4, rtol=1e-4)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.allclose(one[k].float(), two[k].float(), atol=1e-4) for k in one)
    assert not list((tmp_path / "drive").iterdir())
    again = train("cut", **drive, show=lambda log: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(again.log, resumed.log, check_dtype=False)


def test_a_merge_that_was_cut_off_is_made_again_without_training(trained, tiny_student, monkeypatch):
    files, result = trained
    letters, _ = sft_examples(CHAINS, "letters")
    (files.sft_model / "training.parquet").unlink()  # written last
    monkeypatch.setattr(sft, "_train", lambda *_: pytest.fail("trained again"))
    settings = replace(SMALL, epochs=8, held_out_share=0.2)
    again = train_sft(letters, tiny_student, files.sft_model, adapter=files.sft_adapter, sft=settings, seed=0)
    pd.testing.assert_frame_equal(again.log, result.log, check_dtype=False)
    assert again.merged == result.merged != ""


def test_cards_say_what_was_taught_and_merge_checks_with_the_runs_chains(trained, tiny_student, tmp_path):
    files, result = trained
    facts = {"base": tiny_student, "targets": "letters", "n_examples": result.examples, "merged": result.merged}
    facts |= {"settings": {"epochs": 8}, "sources": ["clinic"]}
    model, adapter = (write_sft_card(f, result.log, **facts).read_text() for f in (files.sft_model, files.sft_adapter))
    assert "library_name: transformers" in model and "with a LoRA adapter merged in" in model
    assert f"Check of the merge: {result.merged}." in model
    assert "library_name: peft" in adapter and "A LoRA adapter (rank 64" in adapter and "merged" not in adapter
    for card in (model, adapter):
        assert "fine-tuned on gold letters" in card and "This is a control of that method" in card
        assert "24 examples" in card and "| epochs | 8 |" in card and "| questions: clinic | Apache-2.0 |" in card
        assert "Held-out questions: loss" in card
    write_table(files.chains, CHAINS, TAUGHT)
    place, examples = find_adapter(files.sft_adapter)
    assert place == files.sft_adapter and examples.question_id.tolist() == CHAINS.question_id.tolist()
    assert merge_adapter(place, tmp_path / "merged", examples=examples).same >= 0.98


def test_controls_have_as_many_examples_and_the_same_questions():
    chains, left = sft_examples(CHAINS, n=10, seed=1)
    letters, _ = sft_examples(CHAINS, "letters", n=10, seed=1)
    assert left == {"low_pass": 2} and not left.faults
    assert chains.question_id.tolist() == letters.question_id.tolist() and len(chains) == 10
    gold = CHAINS.set_index("question_id").gold
    assert [c[0]["content"] for c in letters.completion] == [f"Answer: {gold[q]}" for q in letters.question_id]
    assert len(sft_examples(CHAINS)[0]) == 24
    with pytest.raises(MedReflError, match="n_examples is 25, expected at most the 24 kept chains"):
        sft_examples(CHAINS, n=25)
    with pytest.raises(MedReflError, match="chains: none of 26 is kept"):
        sft_examples(CHAINS.assign(kept=False))
    with pytest.raises(MedReflError, match="targets is 'none', expected one of chains, letters, own"):
        sft_examples(CHAINS, "none")


def test_own_chains_are_right_paths_spread_over_the_questions():
    asked = clinic.make_exam(3, seed=2)
    leaf = {"kind": "leaf", "stop": "answer", "weight": 1, "n_tokens": 1}
    rows = []
    for number, question in enumerate(asked):
        rows.append({"question_id": question.question_id, "node_id": 0, "parent_id": None, "kind": "root", "text": ""})
        rows.append(
            {"question_id": question.question_id, "node_id": 1, "parent_id": 0, "kind": "step", "text": "Step 1: a.\n"}
        )
        for node, (text, outcome) in enumerate([("x", 1), ("y", 1), ("y", 1), ("z", -1)][: 4 if number else 1], 2):
            text = f"Step 2: {text}.\nAnswer: {question.gold}\n"
            rows.append(
                {"question_id": question.question_id, "node_id": node, "parent_id": 1, "text": text, "outcome": outcome}
                | leaf
            )
    steps = pd.DataFrame(rows, columns=STEPS.names)
    own = (steps, questions_table(asked))
    drawn, _ = sft_examples(CHAINS, "own", n=3, seed=0, own=own)
    assert sorted(drawn.question_id) == sorted(q.question_id for q in asked)
    every, _ = sft_examples(CHAINS, "own", n=5, seed=0, own=own)
    assert every.question_id.value_counts().tolist() == [2, 2, 1]
    texts = {(row.question_id, row.completion[0]["content"]) for row in every.itertuples()}
    assert len(texts) == 5 and not any("z." in text for _, text in texts)
    assert all(text.startswith("Step 1: a.\nStep 2: ") and text.endswith(tuple("ABCDE")) for _, text in texts)
    assert every.prompt[0] == prompts.exam(next(q for q in asked if q.question_id == every.question_id[0]))
    with pytest.raises(MedReflError, match="own chains: the trees have 5 distinct right paths, expected 24"):
        sft_examples(CHAINS, "own", own=own)
    with pytest.raises(MedReflError, match="set own_run to its folder"):
        sft_examples(CHAINS, "own")


@pytest.mark.parametrize("name", ["lora_rank", "learning_rate", "epochs", "batch_size", "max_length"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(MedReflError, match=f"training: {name} is 0, expected above 0"):
        SftSettings(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_share": 1.0}, "warmup_share is 1.0, expected a share from 0 to below 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, expected at least 0"),
        ({"held_out_share": 1.0}, "held_out_share is 1.0, expected a share"),
        ({"full_finetuning": True}, "4-bit weights cannot be trained; set quantization to none"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(MedReflError, match=message):
        SftSettings(**settings)


def test_the_defaults_are_published():
    found = SftSettings()
    assert (found.learning_rate, found.warmup_share, found.weight_decay, found.epochs) == (5e-6, 0.05, 0.1, 3)
    assert found.batch_size * found.gradient_accumulation == 128 and found.max_length == 8192
    arguments = sft.training_arguments(
        sft.SFTConfig, Path("x"), replace(found, quantization="none"), EfficiencySettings(), run_name="x", seed=0,
        steps=10, upkeep=MonitorSettings(), evaluate=False, weight_decay=found.weight_decay, warmup_steps=1,
    )  # fmt: skip
    assert arguments.lr_scheduler_type == "cosine" and arguments.weight_decay == 0.1 and not arguments.packing
    assert arguments.max_length is None and arguments.loss_type == "nll"
    assert arguments.max_grad_norm == 1.0 and arguments.warmup_steps == 1


def make_log(n=40, **columns):
    held_out = [math.nan] * n
    log = {
        "step": range(1, n + 1),
        "loss": [2.0 - 0.02 * i for i in range(n)],
        "grad_norm": 1.0,
        "held_out_loss": held_out,
    }
    return pd.DataFrame(log | columns)


def test_findings_of_a_fine_tuning():
    def kinds(log, **settings):
        return [finding.kind for finding in check_sft_log(log, **settings)]

    assert [kinds(make_log(n)) for n in (0, 1, 29, 40)] == [[]] * 4
    assert kinds(make_log(3, loss=[1.0, 1.0, math.inf])) == ["not_finite"]
    assert kinds(make_log(3, grad_norm=math.nan)) == ["not_finite"]
    flat = [2.0] * PATIENCE
    assert kinds(make_log(PATIENCE, loss=flat)) == ["flat_loss"] and not kinds(
        make_log(PATIENCE, loss=flat), warmup_steps=3
    )
    # By hand: 5% above the lowest is 1.05.
    for last, expected in ((1.04, []), (1.06, ["overfitting"])):
        asked = [math.nan, 1.2, math.nan, 1.0, math.nan, last]
        assert kinds(make_log(6, held_out_loss=asked)) == expected
    [finding] = check_sft_log(make_log(6, held_out_loss=[math.nan, 1.2, math.nan, 1.0, math.nan, 1.5]))
    assert finding.line.startswith("the held-out loss rose from 1.000 at step 4 to 1.500") and finding.step == 6
    assert set(SFT_KINDS) == {"not_finite", "flat_loss", "overfitting"}


def test_a_training_that_breaks_is_stopped(tiny_student, tmp_path):
    with pytest.raises(MedReflError, match=r"training: stopped at step \d+: the loss is (nan|inf)"):
        train_sft(
            EXAMPLES,
            tiny_student,
            tmp_path / "m",
            adapter=tmp_path / "a",
            sft=replace(FULL, learning_rate=1e30),
            seed=0,
        )
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_the_log_is_a_table_that_a_stage_can_hand_on(trained, tmp_path):
    _, result = trained
    write_table(tmp_path / "sft_training.parquet", result.log, SFT_TRAINING)
    assert read_table(tmp_path / "sft_training.parquet", SFT_TRAINING).equals(result.log.astype({"step": "int32"}))
