"""Anthropic's Messages API, as Claude Code and the imitators of the API speak it."""

from kvstet.dialects.messages.reading import read_request
from kvstet.dialects.messages.replies import MessagesReader
from kvstet.dialects.messages.streams import MessagesWriter, write_reply
from kvstet.dialects.messages.writing import write_request

__all__ = ["MessagesReader", "MessagesWriter", "read_request", "write_reply", "write_request"]
