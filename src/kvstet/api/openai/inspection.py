"""Endpoints that look at the model and its prompts: models, tokenize, detokenize, apply-template."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvstet import __version__
from kvstet.api.body import decode, in_worker
from kvstet.api.envelopes import json_response
from kvstet.api.job import render
from kvstet.api.openai.prompts import conversation_of, detokenize
from kvstet.api.openai.requests import DetokenizeRequest, TemplateRequest, TokenizeRequest
from kvstet.api.ports import ModelStatus, Renderer, Served, Services
from kvstet.engine.messages import ModelInfo
from kvstet.types import Tokenizer


class Inspection:
    """The endpoints that generate nothing."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        statuses = self._services.models.statuses()
        data = {name: self._model(name, status) for status in reversed(statuses) for name in status.names}
        return json_response({"object": "list", "data": [data[name] for name in self._services.model_names]})

    async def model(self, request: Request) -> Response:
        """Of a server with one model, any name is that model, as for completions."""
        name = request.path_params["name"]
        return json_response(self._model(name, self._services.models.status(name)))

    async def props(self, request: Request) -> Response:
        """As llama-server tells its clients what it serves; of several models, the one named in the query."""
        async with self._services.models.use(request.query_params.get("model")) as served:
            return json_response(_props(served))

    async def slots(self, request: Request) -> Response:
        """As many as requests may run; those that run come first, whoever they are. None where nothing is loaded."""
        engine = self._services.models.status(request.query_params.get("model")).engine
        if engine is None:
            return json_response([])
        info, num_running = engine.info, engine.stats().num_running
        return json_response(
            [
                {"id": slot, "n_ctx": info.context_length, "is_processing": slot < num_running}
                for slot in range(info.parallel)
            ]
        )

    async def tokenize(self, request: Request, body: bytes, served: Served) -> Response:
        return json_response(await in_worker(len(body), partial(_tokenize, body, served.tokenizer)))

    async def detokenize(self, request: Request, body: bytes, served: Served) -> Response:
        return json_response(await in_worker(len(body), partial(_detokenize, body, served.tokenizer)))

    async def apply_template(self, request: Request, body: bytes, served: Served) -> Response:
        return json_response(await in_worker(len(body), partial(_apply_template, body, served.renderer)))

    def _model(self, name: str, status: ModelStatus) -> dict[str, Any]:
        listed: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "kvstet",
            "meta": None if status.info is None else _meta(status.info),
        }
        if len(self._services.models.statuses()) > 1:
            # As llama-server's router has it.
            listed["status"] = {"value": "unloaded" if status.engine is None else "loaded"}
        return listed


def _meta(info: ModelInfo) -> dict[str, int]:
    return {
        "n_vocab": info.vocab_size,
        "n_ctx_train": info.training_context_length,
        "n_ctx": info.context_length,
        "n_params": info.num_parameters,
        "size": info.size_bytes,
    }


def _props(served: Served) -> dict[str, Any]:
    info, name = served.engine.info, served.names[0]
    return {
        "default_generation_settings": {"n_ctx": info.context_length},
        "total_slots": info.parallel,
        "model_alias": name,
        "model_path": name,
        "chat_template": served.renderer.template_source,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"kvstet-{__version__}",
        "is_sleeping": False,
    }


def _tokenize(body: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    fields = decode(body, TokenizeRequest)
    tokens: list[int] = tokenizer.tokenize(
        fields.content, add_special=fields.add_special, parse_special=fields.parse_special
    ).tolist()
    if not fields.with_pieces:
        return {"tokens": tokens}
    return {"tokens": [_with_piece(token, tokenizer) for token in tokens]}


def _detokenize(body: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    tokens = decode(body, DetokenizeRequest).tokens
    return {"content": detokenize(tokens, tokenizer, param="tokens")}


def _apply_template(body: bytes, renderer: Renderer) -> dict[str, Any]:
    prompt = render(renderer, conversation_of(decode(body, TemplateRequest)))
    spans = [{"index": span.index, "role": span.role, "start": span.start, "stop": span.stop} for span in prompt.spans]
    return {"prompt": prompt.text, "spans": spans}


def _with_piece(token: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The piece as text, or as a list of bytes where it is not whole characters, as in llama-server."""
    data = tokenizer.piece(token)
    try:
        piece: str | list[int] = data.decode()
    except UnicodeDecodeError:
        piece = list(data)
    return {"id": token, "piece": piece}
