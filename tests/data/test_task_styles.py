"""Prompt styles: the texts, and that a chat prompt's tokens are those of the model's template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import tiny_tokenizer
from layerif.data import load_sources, load_task
from layerif.data.styles import TEMPLATES, Request
from layerif.data.tokenizing import encode
from layerif.errors import InputError

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def chat_tokenizer(*, adds_bos: bool = False, writes_bos: bool = False) -> Any:
    tokenizer = tiny_tokenizer(bos=adds_bos)
    tokenizer.chat_template = ("{{ bos_token }}" if writes_bos else "") + TEMPLATE
    return tokenizer


def renderer(style: Any, tokenizer: Any = None, options: Any = None) -> Any:
    return Request(style=style, tokenizer=tokenizer, template_options=options).render


def test_texts() -> None:
    assert renderer("plain")("Say {this}.") == "Say {this}.\n"
    assert renderer("alpaca")("Say {this}.") == TEMPLATES["alpaca"].format(
        instruction="Say {this}."
    )
    assert renderer("chat", chat_tokenizer())("Hi") == "[user]Hi</s>[assistant]"


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("writes_bos", [False, True])
def test_a_chat_prompt_begins_once(adds_bos: bool, writes_bos: bool) -> None:
    """Prompt and completion together have the template's tokens, and never <s> twice."""
    tokenizer = chat_tokenizer(adds_bos=adds_bos, writes_bos=writes_bos)
    prompt = renderer("chat", tokenizer)("Hello there")
    (item,), _ = encode(tokenizer, [(prompt, "Yes.")], 512)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start = [tokenizer.bos_token_id] if adds_bos or writes_bos else []
    expected = [*ids("[user]Hello there"), tokenizer.eos_token_id, *ids("[assistant]")]
    assert item.input_ids == [*start, *expected, *ids("Yes.")]
    assert item.scored == len("Yes.")
    if writes_bos or not adds_bos:
        official = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hello there"}],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert item.input_ids == official + ids("Yes.")


def test_chat_needs_a_model_and_its_template() -> None:
    with pytest.raises(InputError, match="tokenizer"):
        renderer("chat")
    with pytest.raises(InputError, match="alpaca or plain"):
        renderer("chat", tiny_tokenizer())
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('only systems speak') }}"
    with pytest.raises(InputError, match="only systems speak"):
        renderer("chat", tokenizer)
    tokenizer.chat_template = (
        "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}"
    )
    with pytest.raises(InputError, match="leaves out"):
        load_task("facts", style="chat", tokenizer=tokenizer)  # it draws until prompts differ
    with pytest.raises(InputError, match=r"'haiku'; .*alpaca, chat"):
        renderer("haiku")  # type: ignore[arg-type]


THINKING = (
    "{{ bos_token }}{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    "{% if add_generation_prompt %}{% if enable_thinking is defined and not enable_thinking %}"
    "(no thoughts){% endif %}{% endif %}{% if not date is defined %}{% set date = 'today' %}"
    "{% endif %}{% generation %}{{ date }}{% endgeneration %}"
)


def test_variables_of_a_template_can_be_set() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKING
    assert renderer("chat", tokenizer)("Hi") == "<s><Hi>today"
    options = {"enable_thinking": False, "date": "26 Jul 2024"}
    assert renderer("chat", tokenizer, options)("Hi") == tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False, **options
    )
    assert renderer("chat", tokenizer, options)("Hi") == "<s><Hi>(no thoughts)26 Jul 2024"
    asked = {"style": "chat", "tokenizer": tokenizer}
    task = load_task("facts", template_options=options, **asked)
    assert task.origin["template_options"] == options
    assert "template_options" not in load_task("facts", **asked).origin
    for example in task.splits["test"][:9]:
        assert example.prompt.endswith("(no thoughts)26 Jul 2024")


@pytest.mark.parametrize("name", ["enable_thoughts", "messages", "bos_token", "tokenize", "m"])
def test_variables_that_a_template_does_not_take_are_refused(name: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKING
    with pytest.raises(InputError, match=f"'{name}'; .*date, enable_thinking"):
        renderer("chat", tokenizer, {name: True})


def test_variables_of_no_template_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    for name in ("facts", "agreement", "rte", "python-docs", path):
        for style in ("alpaca", "plain", "harness"):
            with pytest.raises(InputError, match="variables"):
                load_sources([name], style=style, template_options={"enable_thinking": False})
    tokenizer = chat_tokenizer()
    for value in (float("nan"), object()):
        with pytest.raises(InputError, match="recorded"):
            load_task("facts", style="chat", tokenizer=tokenizer, template_options={"x": value})


def test_style_changes_prompts_alone_and_is_recorded() -> None:
    tokenizer = chat_tokenizer()
    tasks = {
        style: load_task("facts", style=style, tokenizer=tokenizer)
        for style in ("alpaca", "chat", "plain")
    }
    plain = tasks["plain"]
    for style, task in tasks.items():
        assert task.origin["style"] == style
        render = renderer(style, tokenizer)
        for split, rows in task.splits.items():
            for example, bare in list(zip(rows, plain.splits[split], strict=True))[:50]:
                assert example.prompt == render(bare.prompt.removesuffix("\n"))
                assert (example.choices, example.answer) == (bare.choices, bare.answer)
    assert len({task.origin["sha256"]["test"] for task in tasks.values()}) == 3


def test_tasks_without_an_instruction_have_no_style(data_dir: Path) -> None:
    for name in ("agreement", "hellaswag", "winogrande"):
        one, other = (load_task(name, data_dir=data_dir, style=s) for s in ("alpaca", "plain"))
        assert one == other
        assert "style" not in one.origin
        with pytest.raises(InputError, match=f"task {name} "):
            load_sources([name], data_dir=data_dir, style="chat", tokenizer=chat_tokenizer())


def test_own_prompts_are_taken_as_written_or_are_messages(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = ({"prompt": f"Say {i}", "completion": str(i)} for i in range(9))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = load_task(path)
    assert written == load_task(path, style="plain")
    messages = load_task(path, style="chat", tokenizer=chat_tokenizer())
    assert messages.origin["style"] == "chat"
    for split, rows in messages.splits.items():
        assert [e.prompt for e in rows] == [
            f"[user]{e.prompt}</s>[assistant]" for e in written.splits[split]
        ]
