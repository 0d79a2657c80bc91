"""The dialect as one object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kvstet.dialects.failures import failure_in_body, openai_error
from kvstet.dialects.reply import Failure
from kvstet.dialects.request import Request, Written
from kvstet.dialects.responses.reading import read_request
from kvstet.dialects.responses.replies import ResponsesReader
from kvstet.dialects.responses.streams import ResponsesWriter, write_reply
from kvstet.dialects.responses.writing import write_request
from kvstet.dialects.whole import Reply


class Responses:
    name: Literal["responses"] = "responses"
    path = "/v1/responses"

    def __repr__(self) -> str:
        return "Responses()"

    def read_request(self, body: Mapping[str, Any]) -> Request:
        return read_request(body)

    def write_request(self, request: Request) -> Written:
        return write_request(request)

    def reply_reader(self) -> ResponsesReader:
        return ResponsesReader()

    def reply_writer(self, request: Request) -> ResponsesWriter:
        return ResponsesWriter(request)

    def write_reply(self, request: Request, reply: Reply) -> dict[str, Any]:
        return write_reply(request, reply)

    def read_error(self, status: int, body: bytes) -> Failure:
        return failure_in_body(status, body)

    def write_error(self, failure: Failure) -> dict[str, Any]:
        return openai_error(failure)
