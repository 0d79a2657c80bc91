"""OpenAI's Chat Completions, as its many servers and clients speak it."""

from kvstet.dialects.chat.reading import read_request
from kvstet.dialects.chat.replies import ChatReader
from kvstet.dialects.chat.streams import ChatWriter, write_reply
from kvstet.dialects.chat.writing import write_request

__all__ = ["ChatReader", "ChatWriter", "read_request", "write_reply", "write_request"]
