"""Content blocks of the Messages API and neutral parts."""

from __future__ import annotations

from typing import Any

from kvstet.dialects.content import data_url, image_part, split_data_url, text_part
from kvstet.dialects.request import Part
from kvstet.dialects.values import Object, from_json, obj, text, to_json

Block = dict[str, Any]

INVALID_JSON = "_invalid_json"
"""The only key of an ``input`` that stands for arguments which are no JSON object; its value is their text."""

_PDF = "application/pdf"


def read_part(block: Object) -> Part | None:
    """None: it has no neutral form."""
    match text(block.get("type")):
        case "text":
            return text_part(text(block.get("text")))
        case "image":
            return _read_image(obj(block.get("source")))
        case "document":
            return _read_document(obj(block.get("source")), text(block.get("title")))
        case "tool_reference" if text(block.get("tool_name")):
            return {"type": "tool_reference", "tool_name": text(block.get("tool_name"))}
        case _:
            return None


def _read_image(source: Object) -> Part | None:
    if source.get("type") == "base64" and source.get("data"):
        return image_part(data_url(text(source.get("media_type")) or "image/png", text(source.get("data"))))
    return image_part(text(source.get("url"))) if source.get("type") == "url" and source.get("url") else None


def _read_document(source: Object, title: str) -> Part | None:
    named = {"filename": title} if title else {}
    match source.get("type"):
        case "base64":
            data = data_url(text(source.get("media_type")) or _PDF, text(source.get("data")))
            return {"type": "file", "file": {"file_data": data, **named}}
        case "url":
            return {"type": "file", "file": {"file_url": text(source.get("url")), **named}}
        case "text":
            return text_part(text(source.get("data")))
        case _:
            return None


def write_part(part: Part) -> Block | None:
    """None: the API has nothing for it, or refuses it: text that is nothing but white space."""
    match part["type"]:
        case "text":
            return {"type": "text", "text": part["text"]} if str(part["text"]).strip() else None
        case "image_url":
            return _write_image(text(part["image_url"].get("url")))
        case "file":
            return _write_document(obj(part["file"]))
        case "tool_reference":
            return {"type": "tool_reference", "tool_name": part["tool_name"]}
        case _:
            return None


def _write_image(url: str) -> Block | None:
    source = _source(url)
    return {"type": "image", "source": source} if source else None


def _write_document(file: Object) -> Block | None:
    source = _source(text(file.get("file_data")) or text(file.get("file_url")))
    if source is None or source.get("media_type", _PDF) != _PDF:
        return None
    title = text(file.get("filename"))
    return {"type": "document", "source": source, **({"title": title} if title else {})}


def _source(url: str) -> dict[str, Any] | None:
    split = split_data_url(url)
    if split is not None:
        return {"type": "base64", "media_type": split[0], "data": split[1]}
    return {"type": "url", "url": url} if url.startswith(("https://", "http://")) else None


def input_of(arguments: str) -> dict[str, Any]:
    """Of a call, as the object that the API wants; no arguments are an empty one."""
    if not arguments.strip():
        return {}
    try:
        value = from_json(arguments)
    except ValueError:
        return {INVALID_JSON: arguments}
    return dict(fields) if (fields := obj(value)) or value == {} else {INVALID_JSON: arguments}


def arguments_of(given: object) -> str:
    """The way back."""
    fields = obj(given)
    invalid = fields.get(INVALID_JSON)
    return invalid if len(fields) == 1 and isinstance(invalid, str) else to_json(fields)
