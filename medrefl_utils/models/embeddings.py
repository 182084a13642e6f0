"""Embed texts as vectors of length 1: with a model folder, a hub id, or an endpoint."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import one_line, resolve_model

_BATCH = 64  # texts that a model reads together
_REQUEST = 256  # texts of one request to an endpoint


class Embedder(Protocol):
    """Embeds texts; ``key`` names what embeds, so that kept vectors of another model are not used."""

    key: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return one vector of length 1 per text, (texts, dimensions), float32."""
        ...


def open_embedder(model: str = "", *, endpoint: str = "", endpoint_model: str = "") -> Embedder:
    """Return the embedder that these parameters select.

    Args:
        model: folder or hub id of an encoder (such as MedEmbed-large). Its ``1_Pooling/config.json`` says how it pools
            the tokens' vectors; without this file, their mean is taken.
        endpoint: base URL of an OpenAI-compatible server with ``/embeddings``; it replaces ``model``.
        endpoint_model: name of the model on the server.

    Raises:
        MedReflError: neither is given, or the model does not exist or load.
    """
    if endpoint:
        return _Endpoint(endpoint, endpoint_model)
    if not model:
        raise MedReflError("embeddings: neither a model nor an endpoint is given")
    return _Folder(model)


class _Folder:
    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        name = resolve_model(model)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            self.model = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
        except Exception as error:  # their readers raise what they like
            raise MedReflError(f"model {model}: it does not load as an encoder: {one_line(error)}") from None
        self.model.to(self.device).eval()
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Some tokenizers give more than their model reads.
        self.inputs = frozenset(inspect.signature(self.model.forward).parameters)
        self.pooling = _pooling(name)
        self.key = f"{model} {self.pooling}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        # Texts of similar length are read together, so that little is padded.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            batch = self.tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(self.device)
            with torch.inference_mode():
                hidden = self.model(**{name: batch[name] for name in batch if name in self.inputs}).last_hidden_state
            hidden = hidden.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            if self.pooling == "cls":
                pooled = hidden[:, 0]
            elif self.pooling == "lasttoken":
                pooled = hidden[torch.arange(len(some)), mask.squeeze(-1).sum(1) - 1]
            else:
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            for i, row in zip(some, pooled.cpu().numpy(), strict=True):
                rows[i] = row
        return _unit(np.stack(rows)) if rows else np.zeros((0, self.model.config.hidden_size), np.float32)


def _pooling(name: str) -> str:
    """Return "cls", "lasttoken" or "mean": what the model's sentence-transformers configuration says."""
    file = Path(name) / "1_Pooling/config.json"
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            file = Path(hf_hub_download(name, "1_Pooling/config.json"))
        except (HfHubHTTPError, OSError):
            return "mean"
    if not file.is_file():
        return "mean"
    try:
        modes = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MedReflError(f"{file} is not JSON: {one_line(error)}") from None
    return next((mode for mode in ("cls", "lasttoken") if modes.get(f"pooling_mode_{mode}_token") or
                 modes.get(f"pooling_mode_{mode}")), "mean")  # fmt: skip


class _Endpoint:
    def __init__(self, url: str, model: str) -> None:
        if not model:
            raise MedReflError(f"endpoint {url}: the name of its embedding model is missing")
        self.url, self.model, self.key = url, model, f"{url} {model}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        import openai

        from medrefl_utils.models.generators.servers.client import api_key, blotted

        client = openai.OpenAI(base_url=self.url, api_key=api_key() or "none", max_retries=6, timeout=600.0)
        rows: list[list[float]] = []
        for start in range(0, len(texts), _REQUEST):
            some = list(texts[start : start + _REQUEST])
            where = f"endpoint {self.url}, model {self.model}"
            try:
                reply = client.embeddings.create(model=self.model, input=some, encoding_format="float")
            except openai.APIStatusError as error:
                raise MedReflError(f"{where}: HTTP {error.status_code} for embeddings") from None
            except openai.OpenAIError as error:
                raise MedReflError(f"{where}: no embeddings: {blotted(one_line(error))}") from None
            found = sorted(reply.data, key=lambda one: one.index)
            if len(found) != len(some):
                raise MedReflError(f"{where}: {len(found)} vectors for {len(some)} texts")
            rows += [one.embedding for one in found]
        return _unit(np.array(rows, dtype=np.float32).reshape(len(texts), -1))


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1.0)).astype(np.float32)
