"""The HTTP server. `create_app` makes the ASGI application; `serve` listens."""

from kvstet.api.app import create_app
from kvstet.api.server import serve

__all__ = ["create_app", "serve"]
