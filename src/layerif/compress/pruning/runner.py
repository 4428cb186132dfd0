"""Prune a model decoder layer by decoder layer, each layer by its share of a plan."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerif.artifacts import Manifest, Plan, PrunedModule
from layerif.compress.figures import Figures
from layerif.compress.held import Taken
from layerif.compress.layerwise import calibrated, each_layer
from layerif.compress.pruning.base import Pruner
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.registry import PRUNERS
from layerif.compress.pruning.saving import refuse_packed, zeros_in
from layerif.compress.pruning.targets import SAME, Pattern, Target, targets
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.data import Corpus, SelfText
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers, unwrapped
from layerif.model.opening import Tokenizer, describe, setting

# Of a projection, in a layer's step.
WEIGHT = "weight"


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
    work = _Pruning(method, pruner, asked)
    with calibrated(
        model,
        layers,
        work,
        options=options,
        tokenizer=tokenizer,
        calibration=calibration,
        steps=steps,
    ) as (visits, about):
        modules = each_layer(layers, visits, work, steps)
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


@dataclass(frozen=True)
class _Pruning:
    """Zeros, as many in each projection as are asked for."""

    method: str
    pruner: Pruner
    asked: Mapping[str, Target]
    doing: str = "pruning"

    @property
    def statistics(self) -> Taken | None:
        return self.pruner.statistics

    def change(
        self, projection: Projection, statistics: Any
    ) -> tuple[Figures, dict[str, torch.Tensor]]:
        figures = self.pruner.prune(projection, statistics, self.asked[projection.key])
        return figures, {WEIGHT: projection.weight}

    def restore(self, projection: Projection, kept: Mapping[str, torch.Tensor]) -> None:
        projection.weight.copy_(kept[WEIGHT])

    def entry(
        self,
        projection: Projection,
        figures: Figures,
        seconds: float,
        kept: Mapping[str, torch.Tensor],
    ) -> PrunedModule:
        target = self.asked[projection.key]
        return PrunedModule(
            module=projection.key,
            asked=target.zeros,
            zeros=zeros_in(projection.weight),
            numel=projection.numel,
            pattern=str(target.pattern) if target.pattern else None,
            error=figures.error,
            damping=figures.damping,
            seconds=seconds,
        )


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
