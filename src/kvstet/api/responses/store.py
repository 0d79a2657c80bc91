"""Responses that clients go on from, or ask for again.

They are kept in memory, within bounds, and are lost when the server restarts or when others were used since: clients
that must not lose a conversation send it whole. The state that they stand for is in the cache either way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any

import msgspec

from kvstet.api.responses.requests import Item
from kvstet.config import MIB
from kvstet.errors import InvalidRequest

DEFAULT_MAX_RESPONSES = 1024
DEFAULT_MAX_BYTES = 128 * MIB


class PreviousResponseNotFound(InvalidRequest):
    """It was never stored, was deleted, or is not kept any more."""

    code = "previous_response_not_found"


class ItemNotKept(InvalidRequest):
    """``after`` names an item that is not in the list."""


class KeptItem:
    """An item that any number of responses share; each of them has the items of those before it."""

    __slots__ = ("data", "has_own_id", "num_bytes")

    def __init__(self, data: Item, *, has_own_id: bool) -> None:
        self.data = data
        self.has_own_id = has_own_id
        """Whether its id was given here. An id that a client made up is not looked for: another may use the same."""
        self.num_bytes = len(msgspec.json.encode(data))

    def __repr__(self) -> str:
        return f"KeptItem({self.data.get('type')}, {self.data.get('id')}, {self.num_bytes} bytes)"


@dataclass(frozen=True, slots=True, eq=False)
class StoredResponse:
    """A response as it was sent, and all that it knew."""

    id: str
    body: bytes
    input: tuple[KeptItem, ...]
    """From the conversation's first item on, without what this response says."""
    output: tuple[KeptItem, ...]

    @property
    def items(self) -> tuple[KeptItem, ...]:
        """What a response that follows goes on from."""
        return (*self.input, *self.output)


class ResponseStore:
    """Holds the responses used last, up to a number of them and of bytes; thread-safe."""

    def __init__(self, max_responses: int = DEFAULT_MAX_RESPONSES, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._uses: dict[KeptItem, int] = {}
        self._by_id: dict[str, KeptItem] = {}
        self._num_bytes = 0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"ResponseStore({len(self._responses)} responses, {self._num_bytes} of {self._max_bytes} bytes)"

    def __len__(self) -> int:
        return len(self._responses)

    @property
    def num_bytes(self) -> int:
        """Of all bodies, and of each item once."""
        return self._num_bytes

    def keep(self, response: StoredResponse) -> None:
        """What was used least recently makes room. A response that is larger than all the room is not kept."""
        if len(response.body) + sum(item.num_bytes for item in response.items) > self._max_bytes:
            return
        with self._lock:
            self._responses[response.id] = response
            self._num_bytes += len(response.body)
            for item in response.items:
                self._hold(item)
            while self._is_too_full():
                self._drop(next(iter(self._responses)))

    def get(self, id: str) -> StoredResponse | None:
        with self._lock:
            if id in self._responses:
                self._responses.move_to_end(id)
            return self._responses.get(id)

    def delete(self, id: str) -> bool:
        """Whether it was there. Responses that went on from it keep what they need of it."""
        with self._lock:
            is_there = id in self._responses
            if is_there:
                self._drop(id)
            return is_there

    def find_item(self, id: str) -> Item | None:
        """An item to which an id was given here."""
        with self._lock:
            kept = self._by_id.get(id)
            return None if kept is None else kept.data

    def history(self, id: str | None) -> tuple[KeptItem, ...]:
        """What a response with this ``previous_response_id`` goes on from. Raises PreviousResponseNotFound."""
        if id is None:
            return ()
        response = self.get(id)
        if response is None:
            raise PreviousResponseNotFound(
                f"Previous response with id {id!r} not found: it was not stored, or is not kept any more.",
                param="previous_response_id",
            )
        return response.items

    def _is_too_full(self) -> bool:
        return len(self._responses) > self._max_responses or self._num_bytes > self._max_bytes

    def _drop(self, id: str) -> None:
        response = self._responses.pop(id)
        self._num_bytes -= len(response.body)
        for item in response.items:
            self._release(item)

    def _hold(self, item: KeptItem) -> None:
        uses = self._uses.get(item, 0)
        self._uses[item] = uses + 1
        if uses == 0:
            self._num_bytes += item.num_bytes
            if item.has_own_id:
                self._by_id[item.data["id"]] = item

    def _release(self, item: KeptItem) -> None:
        self._uses[item] -= 1
        if self._uses[item] == 0:
            del self._uses[item]
            self._num_bytes -= item.num_bytes
            if item.has_own_id:
                del self._by_id[item.data["id"]]


def kept_inputs(items: Iterable[Item], response_number: str) -> Iterator[KeptItem]:
    """A request's own items as they are kept: in the API's long form, and all with an id."""
    for index, item in enumerate(items):
        long = _long_form(item)
        if isinstance(item.get("id"), str) and item["id"]:
            yield KeptItem(long, has_own_id=False)
        else:
            yield KeptItem({"id": f"in_{response_number}_{index}", **_without_id(long)}, has_own_id=True)


def page_of(response: StoredResponse, *, order: str, limit: int, after: str | None) -> dict[str, Any]:
    """A page of a response's input items. Raises ItemNotKept where there is nothing to go on ``after``."""
    items = [kept.data for kept in response.input]
    if order == "desc":
        items.reverse()
    start = 0
    if after is not None:
        start = next((place for place, item in enumerate(items, 1) if item["id"] == after), 0)
        if start == 0:
            raise ItemNotKept(f"The response has no input item {after!r}.", param="after")
    page = items[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(items),
    }


def _long_form(item: Item) -> Item:
    if item.get("type", "message") != "message":
        return item
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    return {**item, "type": "message", "status": item.get("status", "completed"), "content": content or []}


def _without_id(item: Item) -> Item:
    return {key: value for key, value in item.items() if key != "id"}
