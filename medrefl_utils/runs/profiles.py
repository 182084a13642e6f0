"""Profiles: read one YAML file and check the parameters of every notebook before anything starts.

A profile holds only what differs from the notebooks' own defaults: a section ``shared``, and one section per notebook.
The list ``stages`` names the notebooks to run; without it, notebooks 01 to 06 run. ``continue_from`` names the notebook
whose model the later ones use, and ``baseline: true`` runs them on the original model as well, for comparison.

papermill only warns about an unknown parameter. Here each name, type, value (``parameter_limits``) and file is checked
against the notebook's cell tagged ``parameters``, and each error names the file, the section and the key.
"""

from __future__ import annotations

import ast
import datetime
import difflib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.runs.parameter_limits import Limit, limit_of
from medrefl_utils.runs.profile_yaml import AmbiguousNumber, Document, Source, YamlProblem, parse
from medrefl_utils.runs.renamed_parameters import new_names

TYPES = {t.__name__: t for t in (bool, int, float, str, list, dict)} | {"Literal": Literal}
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".yaml")
MAX_BYTES = 100_000  # size limit of a profile
TOP_LEVEL = ("stages", "continue_from", "baseline")
"""Keys of a profile that are no sections."""
_NUMBERS_OF_QUESTIONS = ("n_questions", "n_evaluation_questions")  # 0 means all


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell; ``annotation`` is its source text, ``meaning`` its comment."""

    name: str
    annotation: str
    default: Any
    meaning: str = ""


@dataclass(frozen=True)
class Profile:
    """Resolved parameters: {notebook: {name: value}}, defaults included; ``run`` is the run's name.

    ``stages`` are the notebooks that the profile names to run; empty if it names none. ``tuned`` is the folder of the
    model that fine-tuning writes and later stages use; "" if the profile has no ``continue_from``. ``original`` is the
    model that fine-tuning starts from. ``baseline`` is the name of the run on the original model; "" for none.
    """

    path: str
    run: str
    parameters: Mapping[str, Mapping[str, Any]]
    stages: tuple[str, ...] = ()
    tuned: str = ""
    original: str = ""
    baseline: str = ""

    def before_tuning(self, root: Path) -> dict[str, dict[str, Any]]:
        """Return the parameters for checks before the run: the original model where the tuned one is not there yet."""
        replaced = {} if not self.tuned or (root / self.tuned).exists() else {self.tuned: self.original}
        return {stage: _with_model(values, replaced) for stage, values in self.parameters.items()}

    def of_baseline(self, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the parameters of these stages in the baseline's run."""
        replaced, place = {self.tuned: self.original}, {"run": f"runs/{self.baseline}"}
        return {stage: _with_model(self.parameters[stage], replaced) | place for stage in stages}


def _with_model(values: Mapping[str, Any], replaced: Mapping[str, str]) -> dict[str, Any]:
    return dict(values) | ({"model": replaced.get(values["model"], values["model"])} if "model" in values else {})


def code_cells(notebook: Path) -> list[tuple[list[str], str]]:
    """Return the tags and the source of each code cell.

    The notebook is read as JSON, because importing nbformat would cost every command 1.5 seconds.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        (cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"
    ]


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook's cell tagged ``parameters``, in order.

    Raises:
        MedReflError: there is no such cell, or a line is not ``name: type = literal``.
    """
    source = next((source for tags, source in code_cells(notebook) if "parameters" in tags), None)
    if source is None:
        raise MedReflError(f"{notebook}: no cell is tagged 'parameters'")
    found, lines = {}, source.splitlines()
    for node in ast.parse(source).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value) if _literal(value):
                meaning = lines[node.end_lineno - 1].partition("  # ")[2].strip()
                found[name] = Parameter(name, ast.unparse(kind), ast.literal_eval(value), meaning)
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
    continues: Mapping[str, Collection[str]] | None = None,
) -> Profile:
    """Read a YAML profile and check it against the notebooks.

    Args:
        path: the profile.
        notebooks: {stem: path of the notebook}.
        root: the checkout, in which relative paths of data files are looked up.
        overrides: texts ``section.key=value`` that win over the file. The value is YAML. The section may be any
            unambiguous part of a notebook's name, or its number: ``04.learning_rate=1e-5``.
        run_parameter: the parameter that receives the run's folder.
        follows: {notebook: (other, {own key: key of the other})}. A key that the notebook's section leaves out takes
            its value from the other notebook.
        continues: {notebook that writes a model to the run's ``sft_model``: the notebooks that can use it}, for
            ``continue_from``.

    Raises:
        MedReflError: names the file, section and key, what was found and what is expected.
    """
    known = {stem: notebook_parameters(notebook) for stem, notebook in notebooks.items()}
    sections, sources = _sections(path, root)
    origin: dict[tuple[str, str], str] = {}
    for text in overrides:
        section, key, document = _override(text, known)
        sections.setdefault(section, {})[key] = document.value
        origin[section, key] = f"--set {text.partition('=')[0].strip()}"
        sources[section, key] = [Source(source.text, 0) for source in document.sources.get((), [])]

    stages = _stages(path, sections.pop("stages", []), known)
    source = _continue_from(path, sections.pop("continue_from", ""), continues or {}, stages)
    baseline = sections.pop("baseline", False)
    if type(baseline) is not bool:
        raise MedReflError(f"{path}: 'baseline' holds {_shown(baseline)}, expected true or false")
    if baseline and not source:
        raise MedReflError(
            f"{path}: 'baseline' is true, which needs 'continue_from': without it there is only one base"
        )
    for section in sections:
        if section not in known and section != "shared":
            names = ["shared", *TOP_LEVEL, *known] if continues else ["shared", *known]
            raise MedReflError(f"{path}: unknown section {_shown(section)}{_expected(section, names)}")
    shared = dict(sections.get("shared", {}))
    run_hint = _quotes_hint(shared.get("run"), sources.get(("shared", "run"), ()))
    run = _run_name(path, shared.pop("run", path.stem), origin.get(("shared", "run")), run_hint)
    everywhere = {name for parameters in known.values() for name in parameters} - {run_parameter}
    for key in shared:
        if key not in everywhere:
            where = origin.get(("shared", key), f"{path}: section 'shared'")
            raise MedReflError(f"{where}: no notebook has the parameter {_shown(key)}{_hint(key, everywhere)}")

    resolved = dict.fromkeys(known, {})
    # The run's own notebooks first, by default 01 and on: an error in a shared key names the first one that has it.
    for stem in [stem for stem in known if stem in stages] + sorted(known.keys() - set(stages)):
        parameters = known[stem]
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
                values[key] = _typed(
                    given[key],
                    parameters[key],
                    limit_of(stem, key),
                    f"{where} (for {stem})",
                    sources.get((section, key), []),
                )
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
    if not source:
        return Profile(path=str(path), run=run, parameters=resolved, stages=stages)
    tuned, original = f"runs/{run}/{RunFiles(Path()).sft_model.name}", resolved[source]["model"]
    for stem in (continues or {})[source]:
        if "model" not in sections.get(stem, {}):
            resolved[stem]["model"] = tuned
    beside = f"{run}_baseline" if baseline else ""
    for values in resolved.values() if beside else ():
        if values.get("baseline") == "":
            values["baseline"] = f"runs/{beside}"
        if values.get("own_run") == "" and values["targets"] == "own":
            values["own_run"] = f"runs/{beside}"
    return Profile(str(path), run, resolved, stages, tuned, original, beside)


def limit_questions(profile: Profile, n: int) -> Profile:
    """Return the profile with at most ``n`` questions in every notebook that reads some, as the run ``NAME_limitN``.

    A run of its own (and a baseline of its own), so that a trial with few questions replaces no result.
    """
    run, baseline = (f"{name}_limit{n}" if name else "" for name in (profile.run, profile.baseline))
    places = {f"runs/{profile.run}": f"runs/{run}"} | (
        {f"runs/{profile.baseline}": f"runs/{baseline}"} if baseline else {}
    )

    def moved(value: Any) -> Any:  # noqa: ANN401 (a parameter's value)
        for old, new in places.items():
            if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
                return new + value[len(old) :]
        return value

    parameters = {
        stage: {
            name: min(value or n, n) if name in _NUMBERS_OF_QUESTIONS else 0 if name == "n_examples" else moved(value)
            for name, value in values.items()
        }
        for stage, values in profile.parameters.items()
    }
    return replace(profile, run=run, parameters=parameters, tuned=moved(profile.tuned), baseline=baseline)


def local_paths(value: Any) -> list[str]:
    """Return the texts in a parameter's value that are clearly a path, and not a hub id (``org/name``)."""
    if isinstance(value, list | tuple):
        return [path for item in value for path in local_paths(item)]
    is_path = isinstance(value, str) and (value.startswith((".", "/", "~")) or value.lower().endswith(DATA_FILES))
    return [value] if is_path else []


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ' (did you mean X?)' with the closest of ``names``, or '' if none is close."""
    close = difflib.get_close_matches(name, sorted(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def matching_names(name: str, names: Iterable[str]) -> list[str]:
    """Return the notebooks that ``name`` can mean: the exact name, its beginning, its number, or a part of it.

    ``04``, ``4``, ``04_dpo`` and ``dpo`` all mean ``04_dpo_lora_4bit``. The first rule with a match decides.
    """
    names = list(names)
    number = f"{int(name):02d}_" if name.isascii() and name.isdigit() else "\0"
    rules = (
        lambda known: known == name,
        lambda known: known.startswith(number),
        lambda known: known.startswith(name),
        lambda known: not name.isdigit() and name in known,
    )
    return next((found for rule in rules if (found := [known for known in names if name and rule(known)])), [])


def _literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError):
        return False
    return True


def _sections(path: Path, root: Path) -> tuple[dict[str, dict[str, Any]], dict[Any, list[Source]]]:
    """Read the profile: {section: {key: value}}, and {(section, key): its unquoted values}."""
    try:
        if path.exists() and not path.is_file():
            raise MedReflError(f"{path}: is not a file, expected a YAML profile")
        if path.stat().st_size > MAX_BYTES:
            raise MedReflError(f"{path}: {path.stat().st_size:,} bytes, expected a profile of at most {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MedReflError(f"{path}: cannot be read: {error.strerror}{_similar_profile(path, root)}") from error
    except UnicodeDecodeError as error:
        raise MedReflError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    try:
        parsed = parse(text)
    except AmbiguousNumber as error:
        raise MedReflError(f"{path}: line {error.line}: {error}") from error
    except YamlProblem as error:
        raise MedReflError(f"{path}: is not YAML we can use: {error}") from error
    document = parsed.value
    if not isinstance(document, dict) or not document:
        found = "nothing" if not document else type(document).__name__
        raise MedReflError(f"{path}: found {found}, expected sections ('shared' and notebooks) with key: value lines")
    for section, keys in document.items():
        if not isinstance(section, str):
            kind = type(section).__name__
            raise MedReflError(f"{path}: the section {_shown(section)} is a {kind}, expected a name")
        if section in TOP_LEVEL:
            continue
        if keys is None:
            document[section] = {}
        elif not isinstance(keys, dict):
            hint = did_you_mean(section, TOP_LEVEL)
            raise MedReflError(f"{path}: section {section!r} holds {_shown(keys)}, expected key: value lines{hint}")
        elif not all(isinstance(key, str) for key in keys):
            raise MedReflError(f"{path}: section {section!r}: a key is not a name: {_shown(list(keys))}")
    return document, dict(parsed.sources)


def _similar_profile(path: Path, root: Path) -> str:
    """Return a hint at the profile in params/ that a missing file probably means, or ''."""
    stems = {file.stem: file.relative_to(root).as_posix() for file in sorted(root.glob("params/*.yaml"))}
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    close = difflib.get_close_matches(stem, stems, n=1)
    return f" (did you mean {stems[close[0]]}?)" if close else ""


def _stages(path: Path, named: Any, known: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(named, list):
        raise MedReflError(f"{path}: 'stages' holds {_shown(named)}, expected a list of notebooks: {', '.join(known)}")
    found = []
    for name in named:
        fitting = matching_names(str(name), known) if type(name) in (str, int) else []
        if len(fitting) != 1:
            expected = _expected(str(name), known)
            raise MedReflError(f"{path}: 'stages' names {_shown(name)}, which is not a notebook{expected}")
        found += fitting
    return tuple(found)


def _continue_from(path: Path, named: Any, continues: Mapping[str, Collection[str]], stages: Sequence[str]) -> str:
    """Return the notebook whose model the later ones use; "" where the profile names none."""
    if named == "":
        return ""
    if named not in continues:
        raise MedReflError(f"{path}: 'continue_from' holds {_shown(named)}, expected {' or '.join(continues)}")
    if named not in stages:
        raise MedReflError(f"{path}: 'continue_from' names {named}, which 'stages' leaves out: add it there")
    return named


def _override(text: str, known: Iterable[str]) -> tuple[str, str, Document]:
    """Split ``section.key=value``; the section's name is completed."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key) or section in TOP_LEVEL:
        raise MedReflError(f"--set {text}: expected section.key=value, such as shared.seed=1")
    names = ["shared", *known]
    fitting = matching_names(section, names)
    if len(fitting) != 1:
        found = f"can mean {' or '.join(fitting)}" if fitting else f"is not a section{_expected(section, names)}"
        raise MedReflError(f"--set {name.strip()}: {section!r} {found}")
    try:
        return fitting[0], key, parse(value)
    except AmbiguousNumber as error:
        raise MedReflError(f"--set {name.strip()}: {error}") from error
    except YamlProblem as error:
        raise MedReflError(f"--set {text}: the value is not YAML: {error}") from error


def _run_name(path: Path, name: Any, where: str | None, hint: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        where = where or f"{path}: section 'shared': key 'run'"
        expected = f"expected the run's name: letters, digits, '.', '_', '-'{hint}"
        raise MedReflError(f"{where}: found {_shown(name)}, {expected}")
    return name


def _typed(value: Any, parameter: Parameter, limit: Limit | None, where: str, sources: Sequence[Source]) -> Any:
    """Return the value in the parameter's type; raise MedReflError if it has another type or breaks the limit.

    The check is strict: 1 is accepted for 1.0, but True is not a number, "1" is not an int and 1 is not a text.
    """
    try:
        kind = eval(parameter.annotation, {"__builtins__": {}}, TYPES)  # noqa: S307 (the notebook's own annotation)
    except (NameError, TypeError) as error:
        raise MedReflError(f"{where}: the notebook's type {parameter.annotation!r} is not supported") from error
    adapter = TypeAdapter(kind, config=ConfigDict(strict=True))
    if kind is str and type(value) is int and limit is not None and limit.holds(str(value)):
        value = str(value)  # a choice that looks like a number: answer_base: 1
    try:
        value = adapter.validate_python(value)
    except ValidationError:
        found = "nothing" if value is None else f"{_shown(value)} ({type(value).__name__})"
        hint = _type_hint(value, parameter, adapter, sources)
        raise MedReflError(f"{where}: found {found}, expected {parameter.annotation}{hint}") from None
    if limit is not None and not limit.holds(value):
        raise MedReflError(f"{where}: found {_shown(value)}, expected {limit.expected}")
    return value


def _type_hint(value: Any, parameter: Parameter, adapter: TypeAdapter[Any], sources: Sequence[Source]) -> str:
    """Say what to write instead of a value of the wrong type; '' where nothing is likely."""
    kind = parameter.annotation
    if kind.startswith("list"):
        if isinstance(value, list):
            return _quotes_hint(value, sources) if kind == "list[str]" else ""
        parts = re.split(r"[,\s]+", value.strip("() ")) if isinstance(value, str) else [value]
        for items in (parts, [_number(part) for part in parts]):
            try:
                return f", such as {_flow(adapter.validate_python(items))}"
            except ValidationError:
                continue
        return f", such as {_flow(parameter.default)}" if parameter.default else ""
    if kind == "str":
        return _quotes_hint(value, sources)
    if kind == "bool":
        return ", which is true or false"
    if kind in ("int", "float"):
        number = _number(value)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return f": write {number}"
    return ""


def _quotes_hint(value: Any, sources: Sequence[Source]) -> str:
    """Say where quotes are missing around a text that YAML reads as another type."""
    values = value if isinstance(value, list) else [value]
    wrong = [v for v in values if isinstance(v, bool | int | float | datetime.date)]
    if not wrong or len(sources) != len(values):
        return ""
    source = next(s for s, v in zip(sources, values, strict=True) if v is wrong[0])
    reads = f": YAML reads {source.text}{f' on line {source.line}' if source.line else ''} as {wrong[0]}, so write"
    quoted = f"'{source.text}'"
    # A shell removes one pair of quotes.
    return f"{reads} {quoted} in quotes" if source.line else f'{reads} "{quoted}" in two pairs of quotes'


def _number(value: Any) -> Any:
    """Return the plain number that a text such as '08' or '1,000', or a float such as 2.0, stands for."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", text):
        text = text.replace(",", "")
    try:
        return int(text, 0) if re.match(r"[-+]?0[xob]", text.lower()) else int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return value


def _flow(values: Sequence[Any]) -> str:
    """Write a list as YAML in one word, which needs no quotes in a shell."""
    return f"[{','.join(str(value) for value in values)}]"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _existing(value: Any, root: Path, where: str) -> Any:
    """Return the value with ``~`` expanded; raise MedReflError if it names a local file that does not exist."""
    for path in local_paths(value):
        if not os.path.exists(root / Path(path).expanduser()):
            raise MedReflError(f"{where}: no such file or folder: {path}")
    if isinstance(value, str) and value.startswith("~"):
        return str(Path(value).expanduser())
    return value


def _hint(name: str, names: Iterable[str], notebook: str | None = None) -> str:
    """Say what to write instead of an unknown parameter: its new name, or a similar one."""
    new = new_names(name, notebook)
    return f" (since version 0.2.0 it is {' or '.join(map(repr, new))})" if new else _expected(name, names)


def _expected(name: str, names: Iterable[str]) -> str:
    return did_you_mean(name, names) or f", expected one of {', '.join(sorted(names))}"
