"""Train the tiny student: a small Llama, from scratch on the clinic, that runs every stage on a CPU.

Its teacher makes two kinds of error, each with its own size: slips (eliminations that the stem refutes) and beliefs
(relations that are taught wrong). So the student's trees have right and wrong leaves. In about half of its chains the
teacher reconsiders a step, and its reflections are effective, astray or fake. The student also learns the other roles
of the chain: write a reflection, judge a chain, and guess at questions from outside the clinic, so that real exams run
through the chain. The result is an ordinary model folder.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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
    """The teacher's errors and reflections, and the mix of the student's lessons.

    A slip can be mended by a second look, so the teacher's doubt follows it. Of a relation the teacher knows no better
    than it said: it doubts a wrong one as rarely as a right one, and keeps it as often. All values are ours.
    """

    slip: float = 0.12
    """probability that one elimination is wrong"""
    misled: float = 0.6
    """probability that a misconception is taught instead of the truth"""
    share_misled: float = 0.45
    """share of the relations that have a misconception"""
    doubts_false: float = 0.4
    """probability of a reflection right after the first false step, if that step is a slip"""
    doubts_true: float = 0.08
    """probability of a reflection right after another step, up to the first false one"""
    doubts_end: float = 0.2
    """probability of a reflection after a finished chain that has none so far"""
    effective: float = 0.4
    """share of the reflections on a slip that go on with the true step"""
    fake: float = 0.35
    """share of the reflections on a slip that affirm it; the others go astray, to another false step"""
    affirms: float = 0.65
    """share of the reflections on another step that affirm it; the others leave it"""
    writes: float = 0.1
    """share of lessons in writing a reflection"""
    affirmations: float = 0.3
    """share of these in writing one that keeps a step"""
    judges: float = 0.05
    """share of lessons in judging a chain"""
    foreign: float = 0.05
    """share of questions from outside the clinic, long and short, on which the student learns to guess"""
    other_sizes: float = 0.15
    """share of questions with 2 to 10 options; the others have 4 or 5, as the exam has"""


Lesson = tuple[Messages, str]
"""A prompt, and the text that the student should write."""


def lessons(n: int, seed: int, how: Lessons) -> Iterator[Lesson]:
    """Yield ``n`` lessons, from the clinic's training split and from outside the clinic."""
    rng = random.Random(f"lessons {seed}")
    teacher = _Teacher(how, clinic.misconceptions(share=how.share_misled), rng)
    for i in range(n):
        sizes = range(2, 11) if rng.random() < how.other_sizes else (4, 5)
        [case] = clinic.make_cases(1, seed, "train", i, sizes)
        case = clinic.foreign_case(rng) if rng.random() < how.foreign else case
        draw = rng.random()
        if draw < how.judges:
            chain = teacher.chain(case)
            yield prompts.judge(case.question, chain), _verdict(case, chain)
        elif draw < how.judges + how.writes:
            if rng.random() < how.affirmations:
                public, kept, text = teacher.affirmation(case)
                yield prompts.affirmation(case.question, public, kept), text
            else:
                public, wrong, right, text = teacher.correction(case)
                yield prompts.reflection(case.question, public, wrong, right), text
        else:
            yield prompts.exam(case.question), "\n".join(teacher.chain(case))


class _Teacher:
    """Solves cases with errors, reconsiders some of its steps, and writes reflections."""

    def __init__(self, how: Lessons, beliefs: dict[tuple[str, str], str], rng: random.Random) -> None:
        self.how, self.beliefs, self.rng = how, beliefs, rng
        self.errs = dict(slip=how.slip, misled=how.misled, beliefs=beliefs)

    def chain(self, case: clinic.Case, before: Sequence[str] = ()) -> list[str]:
        """Return a chain that goes on after the steps ``before``, with one reflection or none."""
        if case.kind == "foreign":
            return self._guess(case)
        how, rng = self.how, self.rng
        tried = clinic.solve(case, rng, before=before, **self.errs)
        erred = _first_false(case, list(before)) is not None
        for at in range(len(before), len(tried) - 2):
            if erred:  # a chain that follows from an error is in doubt at its end only
                break
            kind = clinic.error_kind(case, tried[:at], tried[at])
            if rng.random() < (how.doubts_false if kind == "slip" else how.doubts_true):
                return self._reconsider(case, tried, at, at + 1)
            erred = kind is not None
        if rng.random() >= how.doubts_end:
            return tried
        first = _first_false(case, tried)
        return self._reconsider(case, tried, rng.randrange(len(tried) - 2) if first is None else first, len(tried))

    def correction(self, case: clinic.Case) -> tuple[list[str], list[str], list[str], str]:
        """Return public, wrong and replacing steps, as the corrections of a tree have them, and a reflection on them.

        Wrong steps end at the first false one, or with the answer. The reflection denies the first false step of the
        wrong ones, and claims the first of those that replace them.
        """
        if case.kind == "foreign":
            wrong, right = self._guesses(case)
            at = _first_difference(wrong, right)
            return wrong[:at], wrong[at:], right[at:], clinic.reflect(wrong[at], right[at])
        rng = self.rng
        said = other = None
        while said is None or other is None:
            plan = clinic.solve(case, rng, misled=self.how.misled, beliefs=self.beliefs)
            first = _first_false(case, plan)
            at = rng.randrange(len(plan) - 2 if first is None else first + 1)  # a tree's paths part at any step
            public, said = plan[:at], plan[at]
            if rng.random() < 0.6:
                said = self._another(case, public, said, right=False)
            other = said and self._another(case, public, said, right=rng.random() < 0.6)
        path = self.chain(case, [*public, said])
        # A reflection in the wrong path may already have led to the replacing step, which is not denied then.
        false = (i for i in range(at, len(path)) if clinic.error_kind(case, path[:i], path[i]) and path[i] != other)
        denied = next(false, at)
        end = rng.choice((denied + 1, len(path)))
        right = self.chain(case, [*public, other])
        return public, path[at:end], right[at:], clinic.reflect(path[denied], other)

    def affirmation(self, case: clinic.Case) -> tuple[list[str], list[str], str]:
        """Return public steps, the steps that are kept, and a reflection that affirms one of them, true or not.

        One step is kept, or a whole path: then its first false step, if it has one, is affirmed.
        """
        path = self._guesses(case)[0] if case.kind == "foreign" else self.chain(case)
        steps = [i for i, step in enumerate(path) if not step.startswith(("Wait, ", "Answer: "))]
        at = self.rng.choice(steps[:-1])  # the last one is the check of the options, or a guess
        if self.rng.random() < 0.5:
            return path[:at], [path[at]], clinic.affirm(path[at])
        false = None if case.kind == "foreign" else _first_false(case, path)
        return [], path, clinic.affirm(path[at if false is None else false])

    def _reconsider(self, case: clinic.Case, tried: list[str], at: int, end: int) -> list[str]:
        """Return the chain up to ``end``, a reflection on its step ``at``, and what follows from it."""
        how, draw = self.how, self.rng.random()
        before, said = tried[:at], tried[at]
        if clinic.error_kind(case, before, said) == "slip":
            right, affirms = draw < how.effective, how.effective <= draw < how.effective + how.fake
        else:  # a relation is left for its other side, which may be the true one; a true elimination for a slip
            right, affirms = clinic.is_true(case, before, said) is False, draw < how.affirms
        other = None if affirms else self._another(case, before, said, right=right)
        if other is None:
            return [*tried[:end], clinic.affirm(said), *(tried[end:] or tried[-1:])]
        again = clinic.solve(case, self.rng, before=[*before, other], **self.errs)
        return [*tried[:end], clinic.reflect(said, other), *again[at:]]

    def _another(self, case: clinic.Case, before: list[str], said: str, *, right: bool) -> str | None:
        return clinic.another_step(case, before, said, self.rng, right=right, beliefs=self.beliefs)

    def _guess(self, case: clinic.Case) -> list[str]:
        """Return a guess at a foreign case, reconsidered as often as other finished chains."""
        guess, other = self._guesses(case)
        if self.rng.random() >= self.how.doubts_end:
            return guess
        at = _first_difference(guess, other)
        if self.rng.random() < self.how.affirms:
            return [*guess, clinic.affirm(guess[at]), guess[-1]]
        return [*guess, clinic.reflect(guess[at], other[at]), *other[at:]]

    def _guesses(self, case: clinic.Case) -> tuple[list[str], list[str]]:
        return clinic.solve(case, self.rng), clinic.solve(case, self.rng)


def _first_false(case: clinic.Case, chain: list[str]) -> int | None:
    """Return the index of the first slip or false relation, or None."""
    return next((i for i, step in enumerate(chain) if clinic.error_kind(case, chain[:i], step)), None)


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


def load(folder: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return model and tokenizer of a student's folder, to go on training it."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


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
    # Without AVX-512 a processor has no fast products in bf16.
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability().startswith("AVX512")):
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        logits = model.lm_head(hidden[written[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][written[:, 1:]])
