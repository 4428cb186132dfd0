"""Search for the plan whose compressed model has the lowest loss on held-out text."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import typer

from layerif.cli import options
from layerif.cli.allocate import KindTotal, PlanOut, deliver, total_options
from layerif.cli.derived import expanded
from layerif.cli.lazy import ListedGroup, single
from layerif.core.options import Options, Rule, Shown
from layerif.data.options import PromptOptions, has_styles
from layerif.data.registry import CORPORA
from layerif.model.options import ModelOptions
from layerif.plans.kinds.registry import KINDS as PLAN_KINDS
from layerif.search.options import SearchOptions
from layerif.search.registry import SEARCHES, options_of, searched


class DropTotal(KindTotal):
    """For depth."""

    drop: int
    """Layers, or with --unit sublayer sublayers, that are dropped."""


class TextOptions(Options):
    """Running text, where the search itself says how it is cut."""

    title = "Calibration"

    calibration: Annotated[str, CORPORA] = "python-docs"
    """A text file, or a name."""


class TargetOptions(PromptOptions):
    """What the loss is taken on."""

    title = "Target"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "style",
            lambda v: has_styles({**v, "tasks": v.get("target")}),
            "for a {target} that has prompts in several styles",
        ),
    )

    target: Annotated[str | None, Shown("the calibration text")] = None
    """Task or corpus whose loss counts."""


def search(
    context: typer.Context,
    model: ModelOptions,
    total: KindTotal,
    how: SearchOptions,
    text: TextOptions,
    aim: TargetOptions,
    out: PlanOut = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Search for the plan whose compressed model has the lowest loss on held-out text.

    Each round compresses the model by the plan of the moment, asks by one backward pass what a
    little more or less would change in each place, and moves the plan; a round that does not lower
    the loss of held-out text is taken back. Or plans are tried at random (--strategy evolution).
    Interrupted, the same command goes on after the last finished round or generation.
    """
    from layerif.artifacts import Plan
    from layerif.core.checkpoint import check_out
    from layerif.data import load_corpus, load_sources

    if out is not None:
        check_out(out, Plan.file_kind(), overwrite=overwrite)
    corpus = load_corpus(text.calibration, data_dir=aim.data_dir)
    words = aim.loading(model.model, trust_remote_code=model.trust_remote_code)
    target = None if aim.target is None else load_sources([aim.target], **words)[0]

    from layerif.workflows.searching import search_into

    plan = search_into(
        out,
        *model.open(),
        total.value,
        calibration=corpus,
        target=target,
        kind=context.info_name or "sparsity",
        options=how,
        overwrite=overwrite,
    )
    deliver(context, plan, out, as_json=as_json)


def _command(name: str) -> Any:
    """The command of a kind of plan that can be searched for."""
    command = expanded(
        search,
        rules=(options.beside("overwrite", "out"),),
        total=DropTotal if name == "depth" else total_options(PLAN_KINDS.find(name)),
        how=options_of(name),
    )
    # A search of its own says what it does; its arguments are flags.
    own = name in SEARCHES.names() and (SEARCHES.find(name).__doc__ or "").partition("Args:")[0]
    return single(command, name, help=own or search.__doc__)


app = ListedGroup(
    searched, lambda name: f"Search for a plan of kind {name}.", _command, help=__doc__
)
