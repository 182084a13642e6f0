"""Check the folder of a model or an adapter before it is loaded, within a second.

The checks read JSON, the headers of safetensors files and the tokenizer's own file. They read no weights, import no
torch and run no code of the folder. What only loading shows is left to ``models.loading.load_model``.
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
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CONV1D = ("gpt2", "openai-gpt")
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# bitsandbytes writes these beside a 4-bit weight; the last one is JSON and holds the shape before packing.
_PACKING = re.compile(
    r"^(.+\.weight)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$"
)

Shapes = Mapping[str, tuple[int, ...]]


def resolve_checked_model(model: str) -> str:
    """Return what ``core.hub.resolve_model`` returns, after ``check_model_folder`` where it is a local folder."""
    name = resolve_model(model)
    if Path(name).is_dir():
        check_model_folder(Path(name), model)
    return name


def check_model_folder(folder: Path, model: str) -> None:
    """Check that a model folder has config, weights, tokenizer and chat template, and that they fit each other.

    Raises:
        MedReflError: one line that begins with "model" and ``model``, the name that the user gave.
    """
    where = f"model {model}"
    config = _object(folder / "config.json", where)
    _check_architecture(config, where)
    _check_quantization(config, where)
    text = _text_config(config)
    shapes = _weights(folder, where, "model")
    embedding = next((shape for name, shape in shapes.items() if _EMBEDDING.search(name) and len(shape) == 2), None)
    stated = (text.get("vocab_size"), text.get("hidden_size"))
    if embedding and None not in stated and embedding != stated:
        found = f"{embedding[0]} tokens x {embedding[1]}, but its config.json says {stated[0]} x {stated[1]}"
        raise MedReflError(f"{where}: its weights embed {found}: expected the weights of that model")
    layers, expected = _layers(shapes), _config_layers(config)
    # More layers than the config states are layers for multi-token prediction, which transformers does not load.
    if expected is not None and layers < expected:
        raise MedReflError(f"{where}: its weights have {layers} layers, but its config.json says {expected}")
    tokens = _check_tokenizer(folder, where)
    _check_template(folder, where)
    if embedding and tokens > embedding[0]:
        raise MedReflError(f"{where}: its tokenizer has {tokens} tokens, expected at most the {embedding[0]} embedded")


def resolve_checked_encoder(model: str) -> str:
    """Return what ``core.hub.resolve_model`` returns, after checks of the encoder where it is a local folder.

    An encoder embeds texts (``models.embeddings``), so that it needs no chat template and may be of any kind.

    Raises:
        MedReflError: no config, an unknown model type, pickled or no weights, or no tokenizer; one line with ``model``.
    """
    name, where = resolve_model(model), f"model {model}"
    if (folder := Path(name)).is_dir():
        _check_kind(_object(folder / "config.json", where), where)
        _weights(folder, where, "model")
        _check_tokenizer(folder, where)
        if (pooling := folder / "1_Pooling" / "config.json").is_file():
            _object(pooling, where)
    return name


def check_adapter_folder(folder: Path, model: str) -> None:
    """Check a LoRA adapter's folder, and that its tensors fit the layers of ``model`` (a folder or hub id).

    Raises:
        MedReflError: no config or no weights, pickled weights, or shapes that are not the model's.
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
        _check_adapter_fits(where, config, loras, Path(name), model)


def _check_adapter_fits(where: str, config: Mapping[str, Any], loras: Shapes, base: Path, model: str) -> None:
    of_model = _weights(base, f"model {model}", "model")
    base_config = _object(base / "config.json", f"model {model}")
    expected = _config_layers(base_config) or _layers(of_model)
    # torch's Linear stores [outputs, inputs], GPT-2's Conv1D stores [inputs, outputs].
    outputs, inputs = (1, 0) if base_config.get("model_type") in _CONV1D else (0, 1)
    if not config.get("layers_to_transform") and (n := _layers(loras)) != expected:
        raise MedReflError(f"{where}: is for {n} layers, but the model {model} has {expected}: another base")
    for lora, shape in loras.items():
        layer = re.sub(r"\.lora_[AB]\.", ".", lora).removeprefix("base_model.model.")
        base_shape = of_model.get(layer)
        if base_shape is None or len(base_shape) != 2:
            continue
        # A has shape [rank, inputs], B has shape [outputs, rank].
        found, needed = (shape[1], base_shape[inputs]) if ".lora_A." in lora else (shape[0], base_shape[outputs])
        if found != needed:
            sizes = f"{layer.removesuffix('.weight')} has {found} where the model {model} has {needed}"
            raise MedReflError(f"{where}: {sizes}: another base")


def check_adapter_base(folder: Path, model: str) -> None:
    """Check an adapter's folder, and that its config names ``model`` as its base.

    Two local folders are the same model where their weights are the same bytes; other names are the same model where
    their last parts agree.

    Raises:
        MedReflError: as ``check_adapter_folder``, or the adapter names another base.
    """
    check_adapter_folder(folder, model)
    base = _object(folder / "adapter_config.json", f"adapter {folder}").get("base_model_name_or_path")
    if base and not _same_model(Path(base), Path(resolve_model(model))):
        raise MedReflError(f"adapter {folder}: was trained on {base}, expected one of the model {model}")


def is_saved_in_4_bit(config: Mapping[str, Any]) -> bool:
    """Return whether a model's config.json says that bitsandbytes saved its weights in 4 bit."""
    quantization = config.get("quantization_config") or {}
    # Older folders name no method.
    return quantization.get("quant_method", "bitsandbytes") == "bitsandbytes" and bool(
        quantization.get("load_in_4bit") or quantization.get("_load_in_4bit")
    )


def _same_model(a: Path, b: Path) -> bool:
    if not (a.is_dir() and b.is_dir()):
        return a.name == b.name
    names = {path.name for folder in (a, b) for path in folder.glob("*.safetensors")}
    return a.resolve() == b.resolve() or not any(filecmp.cmpfiles(a, b, names, shallow=False)[1:])


def _check_kind(config: Mapping[str, Any], where: str) -> str:
    """Return the model type, one that transformers knows."""
    # Imported here: it takes half a second, which a run of unchanged stages saves. It imports no torch.
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        own = "; the code beside it (auto_map) is never run" if config.get("auto_map") else ""
        raise MedReflError(f"{where}: its model_type {kind!r} is none that transformers knows{own}")
    return str(kind)


def _check_architecture(config: Mapping[str, Any], where: str) -> None:
    kind, classes = _check_kind(config, where), config.get("architectures") or []
    if config.get("is_encoder_decoder") or (classes and not any(_CAUSAL.search(str(name)) for name in classes)):
        found = ", ".join(map(str, classes)) or kind
        raise MedReflError(f"{where}: is a {found}, expected a causal language model, such as LlamaForCausalLM")


def _check_quantization(config: Mapping[str, Any], where: str) -> None:
    quantization = config.get("quantization_config")
    if not quantization or (isinstance(quantization, dict) and is_saved_in_4_bit(config)):
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    bits = " in 8 bit" if method == "bitsandbytes" else ""
    raise MedReflError(
        f"{where}: its weights are saved quantized by {method}{bits}, expected 16 or 32 bit, or bitsandbytes in 4 bit"
    )


def _check_tokenizer(folder: Path, where: str) -> int:
    """Return one more than the tokenizer's largest id; 0 for a kind that only transformers reads."""
    file, tokens = folder / "tokenizer.json", 0
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            tokens = 1 + max(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True).values(), default=-1)
        except Exception as error:  # the Rust library raises nothing narrower
            raise MedReflError(f"{where}: its tokenizer.json cannot be read ({_line(error)})") from None
    elif not any((folder / name).is_file() for name in _OTHER_TOKENIZERS):
        raise MedReflError(f"{where}: no tokenizer there, expected tokenizer.json")
    return tokens


def _check_template(folder: Path, where: str) -> None:
    """Check that there is a chat template, in any of the places where one is saved, and that Jinja can parse it."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = None
    for name in ("tokenizer_config.json", "chat_template.json"):
        if template is None and (folder / name).is_file():
            template = _object(folder / name, where).get("chat_template")
    if (beside := folder / "chat_template.jinja").is_file():
        template = beside.read_text(encoding="utf-8", errors="replace")
    if isinstance(template, list):  # several templates with names, of which "default" renders a plain chat
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if not template:
        raise MedReflError(f"{where}: its tokenizer has no chat template, which every prompt goes through")
    if isinstance(template, str):
        # transformers' own tag, which plain Jinja does not know, only marks a part of the text.
        plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
        try:
            ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
        except TemplateSyntaxError as error:
            raise MedReflError(f"{where}: its chat template is broken (line {error.lineno}: {_line(error)})") from None


def _weights(folder: Path, where: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor in ``stem``.safetensors, or in the parts that its index names.

    A 4-bit weight of bitsandbytes has its shape before packing.
    """
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
    packed: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():
                    if not (packing := _PACKING.match(name)):
                        shapes[name] = tuple(tensors.get_slice(name).get_shape())
                    elif packing[2].startswith("quant_state."):
                        packed[packing[1]] = tuple(json.loads(bytes(tensors.get_tensor(name)))["shape"])
        except (OSError, SafetensorError) as error:
            raise MedReflError(f"{where}: {file.name} cannot be read ({_line(error)})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise MedReflError(f"{where}: {file.name} has a broken 4-bit weight ({_line(error)})") from None
    return shapes | packed


def _layers(shapes: Shapes) -> int:
    return 1 + max((int(found[1]) for name in shapes if (found := _LAYER.search(name))), default=-1)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _config_layers(config: Mapping[str, Any]) -> int | None:
    text = _text_config(config)
    return next((text[name] for name in _LAYER_COUNTS if isinstance(text.get(name), int)), None)


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
