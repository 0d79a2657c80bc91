from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from kvstet.chat.lru import Lru


def test_an_entry_is_made_once() -> None:
    made: list[str] = []
    lru: Lru[str, str] = Lru(2)
    for _ in range(2):
        assert lru.get_or_make("a", lambda: made.append("a") or "A") == "A"
    assert made == ["a"]


def test_the_entry_used_least_recently_goes_first() -> None:
    lru: Lru[str, str] = Lru(2)
    for key in ("a", "b", "a", "c"):
        lru.get_or_make(key, key.upper)
    assert [lru.get_or_make(key, lambda: "new") for key in ("a", "c", "b")] == ["A", "C", "new"]


def test_costs_stay_within_the_limit() -> None:
    lru: Lru[str, str] = Lru(10, cost=len)
    for text in ("xxxx", "yyyy", "zzzz"):
        lru.get_or_make(text, lambda text=text: text)
    assert repr(lru) == "Lru(2 entries, 8 of 10)"


def test_an_entry_larger_than_the_whole_is_returned_and_not_kept() -> None:
    lru: Lru[str, str] = Lru(3, cost=len)
    assert lru.get_or_make("long", lambda: "long") == "long"
    assert repr(lru) == "Lru(0 entries, 0 of 3)"


def test_threads_that_make_the_same_entry_get_the_same_object() -> None:
    lru: Lru[str, object] = Lru(2)
    barrier = Barrier(4)

    def make() -> object:
        barrier.wait(timeout=30)
        return object()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: lru.get_or_make("a", make), range(4)))
    assert len({id(result) for result in results}) == 1
    assert repr(lru) == "Lru(1 entries, 1 of 2)"
