"""On the real vocabulary of SmolLM2, whose template is ChatML without tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstet.chat.builtin import BUILTIN_TEMPLATES, builtin_template
from kvstet.chat.renderer import Renderer
from kvstet.llama.model import Model
from kvstet.llama.vocab import Vocab

PLAIN = "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}### assistant"
TEMPLATES = {name: builtin_template(name) for name in BUILTIN_TEMPLATES} | {"plain": PLAIN}


@pytest.fixture(scope="module")
def vocab(smollm2_path: Path) -> Iterator[Vocab]:
    model = Model.load_vocab(smollm2_path)
    yield model.vocab
    model.close()


@pytest.fixture(scope="module")
def renderers(vocab: Vocab) -> dict[str, Renderer]:
    return {name: Renderer(source, vocab) for name, source in TEMPLATES.items()}


snippets = st.sampled_from(
    [
        "def f(x):",
        " ",
        "  ",
        "\n",
        "é",
        "日本",
        "🙂",
        "<|im_start|>",
        "<|im_",
        "end|>",
        "<|endoftext|>",
        "<",
        "12",
        "\t",
    ]
)
text = st.lists(snippets, max_size=8).map("".join)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": text}),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(name=st.sampled_from(sorted(TEMPLATES)), conversation=messages)
def test_tokens_are_those_of_the_whole_text(
    renderers: dict[str, Renderer], vocab: Vocab, name: str, conversation: list[dict[str, object]]
) -> None:
    prompt = renderers[name].render(conversation)
    add_special = not prompt.text.startswith(vocab.token_text("bos"))
    whole = vocab.tokenize(prompt.text, add_special=add_special, parse_special=True)
    assert prompt.tokens.tolist() == whole.tolist()
    assert prompt.spans[-1].stop == len(whole)


@settings(deadline=None)
@given(text=text)
def test_a_raw_text_has_the_tokens_of_the_whole(renderers: dict[str, Renderer], vocab: Vocab, text: str) -> None:
    whole = vocab.tokenize(text, add_special=True, parse_special=True)
    assert renderers["chatml"].raw(text).tokens.tolist() == whole.tolist()


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_each_span_spells_its_message(renderers: dict[str, Renderer], vocab: Vocab, name: str) -> None:
    conversation = [{"role": role, "content": f"{role} 日本 🙂"} for role in ("system", "user", "assistant", "user")]
    prompt = renderers[name].render(conversation)
    spelt = [vocab.detokenize(prompt.tokens[span.start : span.stop]).decode() for span in prompt.spans]
    if name == "chatml":
        expected = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in conversation]
        assert spelt == [*expected, "<|im_start|>assistant\n"]
    else:
        assert spelt == [*(f"### {m['role']}\n{m['content']}\n" for m in conversation), "### assistant"]
