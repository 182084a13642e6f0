"""Profiles: one YAML file -> checked parameters for every notebook of the chain, before anything starts.

A profile holds only what differs from the notebooks' own defaults, under ``shared`` and one section per notebook;
``stages``, a list, names the notebooks that run where they are not 01 to 06.
papermill only warns about a name it does not know; here each name, type, value (``limits``) and file is checked against
the cell tagged ``parameters``, and each error names file, section and key.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.runs.parameter_limits import Limit, limit_of
from medrefl_utils.runs.renamed_parameters import new_names

TYPES = {t.__name__: t for t in (bool, int, float, str, list, dict)} | {"Literal": Literal}
DATA_FILES = (".jsonl", ".json", ".csv", ".parquet", ".yaml")
MOST_BYTES = 100_000  # of a profile
MOST_VALUES = 10_000  # of a profile, each alias counted as all that it stands for


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell; ``annotation`` is its source text."""

    name: str
    annotation: str
    default: Any


@dataclass(frozen=True)
class Profile:
    """Resolved parameters: {notebook: {name: value}}, defaults included; ``run`` is the run's name.

    ``stages`` are the notebooks that the profile wants run; none where it does not say.
    """

    path: str
    run: str
    parameters: Mapping[str, Mapping[str, Any]]
    stages: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """YAML of plain values: 1e-4 is a number (YAML 1.1 reads it as text), and no more than what a profile needs.

    An error are repeated keys, tags (of Python's objects or any other), aliases that stand for themselves or for a
    billion values, and half a surrogate pair.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        _count(node, {})
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, f"the tag {tag!r} has no place here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((k for i, k in enumerate(keys) if k in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text = super().construct_scalar(node)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise yaml.constructor.ConstructorError(None, None, "half a surrogate pair", node.start_mark)
        return text


def _count(node: yaml.Node | None, counted: dict[int, int | None]) -> int:
    """The values that a node stands for. ``counted`` has those of the nodes seen, None for one not yet complete."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = None
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_count(part, counted) for part in parts)
    values = counted[id(node)]
    if values is None or values > MOST_VALUES:
        found = "an alias stands for itself" if values is None else f"more than {MOST_VALUES:,} values"
        raise yaml.composer.ComposerError(None, None, found, node.start_mark)
    return values


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def code_cells(notebook: Path) -> list[tuple[list[str], str]]:
    """Tags and source of each code cell. Read as JSON: importing nbformat would cost every command 1.5 seconds."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        (cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"
    ]


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook's cell tagged ``parameters``, in order.

    Raises MedReflError when there is no such cell, or a line is not ``name: type = literal``.
    """
    source = next((source for tags, source in code_cells(notebook) if "parameters" in tags), None)
    if source is None:
        raise MedReflError(f"{notebook}: no cell is tagged 'parameters'")
    found = {}
    for node in ast.parse(source).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value) if _literal(value):
                found[name] = Parameter(name, ast.unparse(kind), ast.literal_eval(value))
            case _:
                line = ast.unparse(node)
                raise MedReflError(f"{notebook}: {line!r} in the parameters cell is not 'name: type = literal'")
    return found


def load_profile(
    path: Path,
    notebooks: Mapping[str, Path],
    *,
    root: Path,
    overrides: Sequence[str] = (),
    run_parameter: str = "run",
    follows: Mapping[str, tuple[str, Mapping[str, str]]] | None = None,
) -> Profile:
    """Read a YAML profile and check it against the notebooks ({stem: path}); relative files are looked up in ``root``.

    ``overrides`` are ``section.key=value`` texts (the value is YAML) that win over the file. ``follows`` is
    {notebook: (other, {own key: key of the other})}: a key that its own section leaves out is as in the other
    notebook. Raises MedReflError that names file, section and key, what was found and what was expected.
    """
    sections, origin = _sections(path), {}
    for text in overrides:
        section, key, value = _override(text)
        sections.setdefault(section, {})[key] = value
        origin[section, key] = f"--set {section}.{key}"
    known = {stem: notebook_parameters(notebook) for stem, notebook in notebooks.items()}

    stages = _stages(path, sections.pop("stages", []), known)
    for section in sections:
        if section not in known and section != "shared":
            raise MedReflError(f"{path}: unknown section {_shown(section)}{_expected(section, ['shared', *known])}")
    shared = dict(sections.get("shared", {}))
    run = _run_name(path, shared.pop("run", path.stem), origin.get(("shared", "run")))
    everywhere = {name for parameters in known.values() for name in parameters} - {run_parameter}
    for key in shared:
        if key not in everywhere:
            where = origin.get(("shared", key), f"{path}: section 'shared'")
            raise MedReflError(f"{where}: no notebook has the parameter {_shown(key)}{_hint(key, everywhere)}")

    resolved = {}
    for stem, parameters in known.items():
        values = {p.name: p.default for p in parameters.values()}
        own = sections.get(stem, {})
        for key in own:
            if key == run_parameter:
                raise MedReflError(f"{path}: section {stem!r}: {key!r} is set once, as shared.run")
            if key not in parameters:
                where = origin.get((stem, key), f"{path}: section {stem!r}")
                raise MedReflError(
                    f"{where}: unknown key {_shown(key)}{_hint(key, set(parameters) - {run_parameter}, stem)}"
                )
        for section, given in (("shared", shared), (stem, own)):
            for key in given.keys() & parameters.keys():
                where = origin.get((section, key), f"{path}: section {section!r}: key {key!r}")
                values[key] = _typed(given[key], parameters[key], limit_of(stem, key), f"{where} (for {stem})")
        for key, value in values.items():
            where = next((o for s in (stem, "shared") if (o := origin.get((s, key)))), None)
            section = next((s for s in (stem, "shared") if key in sections.get(s, {})), f"{stem} (default)")
            if key != run_parameter:
                values[key] = _existing(value, root, where or f"{path}: section {section!r}: key {key!r}")
        if run_parameter in values:
            values[run_parameter] = f"runs/{run}"
        resolved[stem] = values
    for stem, (other, keys) in (follows or {}).items():
        own = keys.keys() & resolved[stem].keys() - sections.get(stem, {}).keys()
        resolved[stem] |= {key: resolved[other][keys[key]] for key in own if keys[key] in resolved[other]}
    return Profile(path=str(path), run=run, parameters=resolved, stages=stages)


def local_paths(value: Any) -> list[str]:
    """The texts in a parameter's value that are clearly a path and not a hub id (``org/name``)."""
    if isinstance(value, list | tuple):
        return [path for item in value for path in local_paths(item)]
    is_path = isinstance(value, str) and (value.startswith((".", "/", "~")) or value.lower().endswith(DATA_FILES))
    return [value] if is_path else []


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question back to the user, ' (did you mean X?)', or nothing when no name is close."""
    close = difflib.get_close_matches(name, sorted(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError):
        return False
    return True


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    try:
        if path.exists() and not path.is_file():
            raise MedReflError(f"{path}: is not a file, expected a YAML profile")
        if path.stat().st_size > MOST_BYTES:
            raise MedReflError(f"{path}: {path.stat().st_size:,} bytes, expected a profile of at most {MOST_BYTES:,}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MedReflError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MedReflError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    document = _parsed(text, f"{path}: is not YAML we can use")
    if not isinstance(document, dict) or not document:
        found = "nothing" if not document else type(document).__name__
        raise MedReflError(f"{path}: found {found}, expected sections ('shared' and notebooks) with key: value lines")
    for section, keys in document.items():
        if not isinstance(section, str):
            kind = type(section).__name__
            raise MedReflError(f"{path}: the section {_shown(section)} is a {kind}, expected a name")
        if section == "stages":
            continue
        if keys is None:
            document[section] = {}
        elif not isinstance(keys, dict):
            raise MedReflError(f"{path}: section {section!r} holds {_shown(keys)}, expected key: value lines")
        elif not all(isinstance(key, str) for key in keys):
            raise MedReflError(f"{path}: section {section!r}: a key is not a name: {_shown(list(keys))}")
    return document


def _stages(path: Path, named: Any, known: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(named, list):
        raise MedReflError(f"{path}: 'stages' holds {_shown(named)}, expected a list of notebooks: {', '.join(known)}")
    for name in named:
        if not isinstance(name, str) or name not in known:
            expected = _expected(str(name), known)
            raise MedReflError(f"{path}: 'stages' names {_shown(name)}, which is no notebook{expected}")
    return tuple(named)


def _override(text: str) -> tuple[str, str, Any]:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key) or section == "stages":
        raise MedReflError(f"--set {text}: expected section.key=value, such as shared.seed=1")
    return section, key, _parsed(value, f"--set {text}: the value is not YAML")


def _parsed(text: str, problem: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a date or a number that is none is a ValueError
        raise MedReflError(f"{problem}: {_yaml_problem(error)}") from error


def _run_name(path: Path, name: Any, where: str | None) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        where = where or f"{path}: section 'shared': key 'run'"
        raise MedReflError(f"{where}: found {_shown(name)}, expected the run's name: letters, digits, '.', '_', '-'")
    return name


def _typed(value: Any, parameter: Parameter, limit: Limit | None, where: str) -> Any:
    # Strict: 1 may stand for 1.0, but True is no number, "1" is no int and 1 is no text.
    try:
        kind = eval(parameter.annotation, {"__builtins__": {}}, TYPES)  # noqa: S307 (our own notebook's annotation)
    except (NameError, TypeError) as error:
        raise MedReflError(f"{where}: the notebook's type {parameter.annotation!r} is not one of ours") from error
    try:
        value = TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        found = "nothing" if value is None else f"{_shown(value)} ({type(value).__name__})"
        raise MedReflError(f"{where}: found {found}, expected {parameter.annotation}") from None
    if limit is not None and not limit.holds(value):
        raise MedReflError(f"{where}: found {_shown(value)}, expected {limit.expected}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _existing(value: Any, root: Path, where: str) -> Any:
    """The value with ``~`` expanded; raises when it names a local file that is not there."""
    for path in local_paths(value):
        if not os.path.exists(root / Path(path).expanduser()):
            raise MedReflError(f"{where}: no such file or folder: {path}")
    if isinstance(value, str) and value.startswith("~"):
        return str(Path(value).expanduser())
    return value


def _hint(name: str, names: Iterable[str], notebook: str | None = None) -> str:
    """What to write instead of a parameter that is not there: its new name, or one that is close."""
    new = new_names(name, notebook)
    return f" (since version 0.2.0 it is {' or '.join(map(repr, new))})" if new else _expected(name, names)


def _expected(name: str, names: Iterable[str]) -> str:
    return did_you_mean(name, names) or f", expected one of {', '.join(sorted(names))}"


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(problem.split()) + (f" (line {mark.line + 1})" if mark else "")
