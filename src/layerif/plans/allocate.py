"""From scores to plans: a budget's map applied, and recorded in an Allocation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.artifacts import (
    Allocation,
    LayerScores,
    MetricScores,
    ModelInfo,
    ModuleSparsity,
    ProjectionScore,
)
from layerif.core.choices import (
    Aggregation,
    CountsCompat,
    CountsMap,
    Granularity,
    OnConstant,
    Orientation,
    ScoreScale,
    SparsityMap,
    check_choice,
)
from layerif.core.progress import note
from layerif.errors import InputError
from layerif.plans import maps as budgets
from layerif.plans.maps.aggregation import check_scores

# The maps that spend a score within a band of sparsities, each with its authors' lam.
BANDED = {
    "owl": (budgets.owl_map, budgets.OWL_LAMBDA),
    "dlp": (budgets.dlp_map, budgets.DLP_LAMBDA),
}


def allocate_sparsity(
    scores: LayerScores | MetricScores | ArrayLike,
    sparsity: float,
    *,
    map: SparsityMap = "layerif",
    granularity: Granularity = "layer",
    aggregate: Aggregation = "positive",
    epsilon: float = 0.1,
    lam: float | None = None,
    smooth: bool = True,
    orientation: Orientation | None = None,
    s_max: float = 1.0,
    on_constant: OnConstant = "error",
    model: ModelInfo | None = None,
) -> Allocation:
    """A sparsity for each decoder layer or projection; by weight their mean is `sparsity` exactly.

    Args:
        scores: what `score` or `metric_scores` returned, or one number a layer from elsewhere.
        sparsity: fraction of zeros over all projections of the decoder layers, 0 to 1.
        map: `layerif` (LayerIF's; AlphaPruning's where nothing is smoothed), `owl`, `dlp` or
            `uniform`.
        granularity: `projection` allocates by the scores of the projections, from which those of a
            layer follow.
        aggregate: how a LayerScores becomes one number a layer; unused for other scores.
        epsilon: under `layerif` half the spread of sparsities, relative to `sparsity`.
        lam: under `owl` and `dlp` half the width of the band of sparsities; None takes the authors'
            0.08 and 0.15.
        smooth: under `layerif` smooth the scores over neighbouring layers first; projections, which
            have no such neighbours, are never smoothed.
        orientation: `direct` prunes high scores more, `inverse` less; None is the map's own:
            `direct` under `layerif`, `inverse` under `owl` and `dlp`.
        s_max: no layer, or no projection, gets more than this.
        on_constant: what scores that are all equal give: an error, or the uniform plan.
        model: whose layer sizes count, for plain numbers; None counts layers as equally large.

    Raises:
        InputError: the scores do not tell the layers apart, a value is out of its range, there is
            no score for projections where one is needed, or `lam` is given to a map without one.
    """
    check_choice(map, SparsityMap, "sparsity map")
    check_choice(granularity, Granularity, "granularity")
    if lam is not None and map not in BANDED:
        raise InputError(
            f"lam counts under the maps owl and dlp; the map {map} takes none of it"
            + (" (its spread is epsilon)" if map == "layerif" else "")
        )
    vector, model, how = _resolve(scores, aggregate, model)
    modules: Sequence[ProjectionScore] = ()
    if granularity == "projection":
        modules = _projections(scores, aggregate)
        vector = np.array([module.score for module in modules])
        sizes = np.array([module.numel for module in modules])
        smooth = False
    else:
        sizes = np.asarray(model.layer_sizes) if model else np.ones(len(vector), dtype=np.int64)
    if on_constant == "uniform" and _constant(vector):
        map = "uniform"  # recorded as what was done
    if map == "uniform":
        plan = budgets.uniform_sparsity(sparsity, sizes, s_max=s_max)
        how = {"map": map}
    elif map == "layerif":
        orientation = orientation or "direct"
        plan = budgets.layerif_map(
            vector,
            sparsity,
            sizes,
            epsilon=epsilon,
            smoothing=smooth,
            orientation=orientation,
            s_max=s_max,
            on_constant=on_constant,
        )
        window = budgets.smoothing_window(len(vector)) if smooth else None
        how |= {"map": map, "epsilon": epsilon, "smoothing_window": window}
        how |= {"orientation": orientation, "s_max": s_max}
    else:
        function, usual = BANDED[map]
        lam, orientation = usual if lam is None else lam, orientation or "inverse"
        plan = function(
            vector,
            sparsity,
            sizes,
            lam=lam,
            orientation=orientation,
            s_max=s_max,
            on_constant=on_constant,
        )
        how |= {"map": map, "lam": lam, "orientation": orientation, "s_max": s_max}
    if map != "uniform":
        _caution(scores, vector, aggregate, f"sparsities of {plan.min():.0%} to {plan.max():.0%}")
    if granularity == "projection":
        planned = [
            ModuleSparsity(module=module.module, sparsity=value, numel=module.numel)
            for module, value in zip(modules, plan.tolist(), strict=True)
        ]
        how |= {"granularity": granularity}
        made = Allocation.of_modules(planned, total=sparsity, model=model, how=how)
    else:
        made = Allocation(
            kind="sparsity",
            allocation=plan.tolist(),
            total=sparsity,
            model=model,
            how=how,
        )
    note_emptied(made)
    return made


def note_emptied(plan: Allocation) -> None:
    """Say which layers or projections a plan of sparsity leaves without any weight."""
    names = [f"layer {layer}" for layer in range(len(plan.allocation))]
    shares: Sequence[float] = plan.allocation
    if plan.modules is not None:
        names = [module.module for module in plan.modules]
        shares = [module.sparsity for module in plan.modules]
    if caution := budgets.emptied(names, shares):
        note(caution)


def _caution(
    scores: LayerScores | MetricScores | ArrayLike,
    vector: NDArray[np.float64],
    aggregate: Aggregation,
    spread: str,
) -> None:
    """Say so where scores that hardly tell the layers apart are spread over a whole range."""
    cautions = [budgets.flat_scores(vector)]
    if isinstance(scores, LayerScores):
        cautions.append(budgets.unreliable_scores(scores.influence, aggregate))
    for caution in filter(None, cautions):
        note(f"{caution}, and min-max spreads them to {spread}; compare with the uniform plan")


def allocate_experts(
    scores: LayerScores | MetricScores | ArrayLike,
    total: int,
    *,
    map: CountsMap = "power",
    aggregate: Aggregation = "positive",
    beta: float = 3.0,
    orientation: Orientation = "direct",
    normalise: ScoreScale = "minmax",
    compat: CountsCompat = "none",
    shape: Sequence[float] = budgets.MOLA_SHAPE,
    on_constant: OnConstant = "error",
    model: ModelInfo | None = None,
) -> Allocation:
    """A number of LoRA experts for each decoder layer, at least one each, `total` in all.

    LayerIF's plan is the default; AlphaLoRA's comes from the metric `pl_alpha` with `beta=2.5`,
    `normalise="none"` and, where it is to be theirs to the rounding, `compat="authors"`.

    Args:
        scores: what `score` or `metric_scores` returned, or one number a layer from elsewhere.
        total: experts of all layers together.
        map: `power` (LayerIF's, AlphaLoRA's), `mola` (groups of layers) or `uniform`.
        aggregate: how a LayerScores becomes one number a layer; unused for other scores.
        beta: exponent of the power map; the larger, the more unequal.
        orientation: `direct` gives layers of high score more experts, `inverse` fewer.
        normalise: what the power map takes to the power: the `minmax` of the scores, or with `none`
            the scores themselves.
        compat: how the power map rounds: by largest remainders, or with `authors` as published code
            does it.
        shape: experts of each group of layers under `mola`, scaled to the total.
        on_constant: what scores that are all equal give: an error, or the uniform plan.
        model: which model plain numbers belong to, for the record.

    Raises:
        InputError: fewer experts than layers, or scores that do not tell the layers apart.
    """
    return _allocate_counts(
        "experts",
        scores,
        _resolve(scores, aggregate, model),
        total,
        map=map,
        beta=beta,
        orientation=orientation,
        normalise=normalise,
        compat=compat,
        shape=shape,
        on_constant=on_constant,
    )


def allocate_ranks(
    scores: LayerScores | MetricScores | ArrayLike,
    total: int,
    *,
    map: CountsMap = "power",
    aggregate: Aggregation = "positive",
    beta: float = 3.0,
    orientation: Orientation = "direct",
    normalise: ScoreScale = "minmax",
    compat: CountsCompat = "none",
    shape: Sequence[float] = budgets.MOLA_SHAPE,
    on_constant: OnConstant = "error",
    model: ModelInfo | None = None,
) -> Allocation:
    """A rank of plain LoRA for each decoder layer, at least 1 each, their sum `total` exactly.

    All projections of a layer have its rank; `layerif.adapters.lora_config_for` makes a LoraConfig.

    Args:
        scores: what `score` or `metric_scores` returned, or one number a layer from elsewhere.
        total: ranks of all layers together; rank 8 in each of 32 layers is 256.
        map: `power`, `mola` (groups of layers) or `uniform`.
        aggregate, beta, orientation, normalise, compat, on_constant, model: as `allocate_experts`.
        shape: ranks of each group of layers under `mola`, scaled to the total.

    Raises:
        InputError: a total below the number of layers, or scores that do not tell them apart.
    """
    return _allocate_counts(
        "ranks",
        scores,
        _resolve(scores, aggregate, model),
        total,
        map=map,
        beta=beta,
        orientation=orientation,
        normalise=normalise,
        compat=compat,
        shape=shape,
        on_constant=on_constant,
    )


def _allocate_counts(
    kind: Literal["experts", "ranks"],
    scores: LayerScores | MetricScores | ArrayLike,
    resolved: tuple[NDArray[np.float64], ModelInfo | None, dict[str, Any]],
    total: int,
    *,
    map: CountsMap,
    beta: float,
    orientation: Orientation,
    normalise: ScoreScale,
    compat: CountsCompat,
    shape: Sequence[float],
    on_constant: OnConstant,
) -> Allocation:
    vector, model, how = resolved
    check_choice(map, CountsMap, f"{kind} map")
    if map == "power" and on_constant == "uniform" and _constant(vector):
        map = "uniform"  # recorded as what was done
    if map == "power":
        plan = budgets.power_map(
            vector,
            total,
            beta=beta,
            orientation=orientation,
            normalise=normalise,
            compat=compat,
            on_constant=on_constant,
        )
        how |= {"map": map, "beta": beta, "orientation": orientation}
        how |= {"normalise": normalise, "compat": compat}
        if normalise == "minmax":
            what = "experts" if kind == "experts" else "ranks"
            aggregate = how.get("aggregate", "positive")
            _caution(scores, vector, aggregate, f"{plan.min()} to {plan.max()} {what}")
    elif map == "mola":
        plan = budgets.mola_map(len(vector), total, shape)
        how = {"map": map, "shape": list(shape)}
    else:
        plan = budgets.uniform_experts(len(vector), total)
        how = {"map": map}
    return Allocation(kind=kind, allocation=plan.tolist(), total=total, model=model, how=how)


def _constant(scores: NDArray[np.float64]) -> bool:
    try:
        budgets.minmax(scores)
    except budgets.ConstantScoresError:
        return True
    return False


def _projections(
    scores: LayerScores | MetricScores | ArrayLike, aggregate: Aggregation
) -> list[ProjectionScore]:
    """The score of each projection.

    Raises:
        InputError: there are none.
    """
    if isinstance(scores, LayerScores):
        values = scores.aggregate_projections(aggregate).tolist()
        return [
            ProjectionScore(module=f"layers.{p.layer}.{p.name}", score=value, numel=p.numel)
            for p, value in zip(scores.projections, values, strict=True)
        ]
    if isinstance(scores, MetricScores) and scores.projections is not None:
        return scores.projections
    whose = f"{scores.metric} scores" if isinstance(scores, MetricScores) else "plain numbers score"
    raise InputError(
        f"{whose} layers alone, and a plan by projections needs a score for each projection; take "
        "granularity='layer', or scores of influence, pl_alpha, outlier_ratio or dlp"
    )


def _resolve(
    scores: LayerScores | MetricScores | ArrayLike, aggregate: Aggregation, model: ModelInfo | None
) -> tuple[NDArray[np.float64], ModelInfo | None, dict[str, Any]]:
    """One number a layer, the model it is of, and how the number came to be."""
    if isinstance(scores, LayerScores):
        how = {
            "metric": "influence",
            "aggregate": aggregate,
            "estimator": scores.record.estimator,
            "task": (scores.record.task or {}).get("name"),
        }
        return scores.aggregate(aggregate), scores.model, how
    if isinstance(scores, MetricScores):
        how = {"metric": scores.metric, "options": scores.options}
        return np.array(scores.scores), scores.model, how
    vector = check_scores(scores)
    if model is not None and len(vector) != model.layers:
        raise InputError(
            f"there are {len(vector)} scores, but {model.name} has {model.layers} decoder layers"
        )
    return vector, model, {"metric": "given"}
