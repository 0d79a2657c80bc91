"""The conversations that a server had of late, and which of them a request goes on with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from threading import Lock

from kvstet.edits.compare import Comparison, compare_heads, comparison
from kvstet.edits.edit import Edit
from kvstet.edits.passage import Passage
from kvstet.edits.relation import purpose_of, quotes, states_task, tasks_in, tells_summary
from kvstet.edits.snapshot import Digest, Item, Snapshot

MAX_BRANCHES = 256
MAX_BYTES = 64 * 1024**2

_BYTES_PER_CHARACTER = 1.2
"""Of Python's strings, most of whose texts are Latin."""
_ITEM_BYTES = 600
"""Of a message without its text."""

_MAX_TASKS = 32
"""Of a conversation's latest calls: a sub-agent may begin while its caller goes on."""

_MAX_COMPARED = 32
"""The latest branches, whose system prompts are compared with a new one."""

_REPLIES = frozenset({"assistant", "tool"})

_SIMILAR = 0.6
"""From this share of common text on, system prompts are versions of one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request belongs."""

    conversation: int
    """Number of the conversation, in the order in which they began."""
    parent: int | None
    """The conversation that a sub-agent, a side request or a compaction came from."""
    edits: tuple[Edit, ...]
    """What the request is, if it goes on with no conversation, and what was changed."""
    before: Snapshot | None = field(repr=False)
    """The request that it goes on from, with its reply."""
    shares: tuple[float, ...] = field(default=(), repr=False)
    """See `kvstet.edits.compare.Comparison`."""
    branch: int = 0
    """For `History.reply`."""


@dataclass(slots=True)
class _Branch:
    """The latest state of a line of requests."""

    snapshot: Snapshot
    conversation: int
    parent: int | None
    purpose: str | None
    number: int
    """Counts all requests."""
    meanings: frozenset[Digest]
    replies: frozenset[Digest]
    """Those of the model's messages and of tools' results."""
    tasks: tuple[str, ...] = ()


class History:
    """Thread-safe. The longest unused branches are forgotten first."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_branches: int = MAX_BRANCHES) -> None:
        self._max_bytes, self._max_branches = max_bytes, max_branches
        self._branches: OrderedDict[int, _Branch] = OrderedDict()
        self._items: dict[Digest, tuple[Item, int]] = {}
        """Each message once, and how many branches hold it."""
        self._num_bytes = 0.0
        self._numbers = count(1)
        self._conversations = count(1)
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"History({len(self._branches)} branches, {self.num_bytes:,} bytes)"

    @property
    def num_bytes(self) -> int:
        return round(self._num_bytes)

    def note(self, snapshot: Snapshot) -> Place:
        """Find out what a request is, and remember it."""
        with self._lock:
            place, followed = self._placed(snapshot)
            return self._keep(snapshot, place, followed)

    def peek(self, snapshot: Snapshot) -> Place:
        """As `note`, without remembering it."""
        with self._lock:
            return self._placed(snapshot)[0]

    def reply(self, branch: int, reply: Item) -> None:
        """The reply to the request that was placed on ``branch`` is complete."""
        with self._lock:
            found = self._branches.get(branch)
            if found is None or found.snapshot.reply is not None:
                return
            reply = self._interned(reply)
            found.snapshot = found.snapshot.with_reply(reply)
            found.meanings |= {reply.meaning}
            found.replies |= {reply.meaning}
            found.tasks = (*found.tasks, *tasks_in(reply))[-_MAX_TASKS:]
            self._shrink()

    def forget_others(self, place: Place) -> None:
        """All that is known of the conversation but its latest request: what was taken out of it is a secret."""
        with self._lock:
            others = [number for number, each in self._branches.items() if each.conversation == place.conversation]
            for number in others:
                if number != place.branch:
                    self._forget(number)

    def _placed(self, snapshot: Snapshot) -> tuple[Place, int | None]:
        """Where it belongs, and the branch that it takes the place of."""
        followed = self._followed(snapshot)
        is_aside = followed is None and purpose_of(snapshot) is not None
        if not is_aside and (compacted := self._compacted(snapshot, followed)) is not None:
            edits = (Edit("compaction", snapshot.num_head_items, "user"),)
            return self._goes_on(compacted, edits, comparison(compacted.snapshot, snapshot).shares), None
        if followed is not None:
            return self._continued(snapshot, followed)
        return self._beside(snapshot), None

    def _continued(self, snapshot: Snapshot, number: int) -> tuple[Place, int | None]:
        branch = self._branches[number]
        found = comparison(branch.snapshot, snapshot)
        tasks = branch.tasks
        if tasks and states_task(_new_items(found, snapshot), tasks):
            edits = (Edit("sub_agent"), *found.edits)
            return Place(next(self._conversations), branch.conversation, edits, branch.snapshot, found.shares), None
        # What was changed may be changed back, and then the earlier state is wanted again.
        replaced = None if found.edits else number
        return self._goes_on(branch, found.edits, found.shares), replaced

    def _goes_on(self, branch: _Branch, edits: tuple[Edit, ...], shares: tuple[float, ...]) -> Place:
        return Place(branch.conversation, branch.parent, edits, branch.snapshot, shares)

    def _beside(self, snapshot: Snapshot) -> Place:
        """A request that goes on with nothing: what is it, and what does it share with others?"""
        parent = self._parent(snapshot)
        relation, parent_number = self._relation(snapshot, parent)
        sibling = self._sibling(snapshot)
        edits = compare_heads(sibling, snapshot) if sibling else ()
        shares = comparison(sibling, snapshot).shares if sibling else ()
        return Place(next(self._conversations), parent_number, (relation, *edits), sibling, shares)

    def _relation(self, snapshot: Snapshot, parent: _Branch | None) -> tuple[Edit, int | None]:
        number = parent.conversation if parent else None
        if (purpose := purpose_of(snapshot)) is not None:
            return Edit("side_request", what=(purpose,)), number
        giver = next((each for each in self._latest() if states_task(snapshot.items, each.tasks)), None)
        if giver is not None:
            return Edit("sub_agent"), giver.conversation
        if (
            parent is not None
            and parent.snapshot.session is not None
            and not _has_similar_head(parent.snapshot, snapshot)
        ):
            return Edit("sub_agent" if snapshot.tools else "side_request"), number
        return Edit("new_conversation"), None

    def _parent(self, snapshot: Snapshot) -> _Branch | None:
        """The conversation that a side request most likely came from: of the same session, or else the latest."""
        latest = [branch for branch in self._latest() if branch.purpose is None]
        if snapshot.session is not None:
            return next((branch for branch in latest if branch.snapshot.session == snapshot.session), None)
        return next(iter(latest), None)

    def _latest(self) -> Iterator[_Branch]:
        return reversed(self._branches.values())

    def _followed(self, snapshot: Snapshot) -> int | None:
        """The branch that a request most likely goes on with."""
        best: tuple[tuple[bool, bool, int, int], int] | None = None
        meanings = {item.meaning for item in snapshot.items}
        num_replies = sum(item.role in _REPLIES for item in snapshot.items)
        for number, branch in self._branches.items():
            if not _is_continued(branch, snapshot, meanings, num_replies):
                continue
            told, shared = branch.snapshot.told, len(branch.meanings & meanings)
            prefix = _num_common_items(told, snapshot.items)
            is_session = snapshot.session is None or branch.snapshot.session == snapshot.session
            score = (is_session, prefix == len(told), shared + prefix, branch.number)
            if best is None or score > best[0]:
                best = score, number
        return None if best is None else best[1]

    def _compacted(self, snapshot: Snapshot, followed: int | None) -> _Branch | None:
        """The branch that the request goes on with from its summary."""
        after = 0 if followed is None else self._branches[followed].number
        for branch in self._latest():
            if branch.number <= after:
                break
            reply = branch.snapshot.reply
            if branch.purpose == "summary" and reply is not None and quotes(snapshot.items, reply):
                return self._main_of(branch)
        if followed is not None:
            return None
        return self._summarised(snapshot)

    def _main_of(self, summary: _Branch) -> _Branch | None:
        """The latest branch of the conversation that was summarised."""
        wanted = summary.parent
        mains = [each for each in self._latest() if each.conversation == wanted and each.purpose is None]
        return next(iter(mains), None)

    def _summarised(self, snapshot: Snapshot) -> _Branch | None:
        """The branch of the same head whose own reply, or a text that says so, stands for its messages."""
        told = snapshot.items[snapshot.num_head_items :]
        for branch in islice(self._latest(), _MAX_COMPARED):
            before = branch.snapshot
            is_shorter = len(snapshot.items) < len(before.items)
            if branch.purpose is not None or not is_shorter or not _has_similar_head(before, snapshot):
                continue
            if (before.reply is not None and quotes(told, before.reply)) or tells_summary(told[:2]):
                return branch
        return None

    def _sibling(self, snapshot: Snapshot) -> Snapshot | None:
        """The latest request whose head is a version of this one's."""
        latest = (branch.snapshot for branch in islice(self._latest(), _MAX_COMPARED))
        return next((before for before in latest if _has_related_head(before, snapshot)), None)

    def _keep(self, snapshot: Snapshot, place: Place, followed: int | None) -> Place:
        number = next(self._numbers)
        snapshot = replace(snapshot, items=tuple(map(self._interned, snapshot.items)), reply=None)
        meanings = frozenset(item.meaning for item in snapshot.items)
        purpose = next((edit.what[0] for edit in place.edits if edit.kind == "side_request" and edit.what), None)
        if purpose is None and any(edit.kind == "side_request" for edit in place.edits):
            purpose = "other"
        tasks = tasks_in(snapshot.items[-1]) if snapshot.items else ()
        if followed is not None:
            purpose, tasks = self._branches[followed].purpose, (*self._branches[followed].tasks, *tasks)
            self._forget(followed)
        replies = frozenset(item.meaning for item in snapshot.items if item.role in _REPLIES)
        self._branches[number] = _Branch(
            snapshot, place.conversation, place.parent, purpose, number, meanings, replies, tasks[-_MAX_TASKS:]
        )
        self._shrink()
        return replace(place, branch=number)

    def _interned(self, item: Item) -> Item:
        kept, num_uses = self._items.get(item.exact, (item, 0))
        self._items[item.exact] = kept, num_uses + 1
        if num_uses == 0:
            self._num_bytes += _num_bytes(item)
        return kept

    def _shrink(self) -> None:
        while len(self._branches) > 1 and (
            len(self._branches) > self._max_branches or self._num_bytes > self._max_bytes
        ):
            self._forget(next(iter(self._branches)))

    def _forget(self, number: int) -> None:
        for item in self._branches.pop(number).snapshot.told:
            kept, num_uses = self._items[item.exact]
            if num_uses > 1:
                self._items[item.exact] = kept, num_uses - 1
            else:
                del self._items[item.exact]
                self._num_bytes -= _num_bytes(kept)


def _num_bytes(item: Item) -> float:
    return _ITEM_BYTES + _BYTES_PER_CHARACTER * item.num_characters


def _new_items(found: Comparison, snapshot: Snapshot) -> list[Item]:
    return [item for item, share in zip(snapshot.items, found.shares, strict=True) if share == 0]


def _num_common_items(before: Sequence[Item], after: Sequence[Item]) -> int:
    pairs = zip(before, after, strict=False)
    return next(
        (index for index, (old, new) in enumerate(pairs) if old.meaning != new.meaning), min(len(before), len(after))
    )


def _is_continued(branch: _Branch, after: Snapshot, meanings: set[Digest], num_replies: int) -> bool:
    """Whether a request may go on with a branch: under a like head it repeats all of it, or what was said in it."""
    before = branch.snapshot
    num_shared = len(branch.replies & meanings)
    repeats_much = num_shared > 0 and 2 * num_shared >= min(len(branch.replies), num_replies)
    if not repeats_much and not _repeats_all(before, after):
        return False
    return _same_tools(before, after) or _has_similar_system(before, after)


def _repeats_all(before: Snapshot, after: Snapshot) -> bool:
    """Whether all messages of the earlier request, but for the head, come again at the beginning."""
    old, new = before.items[before.num_head_items :], after.items[after.num_head_items :]
    return 0 < len(old) <= len(new) and _num_common_items(old, new) == len(old)


def _same_tools(before: Snapshot, after: Snapshot) -> bool:
    return bool(after.tools) and {tool.name for tool in before.tools} == {tool.name for tool in after.tools}


def _has_similar_head(before: Snapshot, after: Snapshot) -> bool:
    return _same_tools(before, after) or (
        _has_similar_system(before, after) and bool(before.tools) == bool(after.tools)
    )


def _has_related_head(before: Snapshot, after: Snapshot) -> bool:
    """Whether a prompt could have shared its head, if little were different."""
    return _has_similar_system(before, after) and bool(before.system_text) and bool(before.tools) == bool(after.tools)


def _has_similar_system(before: Snapshot, after: Snapshot) -> bool:
    old, new = before.system_text, after.system_text
    if old == new:
        return True
    shorter, longer = sorted((len(old), len(new)))
    return shorter >= _SIMILAR * longer and Passage(old, new).kept_share >= _SIMILAR
