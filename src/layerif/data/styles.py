"""Prompt styles: how an instruction becomes the prompt that a model is given.

Tasks that ask a model to go on with a sentence have no instruction, and so no style.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from layerif.core.choices import PromptStyle, check_choice
from layerif.errors import InputError

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PLAIN = "{instruction}\n"

# From an instruction to a prompt; different instructions give different prompts.
Render = Callable[[str], str]


def renderer(
    style: PromptStyle, tokenizer: Any = None, template_options: Mapping[str, Any] | None = None
) -> Render:
    """The function that wraps an instruction in a style.

    Args:
        style: `alpaca`, the template of the paper; `plain`, the instruction on lines of its own;
            `chat`, a user's message in the model's chat template, up to where its reply begins.
            `harness` is no way to put an instruction: tasks that have it say so themselves.
        tokenizer: the model's, whose template `chat` takes; the other styles need none.
        template_options: variables of that template, such as `enable_thinking`.

    Raises:
        InputError: no such style, or `harness`; or `chat` with no tokenizer, or one without a
            usable template; or options that the template does not read.
    """
    check_choice(style, PromptStyle, "prompt style")
    if style == "harness":
        raise InputError(
            "the prompt style harness asks in the words of lm-evaluation-harness, which are not "
            "there for every task; choose alpaca, chat or plain"
        )
    if style != "chat":
        template = ALPACA if style == "alpaca" else PLAIN
        return lambda instruction: template.format(instruction=instruction)
    if tokenizer is None:
        raise InputError(
            "the prompt style chat is the chat template of a model, and no model is named: pass "
            "its tokenizer (tokenizer=... in Python, --model on the command line), or choose "
            "alpaca or plain"
        )
    return _chat(tokenizer, template_options or {})


def check_template_options(style: PromptStyle, options: Mapping[str, Any] | None) -> None:
    """Refuse options of a chat template where there is none, and values that JSON cannot hold.

    Raises:
        InputError: they are of no use, or cannot be recorded.
    """
    if options and style != "chat":
        raise InputError(
            f"template options ({', '.join(options)}) are variables of a chat template, and the "
            f"prompt style {style} has none; choose the style chat, or leave them out"
        )
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"template options are texts, numbers, true and false, which are recorded: {error}"
        ) from error


def style_record(style: PromptStyle, template_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The style of a task's prompts, for its origin."""
    options = {"template_options": dict(template_options)} if template_options else {}
    return {"style": style, **options}


def refuse_chat(style: PromptStyle, task: str) -> None:
    """Refuse `chat` for a task that has no instruction; `alpaca` and `plain` leave it as it is.

    Raises:
        InputError: the style is `chat`, or there is no such style.
    """
    check_choice(style, PromptStyle, "prompt style")
    if style == "chat":
        raise InputError(
            f"task {task} goes on with a text and gives no instruction, so there is no message "
            "that a chat template could hold; leave out the prompt style chat for this task"
        )


def _chat(tokenizer: Any, options: Mapping[str, Any]) -> Render:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"the tokenizer of {name} has no chat template, so it cannot give prompts the style "
            "chat; choose alpaca or plain, or a model that is tuned to chat"
        )
    if options:
        _check_variables(tokenizer, name, options)

    def templated(instruction: str) -> str:
        from jinja2 import TemplateError

        message = {"role": "user", "content": instruction}
        try:
            text: str = tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=False, **options
            )
        except (TemplateError, ValueError) as error:
            raise InputError(
                f"the chat template of {name} does not take a user's message: {error}; choose "
                "the prompt style alpaca or plain"
            ) from error
        return text

    templated("Hello")  # so that a template that takes no message is refused here
    return templated


def _template_variables(template: str) -> set[str]:
    """The names that a chat template takes from outside."""
    from jinja2 import Environment, meta

    # transformers' own tag, which marks a reply and has no part in the text.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    return meta.find_undeclared_variables(parsed)


def _check_variables(tokenizer: Any, name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the template does not read, or that are not the user's to set.

    Raises:
        InputError: there is one.
    """
    from jinja2 import TemplateError

    own = {"messages", *signature(tokenizer.apply_chat_template).parameters}
    own |= {*tokenizer.special_tokens_map}
    try:
        known = _template_variables(tokenizer.get_chat_template()) - own
    except (TemplateError, ValueError) as error:
        raise InputError(f"the chat template of {name} cannot be read: {error}") from error
    unknown = [option for option in options if option not in known]
    if unknown:
        # What transformers gives to every template.
        known -= {"raise_exception", "strftime_now", "tojson"}
        takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
        raise InputError(
            f"the chat template of {name} has no option {' and '.join(map(repr, unknown))}; {takes}"
        )
