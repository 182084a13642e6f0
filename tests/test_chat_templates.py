"""Chat templates as published models have them: every prompt holds its question, and the same date all run long."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from pathlib import Path

import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.models import (
    TokenCounter,
    load_tokenizer,
    open_thinking,
    prompt_date,
    render_prompt,
    thinking_is_open,
)

PROMPT = [{"role": "user", "content": "Which drug?\n\nA. Aspirin\nB. Heparin"}]
PARTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Strings and parts both, as Llama 3.2 Vision and Gemma 3 write them.
EITHER = (
    "{% for message in messages %}[{{ message.role }}] {% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}<part>{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</s>{% endfor %}"
)
THINKS = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>%s{% endif %}"
)
# Llama 3.2's own lines.
DATED = (
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date_string = '26 Jul 2024' %}{%- endif %}\n"
    "{{- 'Today Date: ' + date_string + '\n\n' }}{% for message in messages %}{{ message.content }}{% endfor %}"
)


@pytest.fixture
def folder(tiny_student, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_student, tmp_path / "model"))


@pytest.fixture
def with_template(folder):
    def load(template: str):
        (folder / "chat_template.jinja").write_text(template)
        return load_tokenizer(str(folder))

    return load


@pytest.fixture(autouse=True)
def no_date(monkeypatch):
    monkeypatch.delenv("MEDREFL_RUN_DATE", raising=False)


def test_a_template_that_wants_parts_gets_them(with_template):
    tokenizer = with_template(PARTS)
    # As a string the template loses the question in silence.
    lost = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    assert lost == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    expected = f"<|im_start|>user\n{PROMPT[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(tokenizer, PROMPT) == expected
    assert TokenCounter(tokenizer).prompts([PROMPT]) == [len(tokenizer(expected, add_special_tokens=False).input_ids)]
    assert render_prompt(tokenizer, PROMPT, add_generation_prompt=False) == expected.removesuffix(
        "<|im_start|>assistant\n"
    )


def test_strings_stay_strings_where_a_template_takes_both(with_template):
    assert render_prompt(with_template(EITHER), PROMPT) == f"[user] {PROMPT[0]['content']}"


def test_a_template_that_refuses_the_system_role_works(with_template):
    assert render_prompt(with_template(NO_SYSTEM), PROMPT) == f"<user>{PROMPT[0]['content']}</s>"


@pytest.mark.parametrize(
    "template",
    ["A fixed text", "{% for m in messages %}{{ m.text }}{% endfor %}", "{{ messages[0].content[:20] }}"],
    ids=["none", "another-field", "cut"],
)
def test_a_template_that_drops_the_question_is_refused(with_template, template):
    with pytest.raises(MedReflError, match=r"^model \S+: its chat template drops the text of the user's turn"):
        with_template(template)


def test_a_template_in_chat_template_json_is_used(folder):
    """Where processors of multimodal models keep it; transformers' tokenizers do not look there."""
    template = (folder / "chat_template.jinja").read_text()
    before = render_prompt(load_tokenizer(str(folder)), PROMPT)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    tokenizer = load_tokenizer(str(folder))
    assert render_prompt(tokenizer, PROMPT) == before
    tokenizer.save_pretrained(folder.parent / "saved")
    assert (folder.parent / "saved" / "chat_template.jinja").read_text() == template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{% if %}"}))
    with pytest.raises(MedReflError, match="its chat template is broken"):
        load_tokenizer(str(folder))
    (folder / "chat_template.json").write_text("{}")
    with pytest.raises(MedReflError, match="has no chat template"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("header", "marks"),
    [
        ("<think>\n", ("<think>", "</think>")),
        ("[THINK]", ("[THINK]", "[/THINK]")),
        ("<|begin_of_thought|>\n\n", ("<|begin_of_thought|>", "<|end_of_thought|>")),
        ("<seed:think>", ("<seed:think>", "</seed:think>")),
        ("<thinking>\n", ("<thinking>", "</thinking>")),
        ("<unused94>thought\n", ("<unused94>", "<unused95>")),
        (
            "<|channel|>analysis<|message|>",
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ),
        ("<|channel|>analysis<|message|><|end|><|start|>assistant", None),
        ("<think>\n\n</think>\n\n", None),
        ("", None),
    ],
)
def test_a_prompt_that_ends_inside_a_thinking_block_is_known(with_template, header, marks):
    # A system text that explains the marks opens nothing.
    tokenizer = with_template("Think inside <think> marks. " + THINKS.replace("%s", header))
    assert open_thinking(tokenizer) == marks
    assert thinking_is_open(tokenizer) is (marks is not None)


def test_a_template_writes_the_date_of_the_run(with_template, monkeypatch):
    tokenizer = with_template(DATED)
    monkeypatch.setenv("MEDREFL_RUN_DATE", "2026-03-09")
    expected = f"Today Date: 09 Mar 2026\n\n{PROMPT[0]['content']}"
    assert render_prompt(tokenizer, PROMPT) == expected
    monkeypatch.setenv("MEDREFL_RUN_DATE", "2026-03-10")
    assert render_prompt(tokenizer, PROMPT).startswith("Today Date: 10 Mar 2026\n")
    assert "strftime_now('%d %b %Y')" in tokenizer.chat_template  # what is saved beside an adapter keeps its clock
    monkeypatch.setenv("MEDREFL_RUN_DATE", "yesterday")
    with pytest.raises(MedReflError, match="MEDREFL_RUN_DATE is 'yesterday', expected a date such as 2026-01-31"):
        render_prompt(tokenizer, PROMPT)


def test_the_first_prompt_fixes_the_date_for_the_process_and_its_children(with_template, monkeypatch):
    tokenizer = with_template(DATED)
    today = datetime.date.today()
    first = render_prompt(tokenizer, PROMPT)
    assert first.startswith(f"Today Date: {today:%d %b %Y}\n")
    assert os.environ["MEDREFL_RUN_DATE"] == today.isoformat() == prompt_date().isoformat()

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return today + datetime.timedelta(days=1)

    monkeypatch.setattr("medrefl_utils.models.chat_templates.date", Tomorrow)
    assert render_prompt(tokenizer, PROMPT) == first


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%A, %d %B %Y", "%-d %b %y", "%d/%m/%Y %H:%M"])
def test_every_usual_format_is_that_of_strftime(with_template, form, monkeypatch):
    monkeypatch.setenv("MEDREFL_RUN_DATE", "2026-03-09")
    template = "  \n{% set form = '" + form + "' %}{{ strftime_now(form) }}\n{{ messages[0].content }}"
    written = datetime.datetime(2026, 3, 9).strftime(form)
    assert render_prompt(with_template(template), PROMPT) == f"  \n{written}\n{PROMPT[0]['content']}"


def test_a_fixed_date_changes_nothing_else_of_a_template(with_template):
    """White space before the first tag and behind it, which Jinja's options drop, stays as transformers renders it."""
    for start in ("", "\n", "  ", "  \n", "text\n"):
        plain = start + "{% if true %}\n  {{ messages[0].content }}\n{% endif %}\n"
        dated = plain + "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
        tokenizer = with_template(dated)
        assert render_prompt(tokenizer, PROMPT) == tokenizer.apply_chat_template(PROMPT, tokenize=False)
