"""Finds out how a template writes replies, from what it makes of probe conversations."""

from __future__ import annotations

import json
import re
from itertools import takewhile

from kvstet.chat.reply.probes import IDS, KEYS, NAMES, NUMBER, REASON, RESULT, TEXT, VALUES, Probes
from kvstet.chat.reply.syntax import (
    Arguments,
    CallSyntax,
    JsonArguments,
    KeyedArguments,
    ListedCalls,
    MarkedCalls,
    Marker,
    ObjectCalls,
    PythonCalls,
    Reasoning,
    TagArguments,
)

_CHUNK = re.compile(r"(?:<[^<>\s]+>|\[[^\[\]\s\"{}]+\])[^<>\[\]{}\s\"]*\s*\Z")
"""A tag at the end of a text, with a word that may follow it."""
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]{2,}\]")
_TOKEN = re.compile(r"<[^<>]*>?|\[/?[A-Z_]{2,}\]|\s+|[^<\[\s]+|.")

_ONE = {KEYS[0]: VALUES[0]}
_TWO = {KEYS[0]: VALUES[0], KEYS[1]: VALUES[1]}
_SPECIAL = re.compile(r"[^\w\s]")


def derive_reasoning(probes: Probes, calls: CallSyntax | None) -> Reasoning | None:
    """Where the template prints reasoning; None where it does not, or not between markers."""
    shown = [probes.reply(TEXT, reasoning=REASON), probes.reply_in_parts(TEXT, REASON)]
    with_text = next((tail for tail in shown if tail and _shows_both(tail)), None)
    with_call = probes.reply(calls=[_ONE], reasoning=REASON)
    tail = with_text or (with_call if with_call and REASON in with_call else None)
    if tail is None:
        return None
    opening = _CHUNK.search(tail[: tail.index(REASON)])
    close = _between(tail, REASON, TEXT) if with_text else _before_calls(tail, calls)
    if opening is None or not close or not close.strip() or _is_header(opening.group(), probes):
        return None
    if with_text:
        close = close.removesuffix(_text_open_behind(close, probes))
        close = _shared_space(close, with_call, calls)
    return Reasoning(_bounded(opening.group()), Marker.of(close))


def _is_header(marker: str, probes: Probes) -> bool:
    """Whether it stands directly in front of text as well."""
    plain = probes.reply(TEXT) or ""
    return plain.partition(TEXT)[0].rstrip().endswith(marker.rstrip())


def _shows_both(tail: str) -> bool:
    """Whether reasoning stands behind a marker, and text behind it."""
    return _between(tail, REASON, TEXT) is not None and bool(_CHUNK.search(tail.partition(REASON)[0]))


def _bounded(text: str) -> Marker:
    """White space in front of an opening marker is the header's."""
    marker = Marker.of(text)
    return Marker(marker.parts, "", marker.after)


def _before_calls(tail: str, calls: CallSyntax | None) -> str | None:
    """What stands between reasoning and the calls behind it."""
    rest = tail.partition(REASON)[2]
    heads = [marker.head for marker in opening_markers(calls)] if calls is not None else []
    places = [rest.find(head) for head in heads if head in rest]
    return rest[: min(places)] if places else None


def _text_open_behind(close: str, probes: Probes) -> str:
    """The marker in front of text, where there is one besides the one that ends reasoning."""
    last = _CHUNK.search(close)
    plain = probes.reply(TEXT)
    if last is None or not last.start() or not close[: last.start()].strip() or plain is None:
        return ""
    return last.group() if plain.partition(TEXT)[0].endswith(last.group()) else ""


def _shared_space(close: str, with_call: str | None, calls: CallSyntax | None) -> str:
    """Without white space behind that the template does not print in front of calls."""
    before_calls = _before_calls(with_call, calls) if with_call and REASON in with_call else None
    if not before_calls or not before_calls.startswith(close.rstrip()):
        return close
    space = takewhile(lambda pair: pair[0] == pair[1], zip(close, before_calls, strict=False))
    return "".join(character for character, _ in space)


def derive_text_open(probes: Probes, reasoning: Reasoning | None) -> Marker:
    """The marker that the template prints in front of text."""
    plain, call = probes.reply(TEXT), probes.reply(calls=[_ONE])
    if plain is None or probes.prompt is None:
        return Marker()
    before = plain.partition(TEXT)[0]
    if reasoning is not None:
        shown = probes.reply(TEXT, reasoning=REASON) or ""
        close = _between(shown, REASON, TEXT) or ""
        found = _text_open_behind(close, probes)
        if found or close:
            return Marker.of(found)
    own = before.removeprefix(_shared_start(before, probes.prompt, call or before))
    is_reasoning = reasoning is not None and any(marker.head in own for marker in (reasoning.open, reasoning.close))
    return Marker() if is_reasoning else Marker.of(own)


def derive_ends(probes: Probes, calls: CallSyntax | None) -> tuple[Marker, ...]:
    """Markers that end a message."""
    last = _behind(probes.reply(TEXT), TEXT)
    before_user = (_behind(probes.reply(TEXT, then="user"), TEXT) or "").partition(RESULT)[0]
    shared = _shared_start(last, before_user) if last is not None and before_user else last or ""
    ends = _marks(shared) if shared.strip() else [*_marks(last or "")[:1], *_marks(before_user)[:1]]
    cores = {end.strip() for end in ends}
    for then in ("", "tool"):
        behind = _behind_calls(probes, then)
        if not any(core in behind for core in cores):
            ends += [mark for mark in _marks(behind) if mark.strip() not in _closing_heads(calls)][:1]
    unique = {end.strip(): end for end in reversed(ends) if len(end.strip()) > 1}
    return tuple(Marker((core,), end[: end.index(core)]) for core, end in reversed(unique.items()))


def _behind(tail: str | None, probe: str) -> str | None:
    return tail.partition(probe)[2] if tail is not None and probe in tail else None


def _behind_calls(probes: Probes, then: str) -> str:
    tail = probes.reply(calls=[_ONE], then=then)
    return (_behind(tail, VALUES[0]) or "").partition(RESULT)[0]


def _closing_heads(calls: CallSyntax | None) -> set[str]:
    if isinstance(calls, ListedCalls):
        return set(calls.close.parts)
    if calls is None:
        return set()
    inner = calls.arguments.value_close.parts if isinstance(calls.arguments, TagArguments) else ()
    quote = (calls.arguments.quote,) if isinstance(calls.arguments, KeyedArguments) else ()
    tags = [tag for part in (*inner, *calls.call_close.parts) for tag in _TAG.findall(part)]
    return {*tags, *inner, *quote, *calls.call_close.parts, *calls.section_close.parts}


def _marks(text: str) -> list[str]:
    """The tags of a text that follow each other from its start, the first with the white space before it."""
    marks: list[str] = []
    core = text.lstrip()
    space = text[: len(text) - len(core)]
    whole = core.split(maxsplit=1)[0] if core else ""
    if whole and not _TAG.search(whole) and _SPECIAL.search(whole) and text.strip() == whole:
        return [space + whole]
    for tag in _TAG.finditer(text):
        marks.append((space if not marks else "") + tag.group())
    return marks


def opening_markers(calls: CallSyntax) -> tuple[Marker, ...]:
    """Any of these begins calls."""
    return calls.opens if isinstance(calls, ListedCalls) else (calls.open,)


def derive_calls(probes: Probes) -> CallSyntax | None:
    """How the template writes calls; None where it prints none, or in a way that is not understood."""
    calls = _derive_calls(probes)
    # A marker that repeats what it stands around is none that this parser could read.
    return None if calls is None or "kvstet_" in repr(calls) else calls


def _derive_calls(probes: Probes) -> CallSyntax | None:
    one = probes.reply(calls=[_ONE]) or _cut(probes.reply(calls=[_ONE], then="tool"))
    if one is None or NAMES[0] not in one or VALUES[0] not in one:
        return None
    return _derive_objects(probes, one) or _derive_marked(probes, one)


def _cut(tail: str | None) -> str | None:
    return tail.partition(RESULT)[0] if tail is not None else None


def _derive_objects(probes: Probes, tail: str) -> ListedCalls | None:
    name = tail.index(NAMES[0])
    for start in (place.start() for place in reversed(list(re.finditer(r"\{", tail[:name])))):
        keys = _call_keys(tail[start:])
        if keys is not None:
            items, size = keys
            return _listed(probes, items, tail[:start], tail[start + size :])
    return None


def _call_keys(text: str) -> tuple[ObjectCalls, int] | None:
    """The keys of a JSON object that is a call, and its length."""
    try:
        value, size = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    names = [key for key, item in value.items() if item == NAMES[0]]
    arguments = [key for key, item in value.items() if item in (_ONE, json.dumps(_ONE))]
    return (ObjectCalls(names[0], arguments[0]), size) if names and arguments else None


def _listed(probes: Probes, items: ObjectCalls | PythonCalls, before: str, behind: str) -> ListedCalls:
    opening = _CHUNK.search(before.rstrip("[ \n\t"))
    prompt = probes.prompt or ""
    if opening is None or opening.group().strip() in prompt:
        return ListedCalls(items, (), Marker())
    ends = _marks(_behind(probes.reply(TEXT), TEXT) or "")
    close = next(iter(_marks(behind.lstrip("] \n\t)"))), "").strip()
    space = _space_before_calls(probes, opening.group().strip())
    core = opening.group().strip()
    is_end = close in [end.strip() for end in ends] or close == core
    return ListedCalls(items, (Marker((core,), space),), Marker() if is_end or not close else Marker((close,)))


def _space_before_calls(probes: Probes, head: str) -> str:
    """White space that the template prints between text and calls."""
    between = (_behind(probes.reply(TEXT, [_ONE]), TEXT) or "").partition(head)[0]
    return between[len(between.rstrip()) :] if head else ""


def _derive_marked(probes: Probes, one: str) -> CallSyntax | None:
    name, key = one.index(NAMES[0]), one.find(KEYS[0])
    number = _between(probes.reply(calls=[{KEYS[0]: NUMBER}]) or "", KEYS[0], str(NUMBER))
    if key < name or number is None:
        return None
    start = one.rfind("{", name, key)
    if start >= 0 and (size := _json_size(one[start:])):
        return _marked(probes, JsonArguments(), one[name + len(NAMES[0]) : start], one[start + size :])
    if number.strip() == "=":
        return _listed(probes, PythonCalls(), one[:name], one[one.index(VALUES[0]) + len(VALUES[0]) :].lstrip("'\")"))
    before_value = _between(one, KEYS[0], VALUES[0]) or ""
    behind_value = one[one.index(VALUES[0]) + len(VALUES[0]) :]
    if number.strip() == ":":
        quote = before_value.strip().removeprefix(":").strip()
        behind = behind_value.removeprefix(quote).lstrip().removeprefix("}")
        return _marked(probes, KeyedArguments(quote), "", behind) if quote else None
    return _derive_tagged(probes, one, number)


def _derive_tagged(probes: Probes, one: str, before_number: str) -> CallSyntax | None:
    two = probes.reply(calls=[_TWO])
    between = _between(two or "", VALUES[0], KEYS[1])
    before_value = _between(one, KEYS[0], VALUES[0])
    before_key = _between(one, NAMES[0], KEYS[0])
    if between is None or before_value is None or before_key is None:
        return None
    key_open = _shared_end(before_key, between)
    value_close = between.removesuffix(key_open)
    form = TagArguments(Marker.of(key_open), Marker.of(before_value), Marker.of(before_number), Marker.of(value_close))
    if not (form.key_open and form.string_key_close and form.value_close):
        return None
    behind = one[one.index(VALUES[0]) + len(VALUES[0]) :]
    return _marked(probes, form, before_key.removesuffix(key_open), behind.removeprefix(value_close))


def _marked(probes: Probes, arguments: Arguments, name_close: str, behind: str) -> MarkedCalls | None:
    """``behind`` is what follows the arguments of the only call, to the end of the message."""
    before = _before_name(probes)
    if before is None:
        return None
    id_before, before = _without_id(before)
    id_after, name_close = _without_id_behind(name_close)
    between = _between_calls(probes, arguments)
    ends = [mark.strip() for mark in _marks(_behind(probes.reply(TEXT), TEXT) or "")[:1]]
    if between is None:
        call_open, section_open = before, ""
        call_close, section_close = _until_end(behind, ends), ""
    else:
        between = _without_id(between)[1]
        call_open = _shared_end(before, between)
        section_open = before.removesuffix(call_open)
        call_close = between.removesuffix(call_open).rstrip()
        section_close = _first_tag(_until_end(behind.removeprefix(call_close), ends))
    if not section_open.strip():
        section_open, call_open = "", section_open + call_open
    call_open, prefix = _without_name_prefix(call_open)
    return MarkedCalls(
        section_open=Marker.of(section_open),
        call_open=Marker.of(call_open),
        id_before=id_before,
        name_prefix=prefix,
        id_after=id_after,
        name_close=Marker.of(name_close) if name_close.strip() else Marker(),
        arguments=arguments,
        call_close=Marker.of(call_close) if call_close.strip() else Marker(),
        section_close=Marker.of(section_close) if section_open else Marker(),
    )


def _before_name(probes: Probes) -> str | None:
    """What stands in front of the first call's name, behind any text."""
    with_text = probes.reply(TEXT, [_ONE])
    between = _between(with_text or "", TEXT, NAMES[0])
    if between is not None and between.strip():
        return between
    call = probes.reply(calls=[_ONE]) or _cut(probes.reply(calls=[_ONE], then="tool")) or ""
    before, found, _ = call.partition(NAMES[0])
    plain = (probes.reply(TEXT) or "").partition(TEXT)[0]
    own = before.removeprefix(_shared_start(before, probes.prompt or before, plain or before))
    return own if found and own.strip() else None


def _between_calls(probes: Probes, arguments: Arguments) -> str | None:
    """What stands between the first call's arguments and the second's name."""
    two = probes.reply(calls=[_ONE, _ONE])
    between = _between(two or "", VALUES[0], NAMES[1])
    if between is None:
        return None
    if isinstance(arguments, JsonArguments):
        return between.lstrip('"').lstrip().removeprefix("}")
    if isinstance(arguments, KeyedArguments):
        return between.removeprefix(arguments.quote).lstrip().removeprefix("}")
    close = arguments.value_close
    return between.removeprefix(close.before + " ".join(close.parts)).removeprefix(close.after)


def _without_id(before: str) -> tuple[str, str]:
    """What ends an id in front of the name, and what stands before that."""
    for id_ in IDS:
        if id_ in before:
            start, _, end = before.rpartition(id_)
            return end, start
    return "", before


def _without_id_behind(name_close: str) -> tuple[str, str]:
    """What begins an id behind the name (or the call's number), and what stands behind that."""
    for id_ in IDS:
        if id_ in name_close:
            start, _, end = name_close.partition(id_)
            return start, end
    numbered = re.match(r"([^\w\s<>\[\]]+)\d+(?=\D)", name_close)
    return (numbered.group(1), name_close[numbered.end() :]) if numbered else ("", name_close)


def _without_name_prefix(call_open: str) -> tuple[str, str]:
    """A word directly before the name may be left out by the model, and is no part of the marker."""
    word = re.search(r"(?<=[>\]])[\w.:]+\Z", call_open)
    return (call_open[: word.start()], word.group()) if word else (call_open, "")


def _first_tag(text: str) -> str:
    """All up to the end of the first tag; the whole where there is none."""
    tag = _TAG.search(text)
    return text[: tag.end()] if tag else text


def _until_end(behind: str, ends: list[str]) -> str:
    places = [behind.find(end) for end in ends if end in behind]
    return behind[: min(places)] if places else behind


def _json_size(text: str) -> int:
    try:
        value, size = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return 0
    return size if value == _ONE else 0


def _between(text: str, start: str, stop: str) -> str | None:
    """Text between two probes, where they stand in this order."""
    _, found, rest = text.partition(start)
    between, found_stop, _ = rest.partition(stop)
    return between if found and found_stop else None


def _shared_start(*texts: str) -> str:
    """The common start of some texts, cut between tags."""
    shared: list[str] = []
    for tokens in zip(*map(_TOKEN.findall, texts), strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return "".join(shared)


def _shared_end(one: str, other: str) -> str:
    """The common end of two texts, cut between tags."""
    tokens, others = _TOKEN.findall(one), _TOKEN.findall(other)
    count = 0
    while count < min(len(tokens), len(others)) and tokens[-1 - count] == others[-1 - count]:
        count += 1
    return "".join(tokens[len(tokens) - count :])
