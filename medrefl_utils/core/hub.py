"""Check whether a model or data set is in the local cache or on the hub, within seconds and without importing torch."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal

from medrefl_utils.core.errors import MedReflError

SECONDS = 3.0
"""Seconds that the hub has to respond before it counts as unreachable. Its own client retries for half a minute."""


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE restricts reading to the local cache."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def has_cached_dataset(name: str) -> bool:
    """Return whether the cache of the hub, or of the library datasets, has a folder for this data set."""
    from huggingface_hub import constants

    prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
    downloaded = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    return downloaded.is_dir() or Path(prepared, name.replace("/", "___")).is_dir()


def hub_refusal(kind: Literal["model", "dataset"], name: str) -> Exception | None:
    """Return the exception that says why ``name`` cannot be downloaded now, network errors included; None if it can.

    The hub describes a gated repository to everyone, and refuses only the download. So it is also asked whether this
    token may download (``HfApi.auth_check``).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    failed: list[Exception | None] = [TimeoutError(f"no reply within {SECONDS:.0f} seconds")]
    found = threading.Event()

    def ask() -> None:
        try:
            HfApi().repo_info(name, repo_type=kind, timeout=SECONDS)
            failed[0] = None  # it is there; only a clear refusal of the second question counts
            found.set()
        except Exception as error:  # the HTTP client's own errors have no common base
            failed[0] = error
            return
        with suppress(Exception):  # a mirror that does not know this question, or a slow one
            try:
                HfApi().auth_check(name, repo_type=kind)
            except HfHubHTTPError as error:
                if error.response.status_code in (401, 403):
                    failed[0] = error

    # In a thread, since a timeout of the HTTP client does not cover the name server.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if found.is_set():
        thread.join(SECONDS)
    return failed[0]


def refusal_text(kind: Literal["model", "dataset"], name: str, error: Exception) -> str:
    """Return in words why the hub refuses ``name``; for a gated repository, what to accept and where the token goes.

    Args:
        kind: of the repository.
        name: its hub id.
        error: what ``hub_refusal`` returned.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, GatedRepoError) and get_token() is None:
        return f"gated on the hub: accept the licence at {page}, then export HF_TOKEN=hf_..., which is not set"
    if isinstance(error, GatedRepoError):
        return (
            f"gated on the hub, and the token in HF_TOKEN may not download it: accept the licence at {page} with the"
            " token's account, and allow the token to read gated repositories"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"not available on the hub: {page} does not exist, or is private and needs HF_TOKEN"
    if getattr(getattr(error, "response", None), "status_code", None) == 401:
        return f"not available on the hub, which refuses the token in HF_TOKEN ({one_line(error)})"
    return f"not available on the hub ({one_line(error)})"


def resolve_model(model: str) -> str:
    """Return the path of a model folder, or a hub id that is in the local cache or on the hub.

    Raises:
        MedReflError: neither a folder nor an available hub id; one line, within ``SECONDS``.
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
        raise MedReflError(f"model {model}: no such folder, and {refusal_text('model', model, error)}")
    return model


def one_line(error: BaseException) -> str:
    """Return an error's class and message on one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
