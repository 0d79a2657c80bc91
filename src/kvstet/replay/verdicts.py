"""Why requests cost what they did, where the server itself does not say: by the edits, on estimates."""

from __future__ import annotations

from kvstet.edits.history import History
from kvstet.edits.pricing import estimated
from kvstet.edits.snapshot import snapshot_of
from kvstet.edits.verdict import explained
from kvstet.replay.session import Turn


class Verdicts:
    """Of one session; as `kvstet explain --trace` has them."""

    def __init__(self) -> None:
        self._history = History()

    def __repr__(self) -> str:
        return f"Verdicts({self._history!r})"

    def of(self, turn: Turn) -> str:
        """Requests come in their order."""
        request = turn.request
        snapshot = snapshot_of(request.messages, request.tools, model=request.model)
        place = self._history.note(snapshot)
        if turn.plan is not None:
            calls = [(call.name, call.args_raw) for call in turn.plan.calls]
            self._history.reply(place.branch, snapshot.reply_of(turn.plan.text, turn.plan.reasoning, calls))
        return explained(place, *estimated(place, snapshot), None).sentence
