"""The table of providers: complete, sourced, and asked by name, URL and model."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from kvstet.errors import UnknownProvider
from kvstet.providers.provider import CacheRule, Provider, provider_at, provider_named, providers

NAMES = [
    "anthropic",
    "openai",
    "azure",
    "bedrock",
    "gemini",
    "groq",
    "deepseek",
    "openrouter",
    "xai",
    "mistral",
    "together",
    "fireworks",
    "cerebras",
    "moonshot",
    "zai",
    "qwen",
    "ollama",
    "lmstudio",
    "llama.cpp",
    "vllm",
    "sglang",
    "kvstet",
]

ROWS = [pytest.param(each, id=each.name) for each in providers()]


def test_all_rows_are_there() -> None:
    assert [each.name for each in providers()] == NAMES


@pytest.mark.parametrize("provider", ROWS)
def test_every_rule_has_a_source_and_a_date_and_names_only_fields_that_exist(provider: Provider) -> None:
    for rule in provider.rules:
        assert rule.source
        assert re.fullmatch(r"2026-\d\d(-\d\d)?", rule.checked)
        assert {*rule.quoted, *rule.unsure} <= set(CacheRule.__slots__)


@pytest.mark.parametrize("provider", ROWS)
def test_every_row_has_a_rule_for_a_model_nobody_knows_in_each_dialect(provider: Provider) -> None:
    for dialect in (None, *provider.dialects):
        assert provider.rule_for("a-model-of-tomorrow", dialect)


@pytest.mark.parametrize("provider", ROWS)
def test_every_hosted_row_says_where_the_key_goes_and_no_local_one_needs_a_bill(provider: Provider) -> None:
    assert provider.is_local or provider.key
    assert provider.base_urls


@pytest.mark.parametrize(
    ("model", "min_tokens"),
    [
        ("claude-opus-5-5", 512),
        ("claude-sonnet-5-5-20261001", 512),
        ("claude-haiku-5-5", 512),
        ("claude-opus-5", 512),
        ("claude-opus-4-8", 1024),
        ("claude-sonnet-5", 1024),
        ("claude-sonnet-4-5-20250929", 1024),
        ("claude-opus-4-7", 2048),
        ("claude-opus-4-6", 4096),
        ("claude-opus-4-5-20251101", 4096),
        ("claude-haiku-4-5", 4096),
    ],
)
def test_anthropics_minimum_depends_on_the_model(model: str, min_tokens: int) -> None:
    """providers.md: 512 (5.5 family, Opus 5), 1,024 (Opus 4.8, Sonnet 4.5-5), 2,048 (Opus 4.7), 4,096 (Opus 4.5/4.6,
    Haiku 4.5)."""
    assert provider_named("anthropic").rule_for(model).min_tokens == min_tokens


@pytest.mark.parametrize(("model", "factor"), [("claude-opus-5-5", 0.05), ("claude-sonnet-5-5", 0.05), ("x", 0.1)])
def test_anthropics_reads_cost_a_tenth_or_half_of_that(model: str, factor: float) -> None:
    """providers.md: 0.1 (0.05 Opus/Sonnet 5.5) / 1.25, 2.0 for 1h."""
    rule = provider_named("anthropic").rule_for(model)
    assert (rule.read_factor, rule.write_factor, rule.long_write_factor) == (factor, 1.25, 2.0)


@pytest.mark.parametrize(
    ("model", "kind", "read", "write"),
    [
        ("gpt-4o-2024-08-06", "prefix", 0.5, 1.0),
        ("gpt-4.1-mini", "prefix", 0.25, 1.0),
        ("gpt-5", "prefix", 0.1, 1.0),
        ("gpt-5-mini", "prefix", 0.1, 1.0),
        ("gpt-5.5", "prefix", 0.1, 1.0),
        ("gpt-5.6-sol", "breakpoints", 0.1, 1.25),
        ("gpt-5.10", "breakpoints", 0.1, 1.25),
        ("gpt-6", "breakpoints", 0.1, 1.25),
    ],
)
def test_openais_rules_changed_with_5_6(model: str, kind: str, read: float, write: float) -> None:
    """providers.md: OpenAI >= 5.6 0.1 / 1.25; OpenAI <= 5.5 0.5 (4o) 0.25 (4.1) 0.1 (5.x) / free."""
    rule = provider_named("openai").rule_for(model)
    assert (rule.kind, rule.read_factor, rule.write_factor) == (kind, read, write)


def test_a_long_lifetime_is_there_in_one_dialect_only() -> None:
    """providers.md: >=30m; 12h Responses; 2.5 for 12h."""
    openai = provider_named("openai")
    responses, chat = (openai.rule_for("gpt-5.6", dialect) for dialect in ("responses", "chat"))
    assert (responses.long_write_factor, chat.long_write_factor) == (2.5, None)


def test_what_keeps_a_conversation_together_depends_on_the_dialect() -> None:
    """providers.md, xAI: `x-grok-conv-id` (Chat), `prompt_cache_key` (Responses)."""
    xai = provider_named("xai")
    chat, responses = xai.rule_for("grok-5", "chat"), xai.rule_for("grok-5", "responses")
    assert (chat.affinity_header, chat.cache_key_field) == ("x-grok-conv-id", None)
    assert (responses.affinity_header, responses.cache_key_field) == (None, "prompt_cache_key")


def test_a_row_that_passes_requests_on_has_its_upstreams_rules() -> None:
    router = provider_named("openrouter")
    rule = router.rule_for("anthropic/claude-opus-4.5")
    assert (rule.kind, rule.min_tokens, rule.cache_key_field) == ("breakpoints", 4096, "session_id")
    assert router.rule_for("openai/gpt-5.6-sol").breakpoint_style == "prompt_cache_breakpoint"
    assert router.rule_for("meta/llama-5").certainty_of("kind") == "unsure"


def test_a_makers_name_before_a_models_makes_no_difference() -> None:
    assert provider_named("openai").rule_for("openai/gpt-4o").read_factor == 0.5
    assert provider_named("anthropic").rule_for("Anthropic/Claude-Opus-4-5").min_tokens == 4096


def test_anthropics_layer_for_openais_clients_does_not_cache_and_a_routers_does() -> None:
    """Anthropic, OpenAI SDK compatibility: "Prompt caching is not supported"."""
    rule = provider_named("anthropic").rule_for("claude-opus-5", "chat")
    assert (rule.kind, rule.breakpoint_style) == ("none", None)
    assert provider_named("openrouter").rule_for("anthropic/claude-opus-5", "chat").kind == "breakpoints"


def test_a_fields_certainty_is_told() -> None:
    rule = provider_named("openai").rule_for("gpt-5.2")
    assert [rule.certainty_of(name) for name in ("min_tokens", "granularity_tokens")] == ["stated", "quoted"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.anthropic.com/v1/messages", "anthropic"),
        ("https://API.OpenAI.com/v1", "openai"),
        ("https://me.openai.azure.com/openai/v1", "azure"),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com", "bedrock"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("http://127.0.0.1:8000/v1", "other"),
        ("https://api.anthropic.com.evil.example", "other"),
        ("nonsense", "other"),
    ],
)
def test_a_provider_is_known_by_its_host(url: str, name: str) -> None:
    assert provider_at(url).name == name


def test_where_the_user_fills_in_a_host_his_url_is_kept() -> None:
    azure = provider_at("https://me.openai.azure.com/openai/v1/")
    assert set(azure.base_urls.values()) == {"https://me.openai.azure.com/openai/v1"}
    assert provider_at("https://api.openai.com").base_urls["chat"] == "https://api.openai.com/v1"


def test_a_local_server_is_what_the_caller_says() -> None:
    vllm = provider_at("http://gpu:9/v1", "vllm")
    assert (vllm.name, vllm.base_urls["chat"]) == ("vllm", "http://gpu:9/v1")
    assert vllm.rule_for("x").granularity_tokens == 16


def test_a_server_that_nobody_knows_promises_nothing() -> None:
    rule = provider_at("http://10.0.0.7:9000/v1").rule_for("x")
    assert rule.read_factor is None
    assert rule.certainty_of("kind") == "unsure"


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UnknownProvider, match="'opanai'; known are: anthropic, openai,"):
        provider_named("opanai")


def test_the_table_for_people_is_the_one_of_the_data() -> None:
    """If it is not: python scripts/provider_table.py"""
    from provider_table import FILE, with_table

    document = FILE.read_text("utf-8")
    assert with_table(document) == document
    assert all(f"(`{name}`)" in document for name in NAMES)


def test_a_misspelt_field_of_the_table_is_noticed() -> None:
    """The table is read strictly enough that data cannot be lost by a typing error."""
    raw = tomllib.loads(resources.files("kvstet.providers").joinpath("table.toml").read_text("utf-8"))
    fields = {*CacheRule.__slots__, "like"}
    for row in raw["provider"]:
        assert set(row) - {"rule"} <= {*Provider.__slots__, "rules"}
        for rule in (row["rule"], row["rule"].get("unmarked", {}), *row.get("rules", [])):
            assert set(rule) <= fields, row["name"]


def test_the_table_is_part_of_the_package() -> None:
    """Hatch takes every file below the package into the wheel that git does not ignore."""
    assert Path(str(resources.files("kvstet.providers").joinpath("table.toml"))).is_file()
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kind": "guess", "source": "", "checked": "2026-01-01"}, CacheRule)
