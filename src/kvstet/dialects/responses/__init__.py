"""OpenAI's Responses API, as Codex speaks it."""

from kvstet.dialects.responses.dialect import Responses

__all__ = ["Responses"]
