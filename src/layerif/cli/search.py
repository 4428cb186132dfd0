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
from layerif.errors import InputError
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


class BitsWithin(KindTotal):
    """Bits or a size."""

    bits: float | None = None
    """Mean bits of a weight over all projections, scales aside."""
    size: str | None = None
    """Size of the model's weights in place of --bits, such as 120MB: scales and zero points are
    counted, and all else in the precision of the model's files."""

    def of(self, model: Any, options: Any) -> float:
        """The mean of bits.

        Raises:
            InputError: neither is given or both, or the size is too small.
        """
        from layerif.compress.quantization.sizes import bits_within

        if (self.bits is None) == (self.size is None):
            raise InputError("give either --bits or --size, and not both")
        if self.size is not None:
            return bits_within(self.size, model, options)
        return float(self.bits or 0)


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

    One pass on the model as it is asks what each level would cost in each place (--strategy
    quadratic). Or rounds compress the model by the plan of the moment, ask by one backward pass
    what a little more or less would change, and move the plan (marginal); or plans are tried at
    random (evolution). What does not lower the loss of held-out text is taken back. Interrupted,
    the same command goes on after the last finished round or generation.
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

    opened, tokenizer = model.open()
    plan = search_into(
        out,
        opened,
        tokenizer,
        total.of(opened, how),
        calibration=corpus,
        target=target,
        kind=context.info_name or "sparsity",
        options=how,
        overwrite=overwrite,
    )
    deliver(context, plan, out, as_json=as_json)


# What a search is given in place of a plan's total.
TOTALS: dict[str, type[KindTotal]] = {"depth": DropTotal, "bits": BitsWithin}


def _command(name: str) -> Any:
    """The command of a kind of plan that can be searched for."""
    command = expanded(
        search,
        rules=(options.beside("overwrite", "out"),),
        total=TOTALS.get(name) or total_options(PLAN_KINDS.find(name)),
        how=options_of(name),
    )
    # A search of its own says what it does; its arguments are flags.
    own = name in SEARCHES.names() and (SEARCHES.find(name).__doc__ or "").partition("Args:")[0]
    return single(command, name, help=own or search.__doc__)


app = ListedGroup(
    searched, lambda name: f"Search for a plan of kind {name}.", _command, help=__doc__
)
