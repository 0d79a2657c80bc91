"""Colours by what they are for. Pictures are drawn with a stand-in for each, which becomes a colour, or a variable of
the page's style, when they are written."""

from __future__ import annotations

from enum import StrEnum

NUM_SERVER_COLOURS = 4


class Role(StrEnum):
    """What a colour is for; its value is the name of the style's variable."""

    PAPER = "paper"
    INK = "ink"
    DIM = "dim"
    LINE = "line"
    SERVER_0 = "server-0"
    SERVER_1 = "server-1"
    SERVER_2 = "server-2"
    SERVER_3 = "server-3"

    @property
    def stand_in(self) -> str:
        """A colour that nothing else has."""
        return f"#0a0b{list(Role).index(self):02x}"


Theme = dict[Role, str]

VARIABLES: Theme = {role: f"var(--{role.value})" for role in Role}
"""The page's, which knows light, dark and paper."""

LIGHT: Theme = {
    Role.PAPER: "#ffffff",
    Role.INK: "#16191d",
    Role.DIM: "#59626c",
    Role.LINE: "#dfe3e7",
    Role.SERVER_0: "#0b62a8",
    Role.SERVER_1: "#a8620b",
    Role.SERVER_2: "#7a4a9e",
    Role.SERVER_3: "#48525c",
}
DARK: Theme = {
    Role.PAPER: "#0f1317",
    Role.INK: "#e9edf1",
    Role.DIM: "#9aa6b2",
    Role.LINE: "#2a323a",
    Role.SERVER_0: "#5fb0f5",
    Role.SERVER_1: "#e2a44a",
    Role.SERVER_2: "#c39be2",
    Role.SERVER_3: "#b4bec8",
}


def server_role(index: int) -> Role:
    """Of the server at that place; those behind the fourth share its colour."""
    return Role(f"server-{min(index, NUM_SERVER_COLOURS - 1)}")
