"""Read the YAML of a profile: plain values only, and no number that YAML reads differently from what it looks like.

YAML 1.1 reads ``010`` as 8 (octal), ``1:30`` as 90 (base 60) and ``off`` as false. A profile accepts decimal numbers
only. For every other value, ``Source`` keeps the text as written, so that an error can quote it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

MAX_VALUES = 10_000
"""Values in a profile. Each alias counts as all values that it stands for."""

_DECIMAL = re.compile(r"[-+]?((0|[1-9]\d*(_\d+)*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|nan)", re.IGNORECASE)
_FORMS = {"x": "hexadecimal", "b": "binary", ":": "base 60"}


class YamlProblem(ValueError):
    """A text that is not YAML, or YAML with something that a profile must not hold."""


class AmbiguousNumber(YamlProblem):
    """A number that YAML reads differently from what it looks like, and its line, from 1."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True)
class Source:
    """A value without quotes as it is written, such as ``off`` for False. ``line``: from 1; 0 for the command line."""

    text: str
    line: int


@dataclass(frozen=True)
class Document:
    """A parsed text: its ``value``, and the unquoted values below each path of up to two keys."""

    value: Any
    sources: dict[tuple[Hashable, ...], list[Source]]


def parse(text: str) -> Document:
    """Parse a YAML text of plain values.

    Raises:
        AmbiguousNumber: a number that is not decimal, such as 010, 0x10 or 1:30.
        YamlProblem: invalid YAML; a repeated key; a tag; an alias that contains itself; more than ``MAX_VALUES``
            values; half a surrogate pair.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            sources: dict[tuple[Hashable, ...], list[Source]] = {}
            if node is None:
                return Document(None, sources)
            _collect(loader, node, (), sources, set())
            return Document(loader.construct_document(node), sources)
        finally:
            loader.dispose()
    except YamlProblem:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # an invalid date or number is a ValueError
        raise YamlProblem(_problem(error)) from error


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads 1e-4 as a number (YAML 1.1 reads it as text) and refuses what no profile needs."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        _count(node, {})
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, f"the tag {tag!r} is not allowed here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = next((k for i, k in enumerate(keys) if k in keys[:i]), None)
        if repeated is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {repeated!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text = super().construct_scalar(node)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise yaml.constructor.ConstructorError(None, None, "half a surrogate pair", node.start_mark)
        return text


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _count(node: yaml.Node | None, counted: dict[int, int | None]) -> int:
    """Count the values that a node stands for. ``counted`` holds finished nodes, and None for unfinished ones."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = None
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_count(part, counted) for part in parts)
    values = counted[id(node)]
    if values is None or values > MAX_VALUES:
        found = "an alias contains itself" if values is None else f"more than {MAX_VALUES:,} values"
        raise yaml.composer.ComposerError(None, None, found, node.start_mark)
    return values


def _collect(
    loader: _Loader,
    node: yaml.Node,
    path: tuple[Hashable, ...],
    sources: dict[tuple[Hashable, ...], list[Source]],
    seen: set[tuple[int, tuple[Hashable, ...]]],
) -> None:
    """Add the unquoted values below ``node`` to ``sources``, and refuse ambiguous numbers among them."""
    if (id(node), path) in seen:
        return
    seen.add((id(node), path))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            _collect(loader, value, (*path, name)[:2], sources, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _collect(loader, item, path, sources, seen)
    elif node.style is None and node.value:
        _refuse_ambiguous(loader, node, path)
        sources.setdefault(path, []).append(Source(node.value, node.start_mark.line + 1))


def _refuse_ambiguous(loader: _Loader, node: yaml.ScalarNode, path: tuple[Hashable, ...]) -> None:
    """Raise AmbiguousNumber for a number that is not written in decimal digits."""
    text = node.value
    if node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") or _DECIMAL.fullmatch(text):
        return
    try:
        choices = [repr(loader.construct_object(node))]
    except ValueError:
        choices = []
    form = next((name for mark, name in _FORMS.items() if mark in text.lower()), "")
    if re.fullmatch(r"[-+]?0[0-7]+", text):
        form = "octal"
        # Whoever writes 010 most likely means 10.
        choices = list(dict.fromkeys([str(int(text)), *choices]))
    reads = f"is {choices[-1]} in YAML{f' ({form})' if form else ''}" if choices else "is not a number"
    hint = f"write {' or '.join(choices)} for a number, or '{text}' in quotes for text" if choices else "write decimals"
    key = f"{path[-1]}: " if path else ""
    raise AmbiguousNumber(f"{key}{text} {reads}: {hint}", node.start_mark.line + 1)


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(problem.split()) + (f" (line {mark.line + 1})" if mark else "")
