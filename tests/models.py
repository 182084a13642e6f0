"""Model folders that tests write: a tiny Llama of random weights, and tokenizers with the templates of known models."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medrefl_utils.exam import clinic, prompts

LLAMA_31 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_25 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA_31_TOKENS = [f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "start_header_id", "end_header_id")]
LLAMA_31_TOKENS += ["<|eom_id|>", "<|eot_id|>"]
LLAMA_31_ENDS = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
# Special tokens; the tokenizer's own end; the generation config's ends (as published with each model).
STYLES = {
    "llama31": (LLAMA_31, LLAMA_31_TOKENS, "<|eot_id|>", LLAMA_31_ENDS),
    # The base model's tokenizer names another end; its template still closes a turn with <|eot_id|>.
    "llama31_base_eos": (LLAMA_31, LLAMA_31_TOKENS, "<|end_of_text|>", LLAMA_31_ENDS),
    "qwen25": (
        QWEN_25,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        ["<|im_end|>", "<|endoftext|>"],
    ),
}


def save_tokenizer(folder: Path, style: str, vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the clinic's own texts, with the template and special tokens of ``style``."""
    template, special, eos, _ = STYLES[style]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    texts = [c.question.stem + "\n" + "\n".join(clinic.solve(c)) for c in clinic.make_cases(60, seed=5)]
    bpe.train_from_iterator(texts, trainer)
    bos = "<|begin_of_text|>" if style.startswith("llama") else None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, bos_token=bos, chat_template=template)
    tokenizer.pad_token = "<|endoftext|>" if style == "qwen25" else "<|end_of_text|>"
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder: Path, style: str = "llama31", *, hidden: int = 32, layers: int = 2, **sizes: int) -> Path:
    """A Llama of random weights beside its tokenizer, in ``folder``."""
    tokenizer = save_tokenizer(folder, style)
    torch.manual_seed(0)
    options = {"intermediate_size": 3 * hidden, "num_attention_heads": 4, "num_key_value_heads": 2} | sizes
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(STYLES[style][3])
    GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    return folder


def save_adapter(folder: Path, model: str, *, std: float = 0.2) -> Path:
    """Write a LoRA adapter of rank 8 for ``model`` that changes much: its B is drawn, not zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model)
    tuned = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=std)
    tuned.save_pretrained(folder)
    return folder


def make_pairs(n: int, kind: str = "reasoning") -> list[dict]:
    """Pairs of the clinic's own chains: the true one against one that is made to end elsewhere.

    Of kind "reflection_mid" both sides begin with the same steps, which a reasoning pair's need not: its other side is
    a chain of another order.
    """
    rows = []
    for case in clinic.make_cases(n, seed=11):
        chain = clinic.solve(case)
        other = next(letter for letter in case.question.options if letter != case.question.gold)
        wrong = [*chain[:-1], f"Answer: {other}"] if kind != "reasoning" else [chain[0][::-1], f"Answer: {other}"]
        rows.append(
            {"pair_id": f"{kind}/{case.question.question_id}", "question_id": case.question.question_id, "kind": kind}
            | {"prompt": prompts.exam(case.question)}
            | {
                side: [{"role": "assistant", "content": "\n".join(text)}]
                for side, text in (("chosen", chain), ("rejected", wrong))
            }
        )
    return rows
