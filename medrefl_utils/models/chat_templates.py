"""Render chat messages through a model's chat template, so that every prompt holds its question.

``render_prompt`` is the one place that calls a template. It covers what differs between published templates: content
as a string or as a list of parts, a template that writes today's date, and a generation prompt that opens a thinking
block. Every prompt of this project ends with a user's turn and has no system turn, so a template that refuses the
system role needs no special case.

The date that a template writes comes from the environment variable ``MEDREFL_RUN_DATE`` (YYYY-MM-DD). Without the
variable it is the date of the first prompt of this process, which the variable then holds, so that child processes
and prompts after midnight see the same date. A run records the date and sets the variable again when it resumes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import date, datetime, time
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.exam.answers.thinking import open_mark
from medrefl_utils.exam.prompts import Messages

DATE_VARIABLE = "MEDREFL_RUN_DATE"

_END_OF_MESSAGE = "<|end|>"
_SENTINEL = ("MEDREFL sentinel question", "A. MEDREFL sentinel option")
# What strftime formats; the time of day is midnight, since a run's prompts must not change within the day.
_FORMATS = ("-d", "-m", "-H", "-I", "-M", "-j", "-y", *"aAbBcdDeFGHIjmMpSTuUVwWxXyY")
_AS_PARTS: dict[str, bool] = {}
"""Template text -> whether it wants content as a list of parts; found once per template."""


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool = True) -> str:
    """Return the text of ``messages`` in the tokenizer's chat template.

    Args:
        tokenizer: from ``load_tokenizer``, which has checked its template.
        messages: turns with ``role`` and a string as ``content``.
        add_generation_prompt: end with the header of the assistant's turn.

    Raises:
        MedReflError: ``MEDREFL_RUN_DATE`` holds no date.
        jinja2.TemplateError: the template refuses the messages.
    """
    template = tokenizer.get_chat_template()
    if template not in _AS_PARTS:
        _AS_PARTS[template] = _wants_parts(tokenizer, template)
    return _render(tokenizer, template, messages, _AS_PARTS[template], add_generation_prompt)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[list[int]]:
    """Return the token ids of each prompt, with the header of the assistant's turn.

    Prompts that are one object, as siblings in a tree share theirs, are rendered once.
    """
    texts = {id(messages): render_prompt(tokenizer, messages) for messages in {id(m): m for m in prompts}.values()}
    ids = {name: tokenizer(text, add_special_tokens=False).input_ids for name, text in texts.items()}
    return [ids[id(messages)] for messages in prompts]


def template_fault(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what is wrong with the tokenizer's chat template; None where a prompt renders and holds its question."""
    try:
        text = render_prompt(tokenizer, _sentinel_prompt())
    except (TemplateError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"its chat template fails: {reason}"
    if not _holds_sentinel(text):
        return "its chat template drops the text of the user's turn, so a prompt would not hold its question"
    return None


def open_thinking(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the opening and closing mark of the thinking block that a prompt leaves open; None where it opens none."""
    after = render_prompt(tokenizer, _sentinel_prompt()).rpartition(_SENTINEL[-1])[2]
    mark = open_mark(after)
    # A harmony template may end the message of the thinking without beginning another one.
    return None if mark and _END_OF_MESSAGE in after.rpartition(mark[0])[2] else mark


def thinking_is_open(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a prompt ends inside a thinking block, which the response then closes but never opens."""
    return open_thinking(tokenizer) is not None


def prompt_date() -> date:
    """Return the date that templates write; see the module's text.

    Raises:
        MedReflError: ``MEDREFL_RUN_DATE`` holds no date.
    """
    text = os.environ.setdefault(DATE_VARIABLE, date.today().isoformat())
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise MedReflError(f"{DATE_VARIABLE} is {text!r}, expected a date such as 2026-01-31") from None


def _wants_parts(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Return whether only content as a list of parts brings the sentinel into the prompt."""
    try:
        if _holds_sentinel(_render(tokenizer, template, _sentinel_prompt(), False, True)):
            return False
    except (TemplateError, TypeError):
        pass  # render_prompt meets the same error where parts do not help
    try:
        # The lines as one text: Python's own notation of a list, which some templates print, escapes the line end.
        return "\n".join(_SENTINEL) in _render(tokenizer, template, _sentinel_prompt(), True, True)
    except (TemplateError, TypeError):
        return False


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[dict[str, Any]],
    as_parts: bool,
    add_generation_prompt: bool,
) -> str:
    if as_parts:
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    return tokenizer.apply_chat_template(
        list(messages),
        chat_template=_with_fixed_date(template),
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )


def _with_fixed_date(template: str) -> str:
    """Return the template with ``strftime_now`` defined as a macro that formats ``prompt_date()``.

    transformers' own function reads the clock. The first line ends after the macro's end tag, where Jinja drops the
    line end (trim_blocks), so the rest renders as it does alone.
    """
    if "strftime_now" not in template:
        return template
    midnight = datetime.combine(prompt_date(), time())
    fill = "".join(f"|replace('%{code}', '{midnight.strftime(f'%{code}')}')" for code in _FORMATS)
    return f"{{% macro strftime_now(format) %}}{{{{ format{fill} }}}}{{% endmacro %}}\n{template}"


def _sentinel_prompt() -> Messages:
    return [{"role": "user", "content": "\n".join(_SENTINEL)}]


def _holds_sentinel(text: str) -> bool:
    return all(line in text for line in _SENTINEL)
