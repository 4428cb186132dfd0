"""`layerif tasks` and `layerif tasks show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from layerif.cli import options
from layerif.cli.command import Command, given
from layerif.cli.derived import expanded
from layerif.cli.lazy import group
from layerif.cli.output import console, emit
from layerif.core.options import Rule
from layerif.data.options import STYLED, PromptOptions, has_styles

if TYPE_CHECKING:
    from rich.text import Text

    from layerif.data import Example

app = group(invoke_without_command=True)

SplitOption = Annotated[
    Literal["train", "validation", "test"], typer.Option(help="Which examples.")
]


@app.callback()
def tasks(context: typer.Context, as_json: options.Json = False) -> None:
    """List the tasks and corpora; `layerif tasks show NAME` prints examples of a task."""
    if context.invoked_subcommand is not None:
        return
    from layerif.data import listings
    from layerif.report.tables import plain_table

    found = listings()
    columns = ("name", "source", "candidates", "what it asks, or holds")
    table = plain_table("Tasks, and corpora of running text", *columns)
    for listing in found:
        table.add_row(*(cell or "-" for cell in listing))
    emit(table, [listing._asdict() for listing in found], as_json=as_json)


class ShownOptions(PromptOptions):
    """The form of the examples."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("model trust_remote_code", lambda v: v.get("style") == "chat", "with {style} chat"),
        Rule("style", lambda v: has_styles({**v, "task": v["name"]}), STYLED.when),
    )


@app.command("show", cls=Command)
@expanded
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Task, or a file of examples.")],
    prompts: ShownOptions,
    split: SplitOption = "test",
    count: Annotated[int, typer.Option(help="How many examples.")] = 3,
    model: Annotated[str | None, typer.Option(help="Model whose template --style chat is.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of all draws; splits do not depend on it.")
    ] = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Print examples as a model is given them, with all candidates and the right one marked.

    They are the first ones that a run with this seed draws.
    """
    from layerif.data import load_task

    task = load_task(name, **prompts.loading(model, trust_remote_code=trust_remote_code))
    if "count" not in given(context):
        count = task.default(split, count)
    examples = task.sample(split, count, seed)
    if as_json:
        shown = {"task": task.name, "split": split, "style": task.origin.get("style")}
        emit(None, {**shown, "examples": [_plain(e) for e in examples]}, as_json=True)
        return
    for number, example in enumerate(examples, start=1):
        console.rule(f"{task.name}, {split}, {number} of {count}", align="left", style="dim")
        console.print(_coloured(example), soft_wrap=True)


def _plain(example: Example) -> dict[str, Any]:
    """An example as JSON values: every candidate, the right one told by `answer`."""
    pairs = example.candidates()
    return {
        "candidates": [{"prompt": prompt, "completion": text} for prompt, text in pairs],
        "answer": example.answer or 0,
    }


def _coloured(example: Example) -> Text:
    """Prompt and completions apart by colour, and a mark before the right one of several."""
    from rich.text import Text

    text = Text()
    pairs = example.candidates()
    if not example.contexts:
        text.append(example.prompt, "cyan")
        if len(pairs) == 1:
            return text.append(example.completion, "bold green")
        if not example.prompt.endswith("\n"):
            text.append("\n")
    for index, (prompt, completion) in enumerate(pairs):
        right = index == example.answer
        text.append("✓ " if right else "  ", "bold green")
        if example.contexts:
            text.append(prompt, "cyan")
        text.append(completion, "bold green" if right else "yellow")
        text.append("\n")
    text.rstrip()
    return text
