"""Pictures as SVG that takes colours and font from where it stands; drawn by matplotlib, of the extra ``plot``."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from kvstet.bench.report.themes import Role, Theme
from kvstet.errors import InvalidRequest

HOW_TO_PLOT = "This picture needs matplotlib: pip install 'kvstet[plot]'."

Titles = Mapping[str, Sequence[str]]
"""By the group of marks (`set_gid`): what each of its marks says when it is pointed at, in the order of the data."""

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of servers may have dollar signs in them
    # Widths of words are matplotlib's guess whatever the font they will be shown in: the same guess on every machine.
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": Role.INK.stand_in,
    "axes.edgecolor": Role.LINE.stand_in,
    "axes.labelcolor": Role.DIM.stand_in,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": Role.LINE.stand_in,
    "grid.linewidth": 0.7,
    "xtick.color": Role.LINE.stand_in,
    "ytick.color": Role.LINE.stand_in,
    "xtick.labelcolor": Role.DIM.stand_in,
    "ytick.labelcolor": Role.DIM.stand_in,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def picture(
    draw: Callable[[Any], Titles],
    *,
    name: str,
    says: str,
    theme: Theme,
    width_inches: float = 5,
    height_inches: float = 3.4,
) -> str:
    """The ``<svg>`` of what is drawn onto the figure's axes. ``name`` keeps its ids apart from those of other pictures;
    ``says`` is for who cannot see it.

    InvalidRequest: without matplotlib.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidRequest(HOW_TO_PLOT) from error
    with style.context({**_STYLE, "svg.hashsalt": name}):
        figure: Any = Figure(figsize=(width_inches, height_inches), layout="constrained")
        titles = draw(figure.subplots())
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _coloured(_tidied(written.getvalue(), titles, name, says), theme)


def _tidied(svg: bytes, titles: Titles, name: str, says: str) -> str:
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    for group in root.iter(f"{{{_SVG}}}g"):
        for mark, title in zip(group.iter(f"{{{_SVG}}}use"), titles.get(group.get("id", ""), ()), strict=False):
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = title
    for element in root.iter():
        _own(element, name)
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.set("role", "img")
    root.set("aria-label", says)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    return ElementTree.tostring(root, encoding="unicode")


def _own(element: ElementTree.Element, name: str) -> None:
    """Ids, and what refers to them, with the picture's name in front."""
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    if _HREF in element.attrib:
        element.set("href", f"#{name}-{element.attrib.pop(_HREF).removeprefix('#')}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{name}-"))
    if "style" in element.attrib:
        element.set("style", re.sub(r"font-family: [^;]*", f"font-family: {_FONT}", element.attrib["style"]))


def _coloured(svg: str, theme: Theme) -> str:
    for role in Role:
        svg = svg.replace(role.stand_in, theme[role])
    return svg
