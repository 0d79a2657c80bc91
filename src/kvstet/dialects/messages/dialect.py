"""The dialect as one object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kvstet.dialects.failures import anthropic_error, failure_in_body
from kvstet.dialects.messages.reading import read_request
from kvstet.dialects.messages.replies import MessagesReader
from kvstet.dialects.messages.streams import MessagesWriter, write_reply
from kvstet.dialects.messages.writing import write_request
from kvstet.dialects.reply import Failure
from kvstet.dialects.request import Request, Written
from kvstet.dialects.whole import Reply


class Messages:
    name: Literal["messages"] = "messages"
    path = "/v1/messages"

    def __repr__(self) -> str:
        return "Messages()"

    def read_request(self, body: Mapping[str, Any]) -> Request:
        return read_request(body)

    def write_request(self, request: Request) -> Written:
        return write_request(request)

    def reply_reader(self) -> MessagesReader:
        return MessagesReader()

    def reply_writer(self, request: Request) -> MessagesWriter:
        return MessagesWriter(request)

    def write_reply(self, request: Request, reply: Reply) -> dict[str, Any]:
        return write_reply(request, reply)

    def read_error(self, status: int, body: bytes) -> Failure:
        return failure_in_body(status, body)

    def write_error(self, failure: Failure) -> dict[str, Any]:
        return anthropic_error(failure)
