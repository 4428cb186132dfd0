"""Prompt styles: how an instruction becomes the prompt that a model is given.

Tasks that ask a model to go on with a sentence have no instruction, and so no style.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layerif.choices import PromptStyle, check_choice
from layerif.errors import InputError

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PLAIN = "{instruction}\n"

# From an instruction to a prompt; different instructions give different prompts.
Render = Callable[[str], str]


def renderer(style: PromptStyle, tokenizer: Any = None) -> Render:
    """The function that wraps an instruction in a style.

    Args:
        style: `alpaca`, the template of the paper; `plain`, the instruction on lines of its own;
            `chat`, a user's message in the model's chat template, up to where its reply begins.
            `harness` is no way to put an instruction: tasks that have it say so themselves.
        tokenizer: the model's, whose template `chat` takes; the other styles need none.

    Raises:
        InputError: no such style, or `harness`; or `chat` with no tokenizer, or one without a
            usable template.
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
    return _chat(tokenizer)


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


def _chat(tokenizer: Any) -> Render:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"the tokenizer of {name} has no chat template, so it cannot give prompts the style "
            "chat; choose alpaca or plain, or a model that is tuned to chat"
        )

    def templated(instruction: str) -> str:
        from jinja2 import TemplateError

        message = {"role": "user", "content": instruction}
        try:
            text: str = tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, ValueError) as error:
            raise InputError(
                f"the chat template of {name} does not take a user's message: {error}; choose "
                "the prompt style alpaca or plain"
            ) from error
        return text

    # Many templates write the token that begins every text, and many tokenizers put it before
    # every text: the prompt leaves it to the tokenizer where both do.
    bos = tokenizer.bos_token_id
    twice = bos is not None and tokenizer(templated("Hello"))["input_ids"][:2] == [bos, bos]
    if not twice:
        return templated
    return lambda instruction: templated(instruction).removeprefix(tokenizer.bos_token)
