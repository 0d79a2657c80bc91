"""Anthropic's Messages API, as Claude Code and the imitators of the API speak it."""

from kvstet.dialects.messages.dialect import Messages

__all__ = ["Messages"]
