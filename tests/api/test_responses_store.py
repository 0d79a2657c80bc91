from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.api.responses.store import (
    ItemNotKept,
    KeptItem,
    PreviousResponseNotFound,
    ResponseStore,
    StoredResponse,
    kept_inputs,
    page_of,
)

BODY = b"x" * 100


def item(id: str, num_chars: int = 10) -> KeptItem:
    return KeptItem({"id": id, "text": "x" * num_chars}, has_own_id=True)


def response(id: str, *inputs: KeptItem, output: tuple[KeptItem, ...] = (), body: bytes = BODY) -> StoredResponse:
    return StoredResponse(id, body, inputs, output)


def test_a_response_has_all_items_of_those_before_it():
    store = ResponseStore()
    store.keep(response("r1", item("a"), output=(item("b"),)))
    store.keep(response("r2", *store.history("r1"), item("c"), output=(item("d"),)))
    assert [kept.data["id"] for kept in store.history("r2")] == ["a", "b", "c", "d"]
    assert store.history(None) == ()


def test_a_response_outlives_the_one_it_went_on_from():
    store = ResponseStore()
    store.keep(response("r1", item("a")))
    store.keep(response("r2", *store.history("r1")))
    assert store.delete("r1")
    assert not store.delete("r1")
    assert [kept.data["id"] for kept in store.history("r2")] == ["a"]
    with pytest.raises(PreviousResponseNotFound):
        store.history("r1")


def test_the_least_recently_used_response_makes_room_for_a_new_one():
    store = ResponseStore(max_responses=2)
    store.keep(response("r1"))
    store.keep(response("r2"))
    store.get("r1")
    store.keep(response("r3"))
    assert [store.get(id) is not None for id in ("r1", "r2", "r3")] == [True, False, True]


def test_bytes_are_bounded_and_shared_items_count_once():
    shared = item("a", 1000)
    store = ResponseStore(max_bytes=2000)
    for number in range(5):
        store.keep(response(f"r{number}", shared))
    assert store.num_bytes == shared.num_bytes + 5 * len(BODY)
    store.keep(response("r5", item("b", 500)))
    assert store.num_bytes <= 2000
    assert store.get("r0") is None
    assert store.get("r5") is not None


def test_what_is_larger_than_all_the_room_costs_nobody_else_theirs():
    store = ResponseStore(max_bytes=1000)
    store.keep(response("r1"))
    store.keep(response("r2", body=b"x" * 2000))
    assert (store.get("r1") is not None, store.get("r2")) == (True, None)


def test_items_are_found_while_a_response_has_them():
    store = ResponseStore()
    first = item("a")
    store.keep(response("r1", first))
    store.keep(response("r2", first))
    store.delete("r1")
    assert store.find_item("a") == first.data
    store.delete("r2")
    assert store.find_item("a") is None
    assert (store.num_bytes, len(store)) == (0, 0)


def test_ids_that_clients_made_up_are_not_looked_for():
    store = ResponseStore()
    store.keep(response("r1", KeptItem({"id": "msg_1"}, has_own_id=False)))
    assert store.find_item("msg_1") is None


@given(st.lists(st.tuples(st.sampled_from("kdg"), st.integers(0, 9), st.lists(st.integers(0, 9))), max_size=60))
def test_the_books_add_up_whatever_happens(steps: list[tuple[str, int, list[int]]]):
    items = [item(str(number), 10 * number) for number in range(10)]
    store = ResponseStore(max_responses=4, max_bytes=900)
    kept: dict[str, StoredResponse] = {}
    for number, (step, id, used) in enumerate(steps):
        if step == "k":
            new = response(f"r{number}-{id}", *(items[each] for each in dict.fromkeys(used)))
            kept[new.id] = new
            store.keep(new)
        elif step == "d" and kept:
            store.delete(list(kept)[id % len(kept)])
        elif kept:
            store.get(list(kept)[id % len(kept)])
        there = [each for each in kept.values() if store.get(each.id) is not None]
        held = {each for stored in there for each in stored.items}
        assert store.num_bytes == sum(len(each.body) for each in there) + sum(each.num_bytes for each in held)
        assert store.num_bytes <= 900
        assert len(store) == len(there) <= 4
        assert all((store.find_item(each.data["id"]) is not None) == (each in held) for each in items)


def test_inputs_are_kept_in_their_long_form_with_ids():
    given: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.", "id": "mine"},
        {"type": "function_call_output", "call_id": "c", "output": "x", "id": None},
    ]
    kept = list(kept_inputs(given, "f00"))
    assert [each.data["id"] for each in kept] == ["in_f00_0", "mine", "in_f00_2"]
    assert [each.has_own_id for each in kept] == [True, False, True]
    assert kept[0].data["content"] == [{"type": "input_text", "text": "Hi"}]
    assert kept[1].data["content"] == [{"type": "output_text", "text": "Hello."}]
    assert (kept[0].data["type"], kept[0].data["status"]) == ("message", "completed")
    assert kept[0].num_bytes == len(json.dumps(kept[0].data, separators=(",", ":")))


@pytest.mark.parametrize(
    ("order", "limit", "after", "ids", "has_more"),
    [
        ("asc", 2, None, "ab", True),
        ("asc", 2, "b", "cd", False),
        ("desc", 3, None, "dcb", True),
        ("desc", 3, "b", "a", False),
        ("desc", 3, "a", "", False),
    ],
)
def test_pages_go_on_where_the_last_one_ended(order: str, limit: int, after: str | None, ids: str, has_more: bool):
    page = page_of(response("r", *map(item, "abcd")), order=order, limit=limit, after=after)
    assert "".join(data["id"] for data in page["data"]) == ids
    assert page["has_more"] is has_more
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


def test_a_page_after_an_unknown_item_is_refused():
    with pytest.raises(ItemNotKept):
        page_of(response("r", item("a")), order="asc", limit=1, after="z")
