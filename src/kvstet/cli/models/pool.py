"""Several models behind one server: loaded when they are asked for, unloaded when they rest or others need the room."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from kvstet.api.ports import ModelStatus, Served
from kvstet.config import MIB, ServedOptions
from kvstet.engine.messages import ModelInfo
from kvstet.errors import KvstetError, ModelUnavailable, ShuttingDown, UnknownModel

log = logging.getLogger(__name__)


LATEST = ":latest"
"""What Ollama's clients put behind a name that has no tag."""


class Loaded(Protocol):
    """A model that is loaded; `kvstet.cli.stack.LoadedModel` is the real one."""

    @property
    def served(self) -> Served: ...

    async def close(self) -> None:
        """Stop the engine and free all there is of the model. May be called again."""
        ...


Load = Callable[[ServedOptions], Awaitable[Loaded]]
"""Raises the KvstetError or OSError that says why it cannot be loaded."""


class Memory(Protocol):
    """What models take and what there is; `kvstet.cli.models.memory.MachineMemory` is the real one."""

    def needed_bytes(self, options: ServedOptions) -> int | None:
        """About what the model takes once it is loaded. None: that cannot be told. Takes a while; raises as `Load`."""
        ...

    def free_bytes(self, taken_bytes: int) -> int | None:
        """What is left, where ``taken_bytes`` belong to models that are loaded already. None: that cannot be told."""
        ...


class Slot:
    """One of the models."""

    def __init__(self, options: ServedOptions) -> None:
        self.options = options
        self.loaded: Loaded | None = None
        self.loading: asyncio.Task[Loaded] | None = None
        self.info: ModelInfo | None = None
        """Known from when it was first loaded."""
        self.num_users = 0
        """Requests that use it, or wait until it is loaded."""
        self.used_at = 0.0
        self.taken_bytes = 0
        """What it was estimated to take; 0 while it is not loaded."""
        self.has_failed = False
        """Its last loading did."""
        self.rest: asyncio.TimerHandle | None = None
        """Unloads it, unless it is used before."""

    def __repr__(self) -> str:
        state = "loaded" if self.loaded else "loading" if self.loading else "unloaded"
        return f"Slot({self.name}, {state}, {self.num_users} users)"

    @property
    def name(self) -> str:
        return self.options.name or (self.info.name if self.info else self.options.label)

    @property
    def names(self) -> Sequence[str]:
        return tuple(dict.fromkeys((self.name, *self.options.aliases)))

    @property
    def is_idle(self) -> bool:
        return self.loaded is not None and self.num_users == 0

    @property
    def is_ready(self) -> bool:
        return self.loaded.served.engine.is_ready if self.loaded else not self.has_failed

    @property
    def status(self) -> ModelStatus:
        return ModelStatus(self.names, self.info, self.loaded.served.engine if self.loaded else None)


class ModelPool:
    """Implements `kvstet.api.ports.Models`. A model is never unloaded while a request uses it.

    Models are loaded and unloaded one at a time, so that what memory there is can be known. Where there is only one,
    any name is its own, and it is loaded whatever the estimate.
    """

    def __init__(
        self,
        models: Sequence[ServedOptions],
        load: Load,
        memory: Memory,
        *,
        unload_after_seconds: float | None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``models``: at least one, under names of their own. ``say`` tells the user of what comes and goes."""
        self._slots = [Slot(options) for options in models]
        self._load = load
        self._memory = memory
        self._unload_after_seconds = unload_after_seconds
        self._say = say
        self._lock = asyncio.Lock()
        """Held while a model is loaded or unloaded."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    def __repr__(self) -> str:
        return f"ModelPool({self._slots})"

    @property
    def is_ready(self) -> bool:
        return any(slot.is_ready for slot in self._slots)

    def statuses(self) -> Sequence[ModelStatus]:
        return [slot.status for slot in self._slots]

    def status(self, name: str | None) -> ModelStatus:
        return self._find(name).status

    async def preload(self, names: Iterable[str | None]) -> None:
        """Load these models now; None is the first. Raises UnknownModel, and what loading raises."""
        for slot in [self._find(name) for name in names]:
            await self._loaded(slot)

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncGenerator[Served, None]:
        slot = self._find(name)
        slot.num_users += 1
        self._cancel_rest(slot)
        try:
            yield (await self._loaded_for_request(slot)).served
        finally:
            slot.num_users -= 1
            self._begin_rest(slot)

    async def close(self) -> None:
        """See `kvstet.api.ports.Models`. What requests still hold is freed when this is called after them, again."""
        self._is_closing = True
        tasks: list[asyncio.Task[Any]] = [*self._tasks, *(slot.loading for slot in self._slots if slot.loading)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in self._slots:
            self._cancel_rest(slot)
        await asyncio.gather(*(self._shut(slot.loaded, slot.num_users) for slot in self._slots if slot.loaded))

    # Inside

    def _find(self, name: str | None) -> Slot:
        if not name or len(self._slots) == 1:
            return self._slots[0]
        for wanted in (name, name.removesuffix(LATEST)):
            for slot in self._slots:
                if wanted in slot.names:
                    return slot
        known = ", ".join(name for slot in self._slots for name in slot.names)
        raise UnknownModel(f"There is no model {name!r} on this server. It has: {known}.", param="model")

    async def _loaded_for_request(self, slot: Slot) -> Loaded:
        """Raises Unavailable, whatever kept it from being loaded."""
        try:
            return await self._loaded(slot)
        except (ModelUnavailable, ShuttingDown):
            raise
        except (KvstetError, OSError) as error:
            reason = str(error).rstrip(".")
            raise ModelUnavailable(f"The model {slot.name!r} could not be loaded: {reason}.") from error

    async def _loaded(self, slot: Slot) -> Loaded:
        if slot.loaded is not None:
            return slot.loaded
        if self._is_closing:
            raise ShuttingDown("The server is stopping.")
        if slot.loading is None:
            slot.loading = asyncio.create_task(self._bring(slot), name=f"kvstet-load-{slot.name}")
            slot.loading.add_done_callback(_retrieve)  # perhaps nobody waits any more
        loading = slot.loading
        try:
            # It goes on when the one who waits hangs up: others may wait too, and who retries finds it there.
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled():
                raise ShuttingDown("The server is stopping.") from None
            raise

    async def _bring(self, slot: Slot) -> Loaded:
        try:
            async with self._lock:
                needed_bytes = await self._make_room(slot)
                begun = time.monotonic()
                slot.loaded = await self._load(slot.options)
            slot.taken_bytes = needed_bytes or 0
            slot.info = slot.loaded.served.engine.info
            slot.has_failed = False
            if len(self._slots) > 1:
                self._say(f"loaded {slot.name} in {time.monotonic() - begun:.1f} s")
            return slot.loaded
        except (KvstetError, OSError) as error:
            slot.has_failed = True
            if slot.num_users:  # Otherwise it is the start of the server that fails, and says so.
                log.warning("The model %s could not be loaded: %s", slot.name, error)
            raise
        finally:
            slot.loading = None
            self._begin_rest(slot)

    async def _make_room(self, slot: Slot) -> int | None:
        """Unload idle models, longest unused first, until the estimate fits; returns it. Raises ModelUnavailable."""
        needed_bytes = await asyncio.to_thread(self._memory.needed_bytes, slot.options)
        while needed_bytes is not None:
            free_bytes = self._memory.free_bytes(sum(other.taken_bytes for other in self._slots))
            if free_bytes is None or needed_bytes <= free_bytes:
                break
            idle = sorted((other for other in self._slots if other.is_idle), key=lambda other: other.used_at)
            possible_bytes = free_bytes + sum(other.taken_bytes for other in idle)
            numbers = (
                f"needs about {needed_bytes / MIB:,.0f} MiB of memory, and {max(0, possible_bytes) / MIB:,.0f} MiB"
            )
            if len(self._slots) == 1:
                log.warning("The model %s %s are available: it may be slow, or be killed.", slot.name, numbers)
                break
            if not idle or needed_bytes > possible_bytes:
                busy = ", ".join(other.name for other in self._slots if other.loaded and not other.is_idle)
                hint = f", beside what is in use now ({busy})" if busy else ""
                raise ModelUnavailable(f"The model {slot.name!r} {numbers} can be had{hint}.")
            await self._unload(idle[0], f"to make room for {slot.name}")
        return needed_bytes

    async def _unload(self, slot: Slot, why: str) -> None:
        """The lock is held, and nobody uses it."""
        assert slot.loaded is not None and slot.num_users == 0, slot
        # From here on, who asks for it loads it anew, once the lock is free.
        loaded, slot.loaded = slot.loaded, None
        self._cancel_rest(slot)
        await loaded.close()
        slot.taken_bytes = 0
        self._say(f"unloaded {slot.name} {why}")

    async def _unload_rested(self, slot: Slot) -> None:
        async with self._lock:
            if slot.is_idle:
                await self._unload(slot, f"after {self._unload_after_seconds:.0f} s without a request")

    def _begin_rest(self, slot: Slot) -> None:
        self._cancel_rest(slot)
        slot.used_at = time.monotonic()
        if self._unload_after_seconds is not None and slot.is_idle and not self._is_closing:
            slot.rest = asyncio.get_running_loop().call_later(self._unload_after_seconds, self._end_rest, slot)

    def _end_rest(self, slot: Slot) -> None:
        task = asyncio.create_task(self._unload_rested(slot), name=f"kvstet-unload-{slot.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    def _cancel_rest(slot: Slot) -> None:
        if slot.rest is not None:
            slot.rest.cancel()
            slot.rest = None

    @staticmethod
    async def _shut(loaded: Loaded, num_users: int) -> None:
        """The engine now; the rest only once nobody reads with it any more."""
        await (loaded.served.engine.close() if num_users else loaded.close())


def _retrieve(task: asyncio.Task[Loaded]) -> None:
    """What nobody waits for is no error of the event loop's."""
    if not task.cancelled():
        task.exception()
