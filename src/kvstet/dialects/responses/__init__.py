"""OpenAI's Responses API, as Codex speaks it."""

from kvstet.dialects.responses.reading import read_request
from kvstet.dialects.responses.replies import ResponsesReader
from kvstet.dialects.responses.streams import ResponsesWriter, write_reply
from kvstet.dialects.responses.writing import write_request

__all__ = ["ResponsesReader", "ResponsesWriter", "read_request", "write_reply", "write_request"]
