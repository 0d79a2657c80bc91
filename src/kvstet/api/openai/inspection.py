"""Endpoints that look at the model and its prompts: models, tokenize, detokenize, apply-template."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvstet import __version__
from kvstet.api.body import decode, in_worker, read_body
from kvstet.api.envelopes import json_response
from kvstet.api.job import render
from kvstet.api.openai.prompts import conversation_of, detokenize
from kvstet.api.openai.requests import DetokenizeRequest, TemplateRequest, TokenizeRequest
from kvstet.api.ports import Services
from kvstet.types import Tokenizer


class Inspection:
    """The endpoints that generate nothing."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        data = [self._model(name) for name in self._services.model_names]
        return json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """Any name is a model, as for completions."""
        return json_response(self._model(request.path_params["name"]))

    async def props(self, request: Request) -> Response:
        """As llama-server tells its clients what it serves."""
        info = self._services.engine.info
        return json_response(
            {
                "default_generation_settings": {"n_ctx": info.context_length},
                "total_slots": info.parallel,
                "model_alias": info.name,
                "model_path": info.name,
                "chat_template": self._services.renderer.template_source,
                "modalities": {"vision": False, "audio": False},
                "build_info": f"kvstet-{__version__}",
                "is_sleeping": False,
            }
        )

    async def slots(self, request: Request) -> Response:
        """As many as requests may run; those that run come first, whoever they are."""
        info, num_running = self._services.engine.info, self._services.engine.stats().num_running
        return json_response(
            [
                {"id": slot, "n_ctx": info.context_length, "is_processing": slot < num_running}
                for slot in range(info.parallel)
            ]
        )

    async def tokenize(self, request: Request) -> Response:
        body = await self._body(request)
        return json_response(await in_worker(len(body), partial(self._tokenize, body)))

    async def detokenize(self, request: Request) -> Response:
        body = await self._body(request)
        return json_response(await in_worker(len(body), partial(self._detokenize, body)))

    async def apply_template(self, request: Request) -> Response:
        body = await self._body(request)
        return json_response(await in_worker(len(body), partial(self._apply_template, body)))

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._services.options.max_body_bytes)

    def _model(self, name: str) -> dict[str, Any]:
        info = self._services.engine.info
        meta = {
            "n_vocab": info.vocab_size,
            "n_ctx_train": info.training_context_length,
            "n_ctx": info.context_length,
            "n_params": info.num_parameters,
            "size": info.size_bytes,
        }
        return {"id": name, "object": "model", "created": self._created, "owned_by": "kvstet", "meta": meta}

    def _tokenize(self, body: bytes) -> dict[str, Any]:
        fields = decode(body, TokenizeRequest)
        tokens: list[int] = self._services.tokenizer.tokenize(
            fields.content, add_special=fields.add_special, parse_special=fields.parse_special
        ).tolist()
        if not fields.with_pieces:
            return {"tokens": tokens}
        return {"tokens": [_with_piece(token, self._services.tokenizer) for token in tokens]}

    def _detokenize(self, body: bytes) -> dict[str, Any]:
        tokens = decode(body, DetokenizeRequest).tokens
        return {"content": detokenize(tokens, self._services.tokenizer, param="tokens")}

    def _apply_template(self, body: bytes) -> dict[str, Any]:
        prompt = render(self._services.renderer, conversation_of(decode(body, TemplateRequest)))
        spans = [
            {"index": span.index, "role": span.role, "start": span.start, "stop": span.stop} for span in prompt.spans
        ]
        return {"prompt": prompt.text, "spans": spans}


def _with_piece(token: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The piece as text, or as a list of bytes where it is not whole characters, as in llama-server."""
    data = tokenizer.piece(token)
    try:
        piece: str | list[int] = data.decode()
    except UnicodeDecodeError:
        piece = list(data)
    return {"id": token, "piece": piece}
