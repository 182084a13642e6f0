"""Train the tiny student: a small Llama, from scratch on the clinic, that runs every stage on a CPU.

Its teacher makes errors: some eliminations are wrong, and some relations are taught wrong more often than right, so
that the student's trees have right and wrong leaves. The student also learns the other roles of the chain: continue
from a given step, continue after a reflection, write a reflection, judge a chain, and guess at questions from outside
the clinic, so that real exams run through the chain. The result is an ordinary model folder.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import LETTERS
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.exam.prompts import Messages

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Lessons:
    """The teacher's error rates, and the mix of the student's lessons; the shares of the roles sum to at most 1."""

    slip: float = 0.12
    """probability that one elimination is wrong"""
    misled: float = 0.6
    """probability that a misconception is taught instead of the truth"""
    share_misled: float = 0.45
    """share of the relations that have a misconception"""
    reflected: float = 0.12
    """share of chains in which the teacher reflects on a step, and corrects it or not"""
    writes: float = 0.08
    """share of lessons in writing a reflection"""
    judges: float = 0.05
    """share of lessons in judging a chain"""
    foreign: float = 0.04
    """share of questions from outside the clinic, long and short, on which the student learns to guess"""


Lesson = tuple[Messages, str]
"""A prompt, and the text that the student should write."""


def lessons(n: int, seed: int, how: Lessons) -> Iterator[Lesson]:
    """Yield ``n`` lessons, from the clinic's training split and from outside the clinic."""
    rng = random.Random(f"lessons {seed}")
    beliefs = clinic.misconceptions(share=how.share_misled)
    for known in clinic.make_cases(n, seed, "train"):
        case = clinic.foreign_case(rng) if rng.random() < how.foreign else known
        truth = clinic.solve(case, rng)
        tried = clinic.solve(case, rng, slip=how.slip, misled=how.misled, beliefs=beliefs)
        draw = rng.random()
        if draw < how.judges:
            yield prompts.judge(case.question, tried), _verdict(case, tried)
        elif draw < how.judges + how.writes:
            wrong = clinic.solve(case, rng, slip=0.5, misled=1.0, beliefs=beliefs)
            k = _first_difference(wrong, truth)
            yield prompts.reflection(case.question, truth[:k], wrong[k:], truth[k:]), clinic.reflect(wrong[k], truth[k])
        elif draw < how.judges + how.writes + how.reflected:
            again = clinic.solve(case, rng, slip=how.slip, misled=how.misled, beliefs=beliefs)
            k = _first_difference(tried, again)
            end = rng.choice((k + 1, len(tried)))  # reflects right after the wrong step, or after the whole chain
            chain = [*tried[:end], clinic.reflect(tried[k], again[k]), *again[k:]]
            yield prompts.exam(case.question), "\n".join(chain)
        else:
            yield prompts.exam(case.question), "\n".join(tried)


def _first_difference(a: list[str], b: list[str]) -> int:
    """Return the index of the first step that differs; that of the last common step where none differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)) - 1)


def _verdict(case: clinic.Case, chain: list[str]) -> str:
    false = sum(clinic.is_true(case, chain[:i], step) is False for i, step in enumerate(chain))
    unsound = sum(
        clinic.is_true(case, chain[:i], step) is False
        for i, step in enumerate(chain)
        if "leaves" in step or "fits" in step
    )
    return f"Correctness: {max(1, 5 - false)}\nLogic: {max(1, 5 - 2 * unsound)}"


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a chat template; the byte level lets it encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # An option's letter, "A.", is one token in every context, so that so small a model can find the option's text.
    tokenizer.add_tokens([AddedToken(f"{letter}.", normalized=False) for letter in LETTERS[:10]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def new_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, kv_heads: int, seed: int
) -> LlamaForCausalLM:
    """Return a Llama of random weights with the tokenizer's vocabulary size."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    taught: list[Lesson],
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> pd.DataFrame:
    """Train for one epoch on the lessons, in a seeded order, with the loss on the student's own text only.

    Returns one row per optimizer step: ``step`` and ``loss`` (nats per token).
    """
    rows = [_encode(tokenizer, lesson) for lesson in taught]
    batches = _batches(rows, batch_size, random.Random(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, len(batches) // 20), len(batches))
    log = []
    model.train()
    bar = tqdm(batches, desc="tiny student", unit="step")
    for step, batch in enumerate(bar, 1):
        loss = _loss(model, *_collate(batch, tokenizer.pad_token_id))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log.append({"step": step, "loss": loss.item()})
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return pd.DataFrame(log)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary model folder: 16-bit safetensors, config, tokenizer and chat template.

    Raises:
        MedReflError: the folder holds files, but no model.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise MedReflError(f"{folder}: holds files but no model, so nothing is overwritten there; name another folder")
    model.eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


_Encoded = tuple[list[int], int]
"""The token ids of a lesson, and the number of them that belong to the prompt."""


def _encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> _Encoded:
    messages, text = lesson
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    head = tokenizer(prompt, add_special_tokens=False).input_ids
    tail = tokenizer(text + tokenizer.eos_token, add_special_tokens=False).input_ids
    return head + tail, len(head)


def _batches(rows: list[_Encoded], batch_size: int, rng: random.Random) -> list[list[_Encoded]]:
    """Return batches of rows of similar length, in random order: little padding, and no order by length."""
    rng.shuffle(rows)
    batches = []
    for start in range(0, len(rows), 16 * batch_size):
        block = sorted(rows[start : start + 16 * batch_size], key=lambda row: len(row[0]))
        batches += [block[i : i + batch_size] for i in range(0, len(block), batch_size)]
    rng.shuffle(batches)
    return batches


def _collate(batch: list[_Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded token ids and the mask of the student's own tokens, both [batch, width]."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch])
    written = torch.tensor([[n <= i < len(row) for i in range(width)] for row, n in batch])
    return ids, written


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the written tokens.

    Logits are computed for these tokens only, which halves a small model's cost. Padding is on the right, where causal
    attention does not look, so there is no attention mask.
    """
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        logits = model.lm_head(hidden[written[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][written[:, 1:]])
