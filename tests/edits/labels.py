"""What was changed in each request of the recorded sessions, found by hand (`tests/data/traces/labels`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvstet.edits.edit import Edit

TRACES = Path(__file__).parents[1] / "data" / "traces"
NAMES = sorted(path.stem for path in (TRACES / "labels").glob("*.json"))


def labels(name: str) -> dict[int, dict[str, Any]]:
    """By the request's number. ``edits`` are as `label_of` writes them; ``served`` are those of a replay, where it has
    others: kvstet keeps a change from the model, or what was refused is not replayed."""
    return {
        int(number): label
        for number, label in json.loads((TRACES / "labels" / f"{name}.json").read_text())["requests"].items()
    }


def label_of(edit: Edit | Mapping[str, Any]) -> str:
    """``kind@message:what,what``."""
    kind, message, what = (
        (edit.kind, edit.message, edit.what)
        if isinstance(edit, Edit)
        else (edit["kind"], edit["message"], edit["what"])
    )
    return kind + ("" if message is None else f"@{message}") + (f":{','.join(what)}" if what else "")


def served(label: Mapping[str, Any] | None) -> Sequence[str]:
    return [] if label is None else label.get("served", label["edits"])
