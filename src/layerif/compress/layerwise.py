"""A model changed decoder layer by decoder layer, each as the changed layers below hand it on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch

from layerif.calibration.hidden import hidden_states
from layerif.calibration.statistics import Statistics
from layerif.calibration.text import calibration_batches
from layerif.calibration.walk import Visit, walk
from layerif.compress.figures import Figures
from layerif.compress.held import Taken
from layerif.compress.options import WalkOptions
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.progress import note, progress
from layerif.data import Corpus, SelfText
from layerif.errors import InputError, NumericalError
from layerif.estimates import note_memory
from layerif.model.layers import DecoderLayers, Projection
from layerif.model.modes import evaluation_mode
from layerif.model.opening import Tokenizer, input_device

# In a layer's step, beside what is kept of each projection.
FIGURES = "figures"
# What the manifest says of a projection.
M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class Work(Protocol[M_co]):
    """What is done to each projection. What is kept of it goes into its layer's step."""

    @property
    def doing(self) -> str:
        """The work in a word, for progress: `pruning`."""

    @property
    def method(self) -> str:
        """The name of the method."""

    @property
    def statistics(self) -> Taken | None:
        """Makes the statistics of a layer's inputs; None where the method needs none."""

    def change(
        self, projection: Projection, statistics: Any
    ) -> tuple[Figures, dict[str, torch.Tensor]]:
        """Change a projection in place; what can be said of it, and what is kept, by name."""

    def restore(self, projection: Projection, kept: Mapping[str, torch.Tensor]) -> None:
        """Change it as an interrupted run did."""

    def entry(
        self,
        projection: Projection,
        figures: Figures,
        seconds: float,
        kept: Mapping[str, torch.Tensor],
    ) -> M_co:
        """What the manifest says of it."""


@contextmanager
def calibrated(  # the model, the work, and the text
    model: Any,
    layers: DecoderLayers,
    work: Work[Any],
    *,
    options: WalkOptions,
    tokenizer: Tokenizer | None,
    calibration: Corpus | SelfText | str | Sequence[str] | None,
    steps: Steps = NO_STEPS,
) -> Iterator[tuple[Iterable[Visit | None], dict[str, Any]]]:
    """The layers to visit, with None for each where no statistics are taken; and about the text.

    The first layer runs when its visit is asked for, not before.

    Raises:
        InputError: calibration text is missing or too short, or `all_experts` has no effect.
    """
    if options.all_experts:
        why = ""
        if work.statistics is None:
            why = f"the method {work.method} takes no statistics from text"
        elif len(layers.linear) == len(layers.projections):
            why = "the model has no experts that share a parameter"
        if why:
            raise InputError(f"all_experts has no effect: {why}; leave it out")
    if layers.rest:
        note(f"left as they are: {', '.join(layers.kinds_of_rest)}")
    with ExitStack() as open_:
        visits: Iterable[Visit | None] = [None] * len(layers)
        about: dict[str, Any] = {}
        if work.statistics is not None:
            if calibration is None or tokenizer is None:
                raise InputError(
                    f"the method {work.method} takes statistics from text; give a tokenizer and "
                    "calibration text, or use a method that takes none"
                )
            samples, length = options.calibration_samples, options.context_length
            batches, about = calibration_batches(
                model,
                tokenizer,
                calibration,
                samples=samples,
                context_length=length,
                seed=options.seed,
                batch_tokens=options.batch_tokens,
                steps=steps,
            )
            hidden_size = model.config.get_text_config(decoder=True).hidden_size
            size = samples * length * hidden_size * next(model.parameters()).element_size()
            store = open_.enter_context(
                hidden_states(options.hidden_states, size, input_device(model), steps.folder)
            )
            note(
                f"{work.method}: {samples} chunks of {length} tokens; hidden states "
                f"{size / 1e6:.0f} MB"
            )
            what = f"{work.doing} by {work.method}"
            note_memory(model, what, "walk", options.batch_tokens, kept=size)
            visits = walk(model, layers, batches, store, all_experts=options.all_experts)
        open_.enter_context(evaluation_mode(model))
        yield visits, about


def each_layer(
    layers: DecoderLayers, visits: Iterable[Visit | None], work: Work[M], steps: Steps
) -> list[M]:
    """The work on every projection: what the manifest says of each, in order.

    Raises:
        NumericalError: weights or activations are not finite, or a Hessian cannot be factorised.
    """
    entries: list[M] = []
    with progress(f"{work.doing} ({work.method})", len(layers)) as advance:
        for index, visit in enumerate(visits):
            entries += _layer(index, visit, layers.of(index), work, steps)
            advance()
    return entries


@torch.no_grad()
def _layer(
    index: int,
    visit: Visit | None,
    projections: Sequence[Projection],
    work: Work[M],
    steps: Steps,
) -> list[M]:
    """Change the projections of one layer, or take them as an interrupted run left them."""
    step = f"layer-{index:04d}"
    kept = steps.load(step)
    if kept is None:
        statistics, ordered = None, projections
        if visit is not None and work.statistics is not None:
            statistics = work.statistics(projections)
            visit.observe(statistics)
            # Those that share their inputs one after another, so that work on these is done once.
            sharing = {p.key: statistics.sharing(p) for p in projections}
            places = list(sharing.values())
            ordered = sorted(projections, key=lambda p: places.index(sharing[p.key]))
        kept, rows = {}, {}
        for projection in ordered:
            rows[projection.key], own = _changed(projection, work, statistics)
            kept |= {_kept_as(projection, name): tensor for name, tensor in own.items()}
        # (projections, 3) error, damping and seconds; NaN for None.
        kept[FIGURES] = torch.tensor([rows[p.key] for p in projections], dtype=torch.float64)
        steps.save(step, kept)
    else:
        for projection in projections:
            work.restore(projection, _own(projection, kept))
    entries = []
    for projection, row in zip(projections, kept[FIGURES].tolist(), strict=True):
        error, damping = (None if math.isnan(value) else value for value in row[:2])
        figures, seconds = Figures(error, damping), round(row[2], 4)
        entries.append(work.entry(projection, figures, seconds, _own(projection, kept)))
    return entries


def _kept_as(projection: Projection, name: str) -> str:
    return f"{projection.key}:{name}"


def _own(projection: Projection, kept: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is kept of one projection, by name."""
    start = _kept_as(projection, "")
    return {name.removeprefix(start): kept[name] for name in kept if name.startswith(start)}


def _changed(
    projection: Projection, work: Work[Any], statistics: Statistics | None
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Change one projection: error, damping and seconds, NaN for what there is none of."""
    began = time.perf_counter()
    if not bool(projection.weight.isfinite().all()):
        raise NumericalError(
            f"the weight of {projection.key} holds NaN or infinity, which has no rank"
        )
    figures, kept = work.change(projection, statistics)
    if figures.error is not None and not math.isfinite(figures.error):
        raise NumericalError(
            f"the output of {projection.key} on the calibration text is not finite; try "
            "dtype='float32'"
        )
    if not bool(projection.weight.isfinite().all()):
        raise NumericalError(
            f"a changed weight of {projection.key} leaves the range of "
            f"{projection.weight.dtype}; try dtype='float32'"
        )
    values = (figures.error, figures.damping, time.perf_counter() - began)
    return [math.nan if value is None else value for value in values], kept
