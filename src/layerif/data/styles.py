"""Prompt styles: how an instruction becomes the prompt that a model is given.

Tasks that ask a model to go on with a sentence have no instruction, and so no style.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

from layerif.core.choices import PromptStyle, check_choice
from layerif.errors import InputError

TEMPLATES: dict[PromptStyle, str] = {
    "alpaca": "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
    "plain": "{instruction}\n",
}

# From an instruction to a prompt; different instructions give different prompts.
Render = Callable[[str], str]


@dataclass(frozen=True)
class Request:
    """How a task or corpus is asked for: the arguments of `layerif.load_task`.

    Attributes:
        data_dir: a folder of parquet data sets, in place of the hub.
        seed: for rows that are generated, and for splits that are carved out of others.
        style: how an instruction becomes a prompt: `alpaca`, the template of the paper; `plain`,
            the instruction on lines of its own; `chat`, a user's message in the model's chat
            template, up to where its reply begins; `harness`, the words of lm-evaluation-harness,
            which some tasks have.
        tokenizer: the model's, whose chat template `chat` is; the other styles need none.
        template_options: variables of that template, such as `{"enable_thinking": False}`.

    Raises:
        InputError: there is no such style, or the options have no use or cannot be recorded.
    """

    data_dir: str | Path | None = None
    seed: int = 0
    style: PromptStyle = "alpaca"
    tokenizer: Any = None
    template_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_choice(self.style, PromptStyle, "prompt style")
        check_template_options(self.style, self.template_options)

    @property
    def folder(self) -> Path | None:
        """`data_dir` as a path."""
        return None if self.data_dir is None else Path(self.data_dir)

    @cached_property
    def render(self) -> Render:
        """The function that wraps an instruction in the style.

        Raises:
            InputError: the style is `harness`, or `chat` with no tokenizer, one without a usable
                template, or options that the template does not read.
        """
        if self.style == "harness":
            raise InputError(
                "the prompt style harness asks in the words of lm-evaluation-harness, which not "
                "every task has; choose alpaca, chat or plain"
            )
        if self.style != "chat":
            return lambda instruction: TEMPLATES[self.style].format(instruction=instruction)
        if self.tokenizer is None:
            raise InputError(
                "the prompt style chat is the chat template of a model, and no model is named: "
                "pass its tokenizer, or choose alpaca or plain"
            )
        return _chat(self.tokenizer, self.template_options or {})

    @property
    def styled(self) -> dict[str, Any]:
        """The style of a task's prompts, for its origin."""
        options = self.template_options
        return {"style": self.style} | ({"template_options": dict(options)} if options else {})


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

    # Refused here rather than after the data are read. Templates that expect a message in parts
    # (text, pictures) leave a plain one out, and every prompt would be the same.
    if "Hello" not in templated("Hello"):
        raise InputError(
            f"the chat template of {name} leaves out a user's message that is plain text; choose "
            "the prompt style alpaca or plain"
        )
    return templated


def _check_variables(tokenizer: Any, name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the template does not read, or that are not the user's to set."""
    from jinja2 import Environment, TemplateError, meta

    own = {"messages", *signature(tokenizer.apply_chat_template).parameters}
    own |= {*tokenizer.special_tokens_map}
    try:
        # Without transformers' own tag, which marks a reply and has no part in the text.
        plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", tokenizer.get_chat_template())
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
        known = meta.find_undeclared_variables(parsed) - own
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
