"""Select the base or a LoRA adapter on a server.

vLLM and SGLang serve an adapter under a name of its own; they may also load one at run time. llama.cpp applies the
adapters that it was started with to every request, unless the request sets their scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.store import content_hash
from medrefl_utils.models.generators.servers.client import ServerClient

_ROUTES = {"/v1/load_lora_adapter": "{adapter}", "/load_lora_adapter": "{base}:{adapter}"}
"""{route that loads an adapter (vLLM, SGLang): the name of the model with it}"""


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter on a server: its folder here, its name there (""), and whether the server has only this model."""

    folder: Path
    name: str = ""
    """its name on the server; "": the server loads it from ``folder`` at run time, or has just one"""
    alone: bool = False
    """the server was started for the adapter only (``adapter_endpoint``), so that there is no base to mistake it for"""


@dataclass(frozen=True)
class Weights:
    """What a request names to get the right weights: a model, and llama.cpp's scales."""

    model: str
    lora: tuple[dict[str, Any], ...] = ()

    def body(self) -> dict[str, Any]:
        """Return these as a part of a request's JSON."""
        return {"model": self.model} | ({"lora": list(self.lora)} if self.lora else {})


async def select_weights(client: ServerClient, model: str, adapter: ServedAdapter | None) -> Weights:
    """Return how to ask for the base (without an adapter) or for the adapter.

    Raises:
        MedReflError: the server has no such adapter and does not load it, or it would answer with the base.
    """
    status, loaded = await client.ask_route("/lora-adapters")
    if status == 200 and isinstance(loaded, list):
        return Weights(model, _scales(client, loaded, adapter))
    if adapter is None:
        return Weights(model)
    if adapter.alone:
        return Weights(adapter.name or model)
    if not adapter.name:
        return Weights(await _loaded(client, model, adapter.folder))
    if adapter.name == model:
        raise MedReflError(
            f"{client.where}: endpoint_adapter is the base's own name, so that base and adapter would be the same"
        )
    await _check_names_count(client, adapter.name)
    return Weights(adapter.name)


def _scales(client: ServerClient, loaded: list[Any], adapter: ServedAdapter | None) -> tuple[dict[str, Any], ...]:
    """Return the scale of each adapter of a llama.cpp server: 1 for the wanted one, else 0."""
    known = [one for one in loaded if isinstance(one, dict) and "id" in one]
    if adapter is None:
        return tuple({"id": one["id"], "scale": 0.0} for one in known)
    fitting = [one for one in known if not adapter.name or adapter.name in _names(one)]
    if adapter.alone and not known:
        return ()  # its model has the adapter merged
    if len(fitting) != 1:
        there = ", ".join(f"{one['id']} ({one.get('path', '')})" for one in known) or "none"
        what = f"the adapter {adapter.name!r}" if adapter.name else "one adapter"
        raise MedReflError(
            f"{client.where}: this llama.cpp server has the adapters {there}, expected {what}: start it with --lora "
            "FILE.gguf, and set endpoint_adapter to the adapter's number or file if it has several"
        )
    return tuple({"id": one["id"], "scale": float(one is fitting[0])} for one in known)


def _names(one: dict[str, Any]) -> set[str]:
    path = str(one.get("path", ""))
    return {str(one["id"]), path, Path(path).name, Path(path).stem} - {""}


async def _loaded(client: ServerClient, model: str, folder: Path) -> str:
    """Let the server load an adapter; return the model's name with it. The name changes with the adapter's content."""
    route, form = await loading_route(client)
    name = f"medrefl-{content_hash(folder)[:16]}"
    status, told = await client.ask_route(route, {"lora_name": name, "lora_path": str(folder.resolve())})
    if status == 200 or "already" in str(told):
        return form.format(base=model, adapter=name)
    words = " ".join(str(told).split())[:300]
    raise MedReflError(f"{client.where}: the server does not load {folder}: HTTP {status}: {words}")


async def loading_route(client: ServerClient) -> tuple[str, str]:
    """Return the route that loads an adapter at run time, and the form of the name of the model with it.

    Raises:
        MedReflError: the server has no such route.
    """
    for route, form in _ROUTES.items():
        status, _ = await client.ask_route(route)
        if status == 405:  # a route that is there refuses GET; one that is not gives 404
            return route, form
    raise MedReflError(
        f"{client.where}: the server loads no adapter at run time: set endpoint_adapter to the name of an adapter that "
        "it serves, or adapter_endpoint to a second server with the adapter (notebooks/serving.md; in 07, which has "
        "many adapters, start it so that it loads them)"
    )


async def _check_names_count(client: ServerClient, name: str) -> None:
    """Check that the server refuses a name that it does not have.

    One that ignores names (LM Studio, some proxies) answers with the base: base and adapter would be equal without a
    sign of it.
    """
    body = {"model": f"{name}-is-not-there", "messages": [{"role": "user", "content": "Hi"}]}
    for limit in ("max_tokens", "max_completion_tokens"):
        status, _ = await client.ask_route(
            f"{client.url.removeprefix(client.root)}/chat/completions", body | {limit: 1}
        )
        if status == 200:
            raise MedReflError(
                f"{client.where}: the server answers under any model's name, so endpoint_adapter {name!r} may be the "
                "base: set adapter_endpoint to a second server with the adapter (notebooks/serving.md; SGLang: "
                "MODEL:ADAPTER)"
            )
