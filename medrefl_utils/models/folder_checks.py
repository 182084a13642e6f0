"""A model's or an adapter's folder, looked at before it is loaded: what would not load is one line, within a second.

Only JSON, the headers of safetensors and the tokenizer's own file are read: no weights, no torch, no code or pickle
that lies there. What only loading can tell (``models.load_model``) is not told here.
"""

from __future__ import annotations

import filecmp
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import resolve_model

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_WRITES_ON = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")

Shapes = Mapping[str, tuple[int, ...]]


def resolve_checked_model(model: str) -> str:
    """``hub.resolve_model`` of a model; a local folder is looked at, too: see ``check_model``."""
    name = resolve_model(model)
    if Path(name).is_dir():
        check_model_folder(Path(name), model)
    return name


def check_model_folder(folder: Path, model: str) -> None:
    """Look at a model's folder: config, weights, tokenizer, chat template, and whether they fit one another.

    Raises:
        MedReflError: one line that begins with "model" and ``model``, the name that the user gave.
    """
    where = f"model {model}"
    config = _object(folder / "config.json", where)
    _check_architecture(config, where)
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    shapes = _weights(folder, where, "model")
    embedding = next((shape for name, shape in shapes.items() if _EMBEDDING.search(name) and len(shape) == 2), None)
    told = (text.get("vocab_size"), text.get("hidden_size"))
    if embedding and None not in told and embedding != told:
        found = f"{embedding[0]} tokens x {embedding[1]}, but its config.json says {told[0]} x {told[1]}"
        raise MedReflError(f"{where}: its weights embed {found}: expected the weights of that model")
    layers = _layers(shapes)
    if isinstance(n := text.get("num_hidden_layers"), int) and layers < n:
        raise MedReflError(f"{where}: its weights have {layers} layers, but its config.json says {n}")
    tokens = _check_tokenizer(folder, where)
    if embedding and tokens > embedding[0]:
        raise MedReflError(f"{where}: its tokenizer has {tokens} tokens, expected at most the {embedding[0]} embedded")


def check_adapter_folder(folder: Path, model: str) -> None:
    """Look at a LoRA adapter's folder, and whether its tensors are for the layers of ``model`` (a folder or hub id).

    Raises:
        MedReflError: no config or weights, pickled weights, or shapes that are not the model's.
    """
    where = f"adapter {folder}"
    if not (folder / "adapter_config.json").is_file():
        raise MedReflError(f"{where}: no adapter_config.json there, so no adapter was trained into it")
    config, shapes = _object(folder / "adapter_config.json", where), _weights(folder, where, "adapter_model")
    loras = {name: shape for name, shape in shapes.items() if ".lora_A." in name or ".lora_B." in name}
    ranks = {shape[0] for name, shape in loras.items() if ".lora_A." in name}
    if ranks and not config.get("rank_pattern") and ranks != {config.get("r")}:
        found = ", ".join(map(str, sorted(ranks)))
        raise MedReflError(
            f"{where}: its weights have rank {found}, but its adapter_config.json says {config.get('r')}"
        )
    if loras and Path(name := resolve_model(model)).is_dir():
        of_model = _weights(Path(name), f"model {model}", "model")
        if not config.get("layers_to_transform") and (n := _layers(loras)) != (expected := _layers(of_model)):
            raise MedReflError(f"{where}: is for {n} layers, but the model {model} has {expected}: another base")
        for lora, shape in loras.items():
            side = 1 if ".lora_A." in lora else 0  # A reads what the layer reads, B writes what it writes
            layer = re.sub(r"\.lora_[AB]\.", ".", lora).removeprefix("base_model.model.")
            expected = of_model.get(layer, shape)[side]
            if shape[side] != expected:
                found = f"{layer.removesuffix('.weight')} has {shape[side]} where the model {model} has {expected}"
                raise MedReflError(f"{where}: {found}: another base")


def check_adapter_base(folder: Path, model: str) -> None:
    """Whether an adapter was trained on ``model`` by its own account, and fits it; see ``check_adapter``.

    Two local folders are one model when their weights are the same bytes, other names when their last parts are.
    """
    check_adapter_folder(folder, model)
    base = _object(folder / "adapter_config.json", f"adapter {folder}").get("base_model_name_or_path")
    if base and not _same_model(Path(base), Path(resolve_model(model))):
        raise MedReflError(f"adapter {folder}: was trained on {base}, expected one of the model {model}")


def _same_model(a: Path, b: Path) -> bool:
    if not (a.is_dir() and b.is_dir()):
        return a.name == b.name
    names = {path.name for folder in (a, b) for path in folder.glob("*.safetensors")}
    return a.resolve() == b.resolve() or not any(filecmp.cmpfiles(a, b, names, shallow=False)[1:])


def _check_architecture(config: Mapping[str, Any], where: str) -> None:
    # Imported here: half a second that a run whose stages are unchanged need not pay. No torch comes with it.
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    kind, classes = config.get("model_type"), config.get("architectures") or []
    if kind not in CONFIG_MAPPING_NAMES:
        own = "; the code beside it (auto_map) is never run" if config.get("auto_map") else ""
        raise MedReflError(f"{where}: its model_type {kind!r} is none that transformers knows{own}")
    if config.get("is_encoder_decoder") or (classes and not any(_WRITES_ON.search(str(name)) for name in classes)):
        found = ", ".join(map(str, classes)) or kind
        raise MedReflError(f"{where}: is a {found}, expected a causal language model, such as LlamaForCausalLM")


def _check_tokenizer(folder: Path, where: str) -> int:
    """One more than the tokenizer's largest id; 0 where it is of a kind that only transformers reads."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    file, tokens = folder / "tokenizer.json", 0
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            tokens = 1 + max(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True).values(), default=-1)
        except Exception as error:  # the Rust library raises nothing narrower
            raise MedReflError(f"{where}: its tokenizer.json cannot be read ({_line(error)})") from None
    elif not any((folder / name).is_file() for name in _OTHER_TOKENIZERS):
        raise MedReflError(f"{where}: no tokenizer there, expected tokenizer.json")
    settings = folder / "tokenizer_config.json"
    template = _object(settings, where).get("chat_template") if settings.is_file() else None
    if (beside := folder / "chat_template.jinja").is_file():
        template = beside.read_text(encoding="utf-8", errors="replace")
    if not template and not any(folder.glob("*chat_template*")):
        raise MedReflError(f"{where}: its tokenizer has no chat template, which every prompt goes through")
    if isinstance(template, str):
        # transformers' own tag, which plain Jinja does not know, only marks a part of the text.
        plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
        try:
            ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
        except TemplateSyntaxError as error:
            raise MedReflError(f"{where}: its chat template is broken (line {error.lineno}: {_line(error)})") from None
    return tokens


def _weights(folder: Path, where: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in ``stem``.safetensors, or in the parts that its index names."""
    from safetensors import SafetensorError, safe_open

    index, whole = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    files = [whole]
    if not whole.is_file() and index.is_file():
        parts = _object(index, where).get("weight_map")
        names = set(map(str, parts.values())) if isinstance(parts, dict) else set()
        if not names or any(Path(name).name != name for name in names):
            raise MedReflError(f"{where}: {index.name} names no files of this folder under 'weight_map'")
        files = [folder / name for name in sorted(names)]
    elif not whole.is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            found = f"pickled weights ({pickles[0]}), which can run code, and are never read"
            raise MedReflError(f"{where}: {found}: expected {stem}.safetensors")
        raise MedReflError(f"{where}: no weights there, expected {stem}.safetensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
        except (OSError, SafetensorError) as error:
            raise MedReflError(f"{where}: {file.name} cannot be read ({_line(error)})") from None
    return shapes


def _layers(shapes: Shapes) -> int:
    return 1 + max((int(found[1]) for name in shapes if (found := _LAYER.search(name))), default=-1)


def _object(path: Path, where: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MedReflError(f"{where}: its {path.name} is not JSON ({_line(error)})") from None
    if not isinstance(found, dict):
        raise MedReflError(f"{where}: its {path.name} is a JSON {type(found).__name__}, expected an object")
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
