"""Convert a GGUF file into an ordinary model folder: safetensors in 16 bit, config, tokenizer and chat template.

transformers reads the file and dequantizes its weights. The weights then go into a model of the same config without
the quantization, so that the folder loads, trains and merges like any other folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import one_line
from medrefl_utils.core.store import content_hash, whole_folder, write_text
from medrefl_utils.models.loading import load_tokenizer
from medrefl_utils.models.model_shape import ModelShape

SOURCE = "source.json"
"""In a converted folder: the name and the sha256 of the GGUF file, and what the file says of its origin."""
_MAGIC = b"GGUF"
_ORIGIN = ("general.name", "general.organization", "general.license")


def convert_gguf(file: Path, folder: Path) -> bool:
    """Write the model of a GGUF file to ``folder``; return False where the folder holds that model already.

    The folder appears whole or not at all. Its weights are bfloat16.

    Raises:
        MedReflError: no such file, a file that is not GGUF, an architecture that transformers does not read, a file
            without a tokenizer or a chat template, or a folder that holds something else.
    """
    _check_magic(file)
    found = {"file": file.name, "sha256": content_hash(file)}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if converted_from(folder).get("sha256") == found["sha256"]:
            return False
        raise MedReflError(f"{folder}: exists and was not converted from {file.name}; name a new folder")
    model, tokenizer = _read(file)
    with whole_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        write_text(new / SOURCE, json.dumps(found | _origin(file), indent=2, ensure_ascii=False) + "\n")
        try:
            load_tokenizer(str(new))
        except MedReflError as error:
            reason = str(error).removeprefix(f"model {new}: ")
            raise MedReflError(f"{file}: {reason}; no folder is written") from None
    return True


def converted_from(folder: Path) -> dict[str, Any]:
    """Return what ``source.json`` of a converted folder says; empty where there is none."""
    try:
        found = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe_folder(folder: Path) -> str:
    """Return one line on a model folder: path, architecture, parameters, context, and origin where it is known."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    source = converted_from(folder)
    architecture = ", ".join(config.architectures or [config.model_type])
    parts = [architecture, f"{ModelShape.of(config).weights / 1e6:.4g} million parameters"]
    if context := getattr(config.get_text_config(), "max_position_embeddings", None):
        parts.append(f"context of {context} tokens")
    if file := source.get("file"):
        parts.append(f"from {file}")
    if licence := source.get("general.license"):
        parts.append(f"licence {licence}")
    return f"{folder}: {', '.join(parts)}"


def _check_magic(file: Path) -> None:
    try:
        with open(file, "rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise MedReflError(f"{file}: cannot be read: {error.strerror}") from None
    if magic != _MAGIC:
        raise MedReflError(f"{file}: is not a GGUF file: it begins with {magic!r}, expected {_MAGIC!r}")


def _read(file: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a GGUF file; the model has no quantization."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        loaded, report = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers' GGUF reader has no error class of its own
        raise MedReflError(f"{file}: transformers cannot read this GGUF file: {one_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise MedReflError(f"{file}: lacks {len(missing)} tensors of a {type(loaded).__name__}, first {missing[0]}")
    config = loaded.config
    for name in ("quantization_config", "_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    return model, tokenizer


def _origin(file: Path) -> dict[str, str]:
    """Return the metadata of the file that name the model, its publisher and its licence."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    return {name: str(fields[name].contents()) for name in _ORIGIN if name in fields}
