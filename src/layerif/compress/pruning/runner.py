"""Prune a model decoder layer by decoder layer, each layer by its share of a plan."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from layerif.artifacts import Manifest, Plan, PrunedModule
from layerif.calibration.hidden import hidden_states
from layerif.calibration.statistics import Statistics
from layerif.calibration.text import calibration_batches
from layerif.calibration.walk import Visit, walk
from layerif.compress.pruning.base import Pruner
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.registry import PRUNERS
from layerif.compress.pruning.saving import refuse_packed, zeros_in
from layerif.compress.pruning.targets import SAME, Pattern, Target, targets
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.core.progress import note, progress
from layerif.data import Corpus, SelfText
from layerif.errors import InputError, NumericalError
from layerif.estimates import note_memory
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import Tokenizer, describe, input_device, setting

# In a layer's step, beside its weights.
FIGURES = "figures"


@takes(PruneOptions)
def prune(
    model: Any,
    plan: Plan | float | None = None,
    *,
    options: PruneOptions,
    tokenizer: Tokenizer | None = None,
    calibration: Corpus | SelfText | str | Sequence[str] | None = None,
    steps: Steps = NO_STEPS,
) -> Manifest:
    """Set weights of the decoder layers' projections to zero, in place.

    A layer's statistics come from the calibration text as the pruned layers below hand it on; those
    of all its projections are taken before any is pruned. No dense kernel runs faster for zeros.

    Args:
        model: a causal LM of transformers, changed in place. Where PEFT has put adapters in it, the
            weights under them are pruned, with the adapters active, and these stay as they are.
        plan: sparsity of each decoder layer or projection, or one number for all; may be left out
            with `nm`.
        options: how weights are chosen, and on how much text; each by keyword too. (Wanda's and
            SparseGPT's authors use 128 chunks of 2048 tokens.)
        tokenizer: the model's tokenizer; `magnitude` needs none.
        calibration: a corpus, whose calibration part is used, text, or `SelfText()` for text that
            the model samples from itself; `magnitude` needs none.
        steps: keeps finished layers, so that a run cut short can go on.

    Returns:
        The manifest, with the zeros of each projection counted after the fact.

    Raises:
        InputError: the plan belongs to another model or contradicts the pattern, which may not fit
            a projection, the calibration text is missing or too short, or a projection's weight is
            quantised; names it.
        NumericalError: weights or activations are not finite, or a Hessian cannot be factorised.
    """
    began = time.perf_counter()
    method = options.method
    pruner = PRUNERS.find(method)
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    refuse_packed(layers.projections)
    info = describe(model)
    plan = _as_plan(plan, options.nm, layers)
    plan.check_fits(info, "sparsity")
    asked = targets(layers.projections, plan, options.nm)
    if options.all_experts and len(layers.linear) == len(layers.projections):
        raise InputError(
            f"all_experts has no effect: {info.name} has no experts that share a parameter; leave "
            "it out"
        )
    if layers.rest:
        note(f"left as they are: {', '.join(layers.kinds_of_rest)}")
    about: dict[str, Any] = {}
    modules: list[PrunedModule] = []
    with ExitStack() as open_:
        visits: Iterable[Visit | None] = [None] * len(layers)
        if pruner.statistics is not None:
            if calibration is None or tokenizer is None:
                raise InputError(
                    f"the method {method} takes statistics from text; give a tokenizer and "
                    "calibration text, or use the method magnitude"
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
                f"{method}: {samples} chunks of {length} tokens; hidden states {size / 1e6:.0f} MB"
            )
            note_memory(model, f"pruning by {method}", "walk", options.batch_tokens, kept=size)
            visits = walk(model, layers, batches, store, all_experts=options.all_experts)
        open_.enter_context(evaluation_mode(model))
        advance = open_.enter_context(progress(f"pruning ({method})", len(layers)))
        for index, visit in enumerate(visits):
            modules += _prune_layer(index, visit, layers.of(index), pruner, asked, steps)
            advance()
    return Manifest(
        model=info,
        plan=plan,
        method=method,
        nm=options.nm,
        sparsity=sum(m.zeros for m in modules) / sum(m.numel for m in modules),
        modules=modules,
        dense=dict(layers.rest),
        calibration=about,
        seconds=round(time.perf_counter() - began, 3),
        setting=setting(model),
    )


@torch.no_grad()
def _prune_layer(
    index: int,
    visit: Visit | None,
    projections: Sequence[Projection],
    pruner: Pruner,
    asked: Mapping[str, Target],
    steps: Steps,
) -> list[PrunedModule]:
    """Prune the projections of one layer, or take them as an interrupted run left them."""
    step = f"layer-{index:04d}"
    kept = steps.load(step)
    if kept is None:
        statistics, ordered = None, projections
        if visit is not None and pruner.statistics is not None:
            statistics = pruner.statistics(projections)
            visit.observe(statistics)
            # Those that share their inputs one after another, so that work on these is done once.
            sharing = {p.key: statistics.sharing(p) for p in projections}
            places = list(sharing.values())
            ordered = sorted(projections, key=lambda p: places.index(sharing[p.key]))
        rows = {p.key: _pruned(p, pruner, statistics, asked[p.key]) for p in ordered}
        # (projections, 3) error, damping and seconds; NaN for None.
        table = torch.tensor([rows[p.key] for p in projections], dtype=torch.float64)
        steps.save(step, {FIGURES: table, **{p.key: p.weight for p in projections}})
    else:
        table = kept[FIGURES]
        for projection in projections:
            projection.weight.copy_(kept[projection.key])
    modules = []
    for projection, row in zip(projections, table.tolist(), strict=True):
        target = asked[projection.key]
        error, damping = (None if math.isnan(value) else value for value in row[:2])
        modules.append(
            PrunedModule(
                module=projection.key,
                asked=target.zeros,
                zeros=zeros_in(projection.weight),
                numel=projection.numel,
                pattern=str(target.pattern) if target.pattern else None,
                error=error,
                damping=damping,
                seconds=round(row[2], 4),
            )
        )
    return modules


def _pruned(
    projection: Projection, pruner: Pruner, statistics: Statistics | None, target: Target
) -> list[float]:
    """Prune one projection: error, damping and seconds, with NaN for what there is none of."""
    began = time.perf_counter()
    if not bool(projection.weight.isfinite().all()):
        raise NumericalError(
            f"the weight of {projection.key} holds NaN or infinity, which has no rank"
        )
    figures = pruner.prune(projection, statistics, target)
    if figures.error is not None and not math.isfinite(figures.error):
        raise NumericalError(
            f"the output of {projection.key} on the calibration text is not finite; try "
            "dtype='float32'"
        )
    if not bool(projection.weight.isfinite().all()):
        raise NumericalError(
            f"a weight of {projection.key} that stays leaves the range of "
            f"{projection.weight.dtype} as it is refitted; try dtype='float32'"
        )
    values = (figures.error, figures.damping, time.perf_counter() - began)
    return [math.nan if value is None else value for value in values]


def _as_plan(plan: Plan | float | None, nm: str | None, layers: DecoderLayers) -> Plan:
    if isinstance(plan, Plan):
        return plan
    pattern = None if nm is None else Pattern.parse(nm)
    if plan is None:
        if pattern is None:
            raise InputError("give a plan, a sparsity, or a pattern N:M such as 2:4")
        plan = pattern.sparsity
    if not 0 <= plan <= 1:
        raise InputError(f"sparsity must be within 0 to 1, not {plan}")
    if pattern is not None and abs(pattern.sparsity - plan) > SAME:
        raise InputError(
            f"the pattern {nm} makes {pattern.sparsity:.4g} of the weights zero, and a sparsity of "
            f"{plan:g} was asked for; leave one of the two out"
        )
    return Plan(
        kind="sparsity",
        allocation=[float(plan)] * len(layers),
        total=float(plan),
        layer_sizes=[int(size) for size in layers.sizes],
        how={"map": "uniform"},
    )
