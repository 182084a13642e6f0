"""Check what a card could get wrong, on the tiny student: each check gives a deviation and the most that is allowed.

Where there is no card, the same checks hold the CPU's own types against fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import bitsandbytes
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from medrefl_utils.core import Continuation, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import Expansion, LocalGenerator, Prefix, device, load_model, load_tokenizer, loading
from medrefl_utils.training import (
    DpoSettings,
    EfficiencySettings,
    MonitorSettings,
    PairTrainer,
    SharedPrefixTrainer,
    tokenize_pairs,
    train_dpo,
)
from tests.benchmarks.bench_rollout import STUDENT
from tests.gpu.scale import Add, Deadline, Scale, clean_memory, on_card
from tests.models import make_pairs

# The deviation allowed in log-probabilities (their mean; of a written token the largest), by type.
LOGPROBS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
GRADIENTS = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0)
NF4 += (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
"""The 16 values of a 4-bit NormalFloat (QLoRA, appendix E)."""
BLOCK = 64


def types() -> list[torch.dtype]:
    """Return the types to check: bf16 only where the hardware has it."""
    if not on_card():
        return [torch.float32, torch.bfloat16]
    return [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_bf16_supported(False) else [])


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Let ``load_model`` compute in ``dtype``."""
    with mock.patch.object(loading, "compute_dtype", lambda: dtype):
        yield


def nf4_rounding() -> float:
    """Return the largest difference of a quantized matrix from the nearest NF4 values, found by hand."""
    torch.manual_seed(0)
    weights = torch.randn(256, 512)
    packed, state = bitsandbytes.functional.quantize_4bit(
        weights.to(device()), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
    )
    back = bitsandbytes.functional.dequantize_4bit(packed, state).float().cpu()
    blocks = weights.view(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = values[(blocks / largest)[..., None].sub(values).abs().argmin(-1)] * largest
    return (back - nearest.view_as(weights)).abs().max().item()


def student_prompts(n: int) -> list[list[int]]:
    """Return the token ids of ``n`` clinic questions."""
    tokenizer = load_tokenizer(STUDENT)
    texts = [
        tokenizer.apply_chat_template(prompts.exam(q), tokenize=False, add_generation_prompt=True)
        for q in clinic.make_exam(n, seed=3)
    ]
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def logprobs(dtype: torch.dtype, quantization: str) -> float:
    """Return the mean difference in the next token's log-probabilities from the CPU in 32 bit.

    In NF4 both sides compute with the same 4-bit weights: the CPU's are dequantized.
    """
    rows = student_prompts(4)
    here = load_model(STUDENT, quantization, dtype=dtype)
    there = load_model(STUDENT, quantization, dtype=torch.float32)
    if quantization == "nf4":
        there = there.dequantize(torch.float32)
    there, differences = there.float().cpu(), []
    with torch.inference_mode():
        for row in rows:
            ours = here(torch.tensor([row], device=here.device)).logits.float().log_softmax(-1).cpu()
            plain = there(torch.tensor([row])).logits.log_softmax(-1)
            likely = plain > plain.amax(-1, keepdim=True) - 5  # what sampling can draw; the rest is rounding
            differences.append((ours - plain)[likely].abs())
    return torch.cat(differences).mean().item()


def tree_decoder(dtype: torch.dtype, quantization: str) -> float:
    """Return by how much a token that our decoder wrote greedily falls short of the plain forward pass's best.

    0 where every token is the best one; a tie decided otherwise falls short by rounding only [log-probability].
    """
    with computing_in(dtype):
        generator = LocalGenerator(STUDENT, quantization=quantization, max_rows=6)
    written: list[tuple[Prefix, list[Continuation]]] = []

    def go_on(one: Expansion, rows: list[Continuation]) -> list[Expansion]:
        """Let the first of two equal steps go on, to a depth of four. The other one is a copy of its cache."""
        written.append((one.prefix, rows))
        ids, text = one.prefix.token_ids + rows[0].token_ids, one.prefix.text + rows[0].text
        if one.of == 4 or rows[0].stop != "boundary":
            return []
        return [Expansion(Prefix(one.prefix.messages, ids, text), one.seeds, one.of + 1)]

    first = [Expansion(Prefix(prompts.exam(question)), (1, 2), 1) for question in clinic.make_exam(4, seed=4)]
    generator.expand_onward(first, "line", Sampling(0.0, 1.0, 64), go_on)
    worst = 0.0
    with torch.inference_mode():
        for prefix, rows in written:
            prompt = [*generator.prompt_ids(prefix.messages), *prefix.token_ids]
            for row in rows:
                ids = torch.tensor([[*prompt, *row.token_ids]], device=generator.model.device)
                scores = generator.model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                written = scores.gather(1, ids[0, len(prompt) :, None])[:, 0]
                worst = max(worst, (scores.amax(-1) - written).max().item())
    return worst


def shared_prefix(dtype: torch.dtype) -> float:
    """Return the relative difference of the DPO gradients with the shared prefix read once from TRL's own."""
    tokenizer = load_tokenizer(STUDENT)
    pairs = pd.DataFrame(make_pairs(2) + make_pairs(3, "reflection_mid"))
    ids, _ = tokenize_pairs(pairs, tokenizer, end=tokenizer.eos_token_id, max_length=5000)
    data = Dataset.from_dict({name: ids[name].tolist() for name in ("prompt_ids", "chosen_ids", "rejected_ids")})
    gradients = []
    with tempfile.TemporaryDirectory() as out:
        for kind in (SharedPrefixTrainer, PairTrainer):
            torch.manual_seed(0)
            collator = {} if kind is SharedPrefixTrainer else {
                "data_collator": DataCollatorForPreference(tokenizer.pad_token_id)
            }  # fmt: skip
            trainer = kind(
                model=load_model(STUDENT, "none", dtype=torch.float32),
                args=DPOConfig(
                    output_dir=out, use_cpu=not on_card(), bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16,
                    report_to="none", max_length=None,
                ),
                train_dataset=data,
                processing_class=tokenizer,
                peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
                **collator,
            )  # fmt: skip
            for name, parameter in sorted(trainer.model.named_parameters()):
                if "lora_B" in name:
                    parameter.data.normal_(std=0.1)
            trainer.model.train()
            batch = trainer._prepare_inputs(trainer.data_collator(trainer.train_dataset.to_list()))
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            gradients.append({n: p.grad.float() for n, p in trainer.model.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    difference = sum((ours[name] - theirs[name]).square().sum() for name in theirs).sqrt()
    return (difference / sum(one.square().sum() for one in theirs.values()).sqrt()).item()


def resume(dtype: torch.dtype) -> float:
    """Return the largest difference between an adapter trained in one go and one trained with an interruption."""

    class Interrupted(Exception):
        pass

    def stop(log: pd.DataFrame) -> None:
        if len(log) == 2:
            raise Interrupted

    pairs = pd.DataFrame([row for i in range(4) for row in _renamed(make_pairs(2), i)])
    name = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    economy = EfficiencySettings(compute_dtype=name)
    dpo = DpoSettings(batch_size=2, gradient_accumulation=1, lora_rank=4, warmup_steps=1, learning_rate=1e-3)
    with tempfile.TemporaryDirectory() as folder:

        def train(out: str, show: Callable[[pd.DataFrame], object] | None = None) -> dict[str, torch.Tensor]:
            upkeep = MonitorSettings(checkpoint_folder=Path(folder) / out / "kept", checkpoint_every=1, show=show)
            train_dpo(pairs, STUDENT, Path(folder) / out / "adapter", dpo=dpo, seed=0, economy=economy, upkeep=upkeep)
            return load_file(Path(folder) / out / "adapter" / "adapter_model.safetensors")

        whole = train("whole")
        try:
            train("halves", stop)
        except Interrupted:
            pass
        else:
            raise RuntimeError("the training was not interrupted")
        halves = train("halves")
    return max((whole[key] - halves[key]).abs().max().item() for key in whole)


def _renamed(rows: list[dict], i: int) -> list[dict]:
    return [row | {"pair_id": f"{i} {row['pair_id']}", "question_id": f"{i} {row['question_id']}"} for row in rows]


def measure(scale: Scale, deadline: Deadline, add: Add) -> None:
    """Add a row per check: its deviation, the most allowed, and whether it holds; a check that raises does not hold."""
    half = types()[-1]
    checks: list[tuple[str, torch.dtype, float, Callable[[], float]]] = [
        ("NF4 values", torch.float32, 1e-6, nf4_rounding),
        *(("log-probabilities", d, LOGPROBS[d], lambda d=d: logprobs(d, "none")) for d in types()),
        ("log-probabilities, NF4", half, LOGPROBS[half], lambda: logprobs(half, "nf4")),
        *(("tree decoder", d, LOGPROBS[d], lambda d=d: tree_decoder(d, "none")) for d in types()),
        ("tree decoder, NF4", half, LOGPROBS[half], lambda: tree_decoder(half, "nf4")),
        *(("shared-prefix gradients", d, GRADIENTS[d], lambda d=d: shared_prefix(d)) for d in types()),
        # A card adds in another order in each run. On a CPU the test suite has the 32-bit type.
        *(("resumed adapter", d, 1e-4, lambda d=d: resume(d)) for d in types() if on_card()),
        *([] if on_card() else [("resumed adapter", half, 0.0, lambda: resume(half))]),
    ]
    for name, dtype, allowed, check in checks:
        clean_memory()
        row = {"case": name, "type": str(dtype).removeprefix("torch."), "allowed": allowed}
        if deadline.left() < 0:
            add(row | {"skipped": "no time left"})
            continue
        try:
            found = check()
            add(row | {"deviation": found, "ok": found <= allowed})
        except Exception as error:
            add(row | {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]})
