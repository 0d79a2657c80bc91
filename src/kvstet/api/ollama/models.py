"""What Ollama's clients ask about models: tags, show, ps and version. What else Ollama does with models is refused."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from kvstet import __version__
from kvstet.api.body import decode, in_worker, read_body
from kvstet.api.envelopes import json_response
from kvstet.api.ollama.events import timestamp
from kvstet.api.ollama.requests import ShowRequest
from kvstet.api.ports import ModelStatus, Services
from kvstet.engine.messages import ModelInfo

API_VERSION = "0.13.0"
"""The version of Ollama whose API this is: clients ask for some version at least."""

_NEVER = "2300-01-01T00:00:00Z"
"""When a model is unloaded, as far as clients need to know."""

_QUANTIZATION = re.compile(r"\b(I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4\w*|BF16|F16|F32)(?: - ([SML])\w*)?")
"""In a description of libllama's, such as ``llama 1B Q4_K - Medium``."""

_THINKING = ("enable_thinking", "reasoning_effort", "reasoning_content", "<think>")
"""What a chat template mentions if its model thinks."""

_MODELS_ARE_GIVEN = "This server serves the models that it was started with: it cannot {}."
_REFUSALS = {
    "pull": _MODELS_ARE_GIVEN.format("pull others"),
    "push": _MODELS_ARE_GIVEN.format("push them"),
    "create": _MODELS_ARE_GIVEN.format("create others"),
    "copy": _MODELS_ARE_GIVEN.format("copy them"),
    "delete": _MODELS_ARE_GIVEN.format("delete them"),
    "embed": "This server generates text; it computes no embeddings.",
    "embeddings": "This server generates text; it computes no embeddings.",
}

REFUSED = tuple(f"/api/{name}" for name in _REFUSALS)
"""Paths of what Ollama can do, and this server cannot."""


class ModelLibrary:
    """The endpoints that generate nothing."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._since = timestamp(datetime.now(UTC))

    async def tags(self, request: Request) -> Response:
        listed = {name: status for status in reversed(self._services.models.statuses()) for name in status.names}
        return json_response({"models": [self._listed(name, listed[name]) for name in self._services.model_names]})

    async def running(self, request: Request) -> Response:
        """The models that are loaded."""
        loaded = [status for status in self._services.models.statuses() if status.engine and status.engine.is_ready]
        models = [self._listed(status.names[0], status) | _running(status) for status in loaded]
        return json_response({"models": models})

    async def show(self, request: Request) -> Response:
        """Loads nothing: clients ask about every model that is listed."""
        body = await read_body(request, self._services.options.max_body_bytes)
        fields = await in_worker(len(body), partial(decode, body, ShowRequest))
        name = fields.model or fields.name
        status = self._services.models.status(name)
        template = status.info.chat_template if status.info else None
        if status.engine is not None:
            async with self._services.models.use(name) as served:
                template = served.renderer.template_source
        return json_response(self._shown(status, template or ""))

    async def version(self, request: Request) -> Response:
        return json_response({"version": API_VERSION, "kvstet": __version__})

    async def refuse(self, request: Request) -> Response:
        raise HTTPException(501, _REFUSALS[request.url.path.removeprefix("/api/")])

    def _listed(self, name: str, status: ModelStatus) -> dict[str, Any]:
        return {
            "name": name,
            "model": name,
            "modified_at": self._since,
            "size": status.info.size_bytes if status.info else 0,
            "digest": _digest_of(status),
            "details": _details_of(status.info),
        }

    def _shown(self, status: ModelStatus, template: str) -> dict[str, Any]:
        info = status.info
        thinks = any(word in template for word in _THINKING)
        return {
            "license": "",
            "modelfile": "",
            "parameters": f"num_ctx {info.context_length}" if info else "",
            "template": template,
            "details": _details_of(info),
            "model_info": _model_info_of(info, status.names[0]) if info else {},
            # Tools are told to every model, as text if its template knows none.
            "capabilities": ["completion", "tools", *(["thinking"] if thinks else [])],
            "modified_at": self._since,
        }


def _running(status: ModelStatus) -> dict[str, Any]:
    length = {"context_length": status.info.context_length} if status.info else {}
    return {"expires_at": _NEVER, **length}


def _model_info_of(info: ModelInfo, name: str) -> dict[str, Any]:
    """Clients cut their prompts to the context length: it is the one that requests may fill, not the training's."""
    return {
        "general.architecture": info.architecture,
        "general.basename": name,
        "general.parameter_count": info.num_parameters,
        f"{info.architecture}.context_length": info.context_length,
        f"{info.architecture}.vocab_size": info.vocab_size,
    }


def _details_of(info: ModelInfo | None) -> dict[str, Any]:
    """What is known of a model that was never loaded is its format."""
    known = {"parent_model": "", "format": "gguf"}
    if info is None:
        return known
    return {
        **known,
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": _in_short(info.num_parameters),
        "quantization_level": _quantization_of(info.description),
    }


def _digest_of(status: ModelStatus) -> str:
    """Differs between models, and is the same after a restart. Nobody has read the whole file to hash it."""
    return hashlib.sha256(status.names[0].encode()).hexdigest()


def _in_short(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _quantization_of(description: str) -> str:
    """As Ollama writes it: ``Q4_K_M``."""
    match = _QUANTIZATION.search(description)
    return "unknown" if match is None else "_".join(part for part in match.groups() if part)
