"""`GET /v1/kvstet/substitutions`: what may be said otherwise than it was sent, and how often it was."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.envelopes import json_response
from kvstet.api.ports import Services
from kvstet.context.equivalent.catalogue import SENTENCES


class Substitutions:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list(self, request: Request) -> Response:
        """``enabled``: for requests at a fidelity at which anything is substituted; the server's own is told, too."""
        options, counts = self._services.options, self._services.metrics.num_substituted
        data = [
            {"name": name, "what": what, "enabled": name not in options.no_substitute, "requests": counts[name]}
            for name, what in SENTENCES.items()
        ]
        return json_response({"object": "list", "fidelity": options.fidelity, "data": data})
