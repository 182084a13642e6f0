"""Measure DPO of a 54M Llama as whole jobs, each in its own process: ours beside TRL's defaults and LLaMA-Factory.

All jobs share the base (random weights, bf16), the pairs, the LoRA (rank 64, all linear layers), the effective batch
size and the learning rate. Time runs from the loaded library to the saved adapter and includes the reference's forward
pass. Memory is the peak of the process. The jobs alternate ROUNDS times, and the best of each counts. On a machine that
others use, set MEDREFL_BENCH_CLOCK=cpu: processor time depends little on their load.

LLaMA-Factory runs only if MEDREFL_LLAMAFACTORY names a Python that has it. Give it its own venv, because it pins other
versions. With a CPU build of torch, uninstall torchvision there and put an empty package torchaudio on its path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.measure import Measurement

PAIRS, BATCH = 64, 16
ROUNDS = int(os.environ.get("MEDREFL_BENCH_ROUNDS", "2"))
WORDS = 4000
LEARNING_RATE = 1e-4
# Lowest and highest number of tokens of the prompt, of the beginning that both responses share, and of the rest of each
# response. A word is 1.3 tokens; responses have 210 to 400 words. A reasoning pair shares its question. A reflection
# pair also shares the steps up to its error, here half of a response (post-reasoning: the whole wrong path).
SHAPES = {"reasoning": ((150, 250), (0, 8), (273, 520)), "reflection": ((150, 250), (140, 260), (133, 260))}

_JOB = """
import importlib, json, sys
from pathlib import Path
module, name, folder, out = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
print("RESULT", json.dumps(importlib.import_module(module).job(name, folder, out)))
"""


class Clock:
    """Wall time and processor time since the clock was made, which is after the libraries are loaded."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, object]:
        """Return {"seconds": wall time, "cpu": processor time}."""
        return {"seconds": time.perf_counter() - self.started[0], "cpu": time.process_time() - self.started[1]}


def main() -> Iterator[Measurement]:
    """Yield time and peak memory beside both libraries per kind of pair; then a second seed with the kept reference."""
    factory = os.environ.get("MEDREFL_LLAMAFACTORY", "")
    clock = os.environ.get("MEDREFL_BENCH_CLOCK", "seconds")
    with tempfile.TemporaryDirectory() as place:
        for kind in SHAPES:
            folder = write_inputs(Path(place) / kind, kind)
            jobs = {"ours": sys.executable, "trl": sys.executable} | ({"factory": factory} if factory else {})
            runs = {name: [] for name in [*jobs, "again"]}
            for turn in range(ROUNDS):
                for name, python in jobs.items():
                    out = folder / f"{name}{turn}"
                    runs[name].append(alone(name, python, folder, out))
                runs["again"].append(alone("again", sys.executable, folder, folder / f"ours{turn}"))
            best = {name: min(results, key=lambda r: r[clock]) for name, results in runs.items()}
            details = {"runs": runs, "pairs": PAIRS, "shape": SHAPES[kind], "clock": clock, "load": os.getloadavg()}
            # The libraries shuffle in different orders, so only the mean loss of the whole job must agree.
            means = {name: float(np.mean(result["losses"])) for name, result in best.items() if result["losses"]}
            details |= {"mean_losses": means}
            if max(means.values()) - min(means.values()) > 0.02:
                raise AssertionError(f"the jobs did not train the same: mean losses {means}")
            goal = {"reasoning": 1.25, "reflection": 1.6}[kind]
            yield Measurement(f"{kind}, TRL", best["ours"][clock], best["trl"][clock], goal, details=details)
            peaks = {name: min(r["gib"] for r in results) for name, results in runs.items()}
            yield Measurement(f"{kind}, TRL, memory", peaks["ours"], peaks["trl"], 1, "GiB")
            if factory:
                yield Measurement(f"{kind}, LLaMA-Factory", best["ours"][clock], best["factory"][clock], 1)
                yield Measurement(f"{kind}, LLaMA-Factory, memory", peaks["ours"], peaks["factory"], 1, "GiB")
            yield Measurement(f"{kind}, second seed", best["again"][clock], best["ours"][clock], 1.3)


def write_inputs(folder: Path, kind: str, pairs: int = PAIRS) -> Path:
    """Write the base, its tokenizer and the pairs, and return their folder; every job reads the same files."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<user>", "<assistant>"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    template += "{% if add_generation_prompt %}<assistant> {% endif %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", chat_template=template
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=512, intermediate_size=1536, num_hidden_layers=16,
        num_attention_heads=8, num_key_value_heads=4, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    assert model.num_parameters() >= 50e6
    model.save_pretrained(folder / "base")
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, WORDS, rng.integers(low, high + 1)))

    with (folder / "pairs.jsonl").open("w") as file:
        for _ in range(pairs):
            prompt, shared = (text(*size) for size in SHAPES[kind][:2])
            sides = (f"{shared} {text(*SHAPES[kind][2])}".strip() for _ in range(2))
            file.write(json.dumps({"prompt": prompt, **dict(zip(("chosen", "rejected"), sides, strict=True))}) + "\n")
    return folder


def job(name: str, folder: Path, out: Path) -> dict[str, object]:
    """Run one of the jobs in this process, and return its seconds and losses."""
    if name == "again":  # another seed on the same pairs: the reference's log-probabilities are on disk already
        return ours(folder, out, seed=1)
    return {"ours": ours, "trl": trl}[name](folder, out)


def ours(
    folder: Path,
    out: Path,
    seed: int = 0,
    dpo: Mapping[str, Any] | None = None,
    economy: Mapping[str, Any] | None = None,
) -> dict[str, object]:
    """Run ``train_dpo`` with its defaults, except ``dpo`` and ``economy``: one pair per forward pass, bf16."""
    import pandas as pd

    from medrefl_utils.training import DpoSettings, EfficiencySettings, MonitorSettings, train_dpo

    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    pairs = pd.DataFrame(
        {
            "pair_id": [str(i) for i in range(len(rows))],
            "question_id": [str(i) for i in range(len(rows))],
            "kind": "bench",
            "prompt": [_turn("user", row["prompt"]) for row in rows],
            **{side: [_turn("assistant", row[side]) for row in rows] for side in ("chosen", "rejected")},
        }
    )
    given = {"batch_size": 1, "gradient_accumulation": BATCH} | dict(dpo or {})
    settings = DpoSettings(learning_rate=LEARNING_RATE, warmup_steps=0, quantization="none", **given)
    clock = Clock()
    log = train_dpo(
        pairs, str(folder / "base"), out / "adapter", dpo=settings, seed=seed,
        economy=EfficiencySettings(**({"compute_dtype": "bf16"} | dict(economy or {}))), 
        upkeep=MonitorSettings(references=out / "references"),
    )  # fmt: skip
    return clock.read() | {"losses": log["loss"].tolist()}


def trl(folder: Path, out: Path) -> dict[str, object]:
    """Run TRL's DPOTrainer with its defaults, except for the settings that all jobs share."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    data = Dataset.from_list([{name: _turn(role, row[name]) for name, role in roles.items()} for row in rows])
    clock = Clock()
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16),
        args=DPOConfig(
            output_dir=str(out), num_train_epochs=1, learning_rate=LEARNING_RATE, lr_scheduler_type="cosine",
            gradient_accumulation_steps=BATCH // DPOConfig.per_device_train_batch_size, max_length=5000,
            logging_steps=1, save_strategy="no", report_to="none", use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        peft_config=LoraConfig(r=64, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(out))
    return clock.read() | {"losses": [e["loss"] for e in trainer.state.log_history if "loss" in e]}


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


_FACTORY = """
import json, sys, time
start = time.perf_counter()
from llamafactory.train.tuner import run_exp
start, cpu = time.perf_counter(), time.process_time()
run_exp(json.loads(sys.argv[1]))
used = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
print("RESULT", json.dumps(used | {"losses": []}))
"""


def _factory_settings(folder: Path, out: Path) -> dict[str, object]:
    """Return the published YAML (Med-REFL's training configuration), for a CPU and with the batch size of all jobs."""
    sides = {"chosen": "chosen", "rejected": "rejected"}
    listed = {"pairs": {"file_name": "pairs.jsonl", "ranking": True, "columns": {"prompt": "prompt", **sides}}}
    (folder / "dataset_info.json").write_text(json.dumps(listed))
    return {
        "model_name_or_path": str(folder / "base"), "stage": "dpo", "do_train": True, "finetuning_type": "lora",
        "lora_rank": 64, "lora_alpha": 16, "lora_dropout": 0.0, "lora_target": "all", "pref_beta": 0.1,
        "pref_loss": "sigmoid", "dataset": "pairs", "dataset_dir": str(folder), "template": "default",
        "cutoff_len": 5000, "output_dir": str(out), "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": BATCH // 4,
        "learning_rate": LEARNING_RATE, "num_train_epochs": 1.0, "lr_scheduler_type": "cosine", "bf16": True,
        "use_cpu": True, "overwrite_output_dir": True,
    }  # fmt: skip


def alone(name: str, python: str, folder: Path, out: Path, module: str = __name__) -> dict[str, object]:
    """Run one job of ``module`` in its own process: seconds, losses and peak memory in GiB."""
    words = [python, "-c", _JOB, module, name, str(folder), str(out)]
    if name == "factory":
        words = [python, "-c", _FACTORY, json.dumps(_factory_settings(folder, out))]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        text = said.read()
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    if status or not lines:
        raise RuntimeError(f"{name} failed:\n{text[-2000:]}")
    result = json.loads(lines[-1].removeprefix("RESULT "))
    if name == "factory":
        log = (out / "trainer_log.jsonl").read_text().splitlines()
        result["losses"] = [row["loss"] for row in map(json.loads, log) if "loss" in row]
    return result | {"gib": usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)}
