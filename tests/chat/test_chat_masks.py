from __future__ import annotations

from typing import Any

import pytest

from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.renderer import Renderer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ tools | tojson }}"
)
HEADER = "x-anthropic-billing-header: cc_version=2.1.330.{}; cc_entrypoint=cli;"


def text(content: str, *, role: str = "system", masks: bool = True, tools: Any = None) -> str:
    return (
        Renderer(TEMPLATE, ByteTokenizer(), masks=masks).render([{"role": role, "content": content}], tools=tools).text
    )


@pytest.mark.parametrize("around", ["{}\nYou are helpful.", "You are helpful.\n{}", "A\n{}\nB", "{}"])
def test_what_the_header_says_changes_nothing(around: str):
    prompts = {text(around.format(HEADER.format(version))) for version in ("bce", "f00")}
    assert len(prompts) == 1
    assert "billing" not in prompts.pop()


def test_the_response_can_name_it():
    renderer = Renderer(TEMPLATE, ByteTokenizer())
    assert renderer.render([{"role": "system", "content": HEADER}]).masked == ("x-anthropic-billing-header",)
    assert renderer.render([{"role": "system", "content": "You are helpful."}]).masked == ()


def test_users_may_talk_about_it():
    assert HEADER in text(HEADER, role="user")
    assert "a x-anthropic-billing-header: b" in text("a x-anthropic-billing-header: b")


def test_it_can_be_left_there():
    assert HEADER in text(HEADER, masks=False)


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "read", "description": "Reads.", "parameters": parameters}}


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


def test_the_order_of_keys_in_a_tool_does_not_matter():
    item = {"type": "string", "description": "One.", "enum": ["b", "a"]}
    nested = {"type": "object", "properties": {"type": {"type": "array", "items": item}, "x": item}, "required": ["x"]}
    wanted = tool({"type": "object", "properties": {"path": item, "a": nested, "b": item}, "required": ["path", "b"]})
    prompts = {text("Hi", tools=[form]) for form in (wanted, shuffled(wanted))}
    assert len(prompts) == 1
    prompt = prompts.pop()
    assert prompt.index('"name"') < prompt.index('"description"') < prompt.index('"parameters"')
    assert prompt.index('"path"') < prompt.index('"b": {') < prompt.index('"a": {')
    assert '["b", "a"]' in prompt
