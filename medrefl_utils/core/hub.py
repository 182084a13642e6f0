"""Ask the model hub whether it gives something out: once, within seconds, and without importing torch."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Literal

from medrefl_utils.core.errors import MedReflError

SECONDS = 3.0
"""How long the hub has to answer before its absence is an error; its own clients would retry for half a minute."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that nothing but the cache may be read."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def has_cached_dataset(name: str) -> bool:
    """Whether the hub's cache, or that of the library datasets, has a folder for this dataset."""
    from huggingface_hub import constants

    prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
    downloaded = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    return downloaded.is_dir() or Path(prepared, name.replace("/", "___")).is_dir()


def hub_refusal(kind: Literal["model", "dataset"], name: str) -> Exception | None:
    """What the hub, or the way to it, raises when asked for ``name``; None where it gives it out."""
    from huggingface_hub import HfApi

    failed: list[Exception | None] = [TimeoutError(f"no reply within {SECONDS:.0f} seconds")]

    def ask() -> None:
        try:
            api = HfApi()
            (api.model_info if kind == "model" else api.dataset_info)(name, timeout=SECONDS)
            failed[0] = None
        except Exception as error:  # the HTTP client's own errors have no common base
            failed[0] = error

    # In a thread, since a name server that does not reply heeds no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return failed[0]


def resolve_model(model: str) -> str:
    """A model folder's path, or a hub id that can be had: from the local cache, or on the hub now.

    Raises:
        MedReflError: one line, within ``SECONDS``, where neither holds.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MedReflError(f"model {model}: the folder has no config.json, so it is not a model folder")
        return str(folder)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise MedReflError(f"model {model}: no such folder, and not a hub id of the form owner/name")
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return model
    if is_offline():
        raise MedReflError(f"model {model}: no such folder, not in the hub's local cache, and HF_HUB_OFFLINE is set")
    error = hub_refusal("model", model)
    if error is not None:
        raise MedReflError(f"model {model}: no such folder, nor a model that the hub gives out ({one_line(error)})")
    return model


def one_line(error: BaseException) -> str:
    """An error's name and message, cut to one line of a terminal or two."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
