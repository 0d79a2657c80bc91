"""OpenAI's Chat Completions, as its many servers and clients speak it."""

from kvstet.dialects.chat.dialect import Chat

__all__ = ["Chat"]
