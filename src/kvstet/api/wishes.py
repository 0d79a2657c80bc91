"""What a request wishes that no dialect has words for: how faithfully it is read, said by itself, by its API key or by
the server; and what the reply shall be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast, get_args

from starlette.requests import Request

from kvstet.api.forcing import ForcedReply
from kvstet.config import ApiKey, ServerOptions
from kvstet.context.equivalent.catalogue import NAMES, names_of
from kvstet.errors import InvalidRequest
from kvstet.types import Fidelity, SubstitutionName

FIDELITY_HEADER = "x-kvstet-fidelity"
KEEP_HEADER = "x-kvstet-keep"
EDIT_HEADER = "x-kvstet-edit"

_EDITS = ("redact",)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What may be done to a request's conversation, and what is to be said to it."""

    fidelity: Fidelity = "exact"
    names: frozenset[SubstitutionName] = NAMES
    """What may be substituted, at a fidelity at which anything may."""
    redacts: bool = False
    """What was taken out of the conversation is a secret: nothing is put back, and what could be is forgotten."""
    owner: str = ""
    """Name of the API key."""
    reply: ForcedReply | None = None
    """None: the model's own."""

    @property
    def substitutes(self) -> bool:
        return self.fidelity != "exact" and not self.redacts


EXACTLY = Wishes()
"""What nobody has said anything of."""


def read_wishes(
    headers: Mapping[str, str], key: ApiKey | None, options: ServerOptions, reply: ForcedReply | None = None
) -> Wishes:
    """The request's own word is the last. InvalidRequest names a header that says something unknown."""
    said = _one_of(get_args(Fidelity), headers.get(FIDELITY_HEADER), FIDELITY_HEADER)
    fidelity = said or (key and key.fidelity) or options.fidelity
    kept = names_of((*headers.get(KEEP_HEADER, "").split(","), *options.no_substitute), param=KEEP_HEADER)
    return Wishes(
        cast("Fidelity", fidelity),
        NAMES - kept,
        _one_of(_EDITS, headers.get(EDIT_HEADER), EDIT_HEADER) is not None,
        key.name if key else "",
        reply,
    )


def wishes_of(request: Request) -> Wishes:
    """As `kvstet.api.models.ModelEndpoint` has read them."""
    return cast("Wishes", request.state.wishes)


def _one_of(known: tuple[str, ...], said: str | None, header: str) -> str | None:
    word = (said or "").strip().lower()
    if word and word not in known:
        raise InvalidRequest(f"{header} is one of {', '.join(known)}, not {word[:40]!r}.", param=header)
    return word or None
