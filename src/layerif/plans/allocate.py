"""From scores to plans: a map of a kind applied, and recorded in an Allocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
from layerif.core.choices import Aggregation, Granularity, check_choice
from layerif.core.progress import note
from layerif.errors import InputError
from layerif.plans.kinds import Map, PlanKind, kinds
from layerif.plans.maps import (
    ConstantScoresError,
    flat_scores,
    minmax,
    smoothing_window,
    unreliable_scores,
)
from layerif.plans.maps.aggregation import check_scores

Scores = LayerScores | MetricScores | ArrayLike


def allocate(
    scores: Scores,
    kind: str,
    total: float,
    *,
    map: str | Callable[..., ArrayLike] | None = None,
    aggregate: Aggregation = "positive",
    granularity: Granularity = "layer",
    model: ModelInfo | None = None,
    **options: Any,
) -> Allocation:
    """A level for each decoder layer, or projection, whose total is `total` exactly.

    Args:
        scores: what `score` or `metric_scores` returned, or one number a layer from elsewhere.
        kind: `sparsity`, `experts`, `ranks`, or a registered one.
        total: the mean by weight of sparsities, the sum of experts or ranks.
        map: how scores become levels: the name of one of the kind's maps, None for its first; or a
            function of the scores, and of `options` by keyword, whose levels are fitted to the
            total.
        aggregate: how a LayerScores becomes one number a layer; unused for other scores.
        granularity: `projection` goes by the scores of the projections, where the kind allows.
        model: whose layer sizes count, for plain numbers; None counts layers as equally large.
        options: of the map. One that is None is the map's own; those of the kind's other maps have
            no effect. `on_constant` says what scores that are all equal give: `error` or `uniform`.

    Raises:
        InputError: the scores do not tell the layers apart, a value is out of its range, no such
            kind, map or option, or no score for projections where one is needed.
    """
    rules = kinds.find(kind)
    check_choice(granularity, Granularity, "granularity")
    name, chosen = _map(rules, map)
    own = _options(rules, name, chosen, options)
    vector, model, how = _resolve(scores, aggregate, model)
    sizes = np.asarray(model.layer_sizes) if model else np.ones(len(vector), dtype=np.int64)
    modules: Sequence[ProjectionScore] = ()
    if granularity == "projection":
        if not rules.by_projection:
            raise InputError(f"a plan of {kind} goes by layers; leave out granularity='projection'")
        modules = _projections(scores, aggregate)
        vector = np.array([module.score for module in modules])
        sizes = np.array([module.numel for module in modules])
        if "smooth" in own:  # projections have no neighbours
            own["smooth"] = False
    if chosen.scored and options.get("on_constant") == "uniform" and _constant(vector):
        name, chosen = _map(rules, "uniform")  # recorded as what was done
        own = _options(rules, name, chosen, {"s_max": options.get("s_max")})
    levels = _levels(rules, chosen, own, (vector, total, sizes))
    how = (how if chosen.scored else {}) | {"map": name}
    if chosen.recorded:
        how |= _recorded(own, len(vector))
    if chosen.scored and own.get("normalise") != "none":
        _caution(scores, vector, aggregate, rules.span.format(levels.min(), levels.max()))
    if modules:
        how |= {"granularity": granularity}
        planned = [
            ModuleSparsity(module=module.module, sparsity=value, numel=module.numel)
            for module, value in zip(modules, levels.tolist(), strict=True)
        ]
        made = Allocation.of_modules(planned, total=total, model=model, how=how)
    else:
        made = Allocation(kind=kind, allocation=levels.tolist(), total=total, model=model, how=how)
    note_cautions(made)
    return made


def allocate_sparsity(scores: Scores, sparsity: float, **options: Any) -> Allocation:
    """A sparsity for each decoder layer or projection; by weight their mean is `sparsity` exactly.

    Args:
        scores: what `score` or `metric_scores` returned, or one number a layer from elsewhere.
        sparsity: fraction of zeros over all projections of the decoder layers, 0 to 1.
        options: `aggregate`, `granularity` and `model` as `allocate`; and
            map: `layerif` (LayerIF's; AlphaPruning's where nothing is smoothed), `owl`, `dlp` or
                `uniform`;
            epsilon: under `layerif` half the spread of sparsities, relative to `sparsity` (0.1);
            lam: under `owl` and `dlp` half the width of the band of sparsities; None takes the
                authors' 0.08 and 0.15;
            smooth: under `layerif` smooth the scores over neighbouring layers first (True);
                projections, which have no such neighbours, are never smoothed;
            orientation: `direct` prunes high scores more, `inverse` less; None is the map's own:
                `direct` under `layerif`, `inverse` under `owl` and `dlp`;
            s_max: no layer, or no projection, gets more than this (1.0);
            on_constant: what scores that are all equal give: `error` (default) or `uniform`.

    Raises:
        InputError: as `allocate`.
    """
    return allocate(scores, "sparsity", sparsity, **options)


def allocate_experts(scores: Scores, total: int, **options: Any) -> Allocation:
    """A number of LoRA experts for each decoder layer, at least one each, `total` in all.

    LayerIF's plan is the default; AlphaLoRA's comes from the metric `pl_alpha` with `beta=2.5`,
    `normalise="none"` and, where it is to be theirs to the rounding, `compat="authors"`.

    Args:
        scores: what `score` or `metric_scores` returned, or one number a layer from elsewhere.
        total: experts of all layers together.
        options: `aggregate` and `model` as `allocate`; and
            map: `power` (LayerIF's, AlphaLoRA's), `mola` (groups of layers) or `uniform`;
            beta: exponent of the power map (3.0); the larger, the more unequal;
            orientation: `direct` (default) gives layers of high score more experts, `inverse`
                fewer;
            normalise: what the power map takes to the power: the `minmax` of the scores (default),
                or with `none` the scores themselves;
            compat: how the power map rounds: by largest remainders (`none`, the default), or with
                `authors` as published code does it;
            shape: experts of each group of layers under `mola`, scaled to the total (2, 4, 6, 8);
            on_constant: what scores that are all equal give: `error` (default) or `uniform`.

    Raises:
        InputError: as `allocate`, or fewer experts than layers.
    """
    return allocate(scores, "experts", total, **options)


def allocate_ranks(scores: Scores, total: int, **options: Any) -> Allocation:
    """A rank of plain LoRA for each decoder layer, at least 1 each, their sum `total` exactly.

    All projections of a layer have its rank; `layerif.adapters.lora_config_for` makes a LoraConfig.

    Args:
        scores: what `score` or `metric_scores` returned, or one number a layer from elsewhere.
        total: ranks of all layers together; rank 8 in each of 32 layers is 256.
        options: as `allocate_experts`.

    Raises:
        InputError: as `allocate`, or a total below the number of layers.
    """
    return allocate(scores, "ranks", total, **options)


def note_cautions(plan: Allocation) -> None:
    """Say what a reader should know of a plan: which layers it leaves without any weight."""
    names = [f"layer {layer}" for layer in range(len(plan.allocation))]
    levels: Sequence[float] = plan.allocation
    if plan.modules is not None:
        names = [module.module for module in plan.modules]
        levels = [module.sparsity for module in plan.modules]
    if caution := plan.rules.caution(names, levels):
        note(caution)


def _map(rules: PlanKind, map: str | Callable[..., ArrayLike] | None) -> tuple[str, Map]:
    """A map and what plans call it."""
    if callable(map):
        return getattr(map, "__name__", "given"), Map(map, exact=False)
    name = map or next(iter(rules.maps))
    return name, rules.find_map(name)


def _options(rules: PlanKind, name: str, chosen: Map, given: dict[str, Any]) -> dict[str, Any]:
    """All options of a map: those given, and for the others its own.

    An option whose value depends on the map is None unless given: it is refused where it does
    nothing.

    Raises:
        InputError: no map of the kind takes an option, or this one takes none of it.
    """
    own = chosen.options
    for option, value in given.items():
        if value is None or option == "on_constant" or option in own:
            continue
        if option not in rules.options:
            raise InputError(
                f"the map {name} takes no option {option!r}; it takes {', '.join(own) or 'none'}"
            )
        if rules.options[option] is None:
            takers = [n for n, each in rules.maps.items() if option in each.options]
            raise InputError(
                f"{option} counts under the maps {', '.join(takers)}; the map {name} takes none of "
                f"it; it takes {', '.join(own)}"
            )
    return own | {n: v for n, v in given.items() if n in own and v is not None}


def _levels(
    rules: PlanKind,
    chosen: Map,
    options: dict[str, Any],
    given: tuple[NDArray[np.float64], float, NDArray[Any]],
) -> NDArray[Any]:
    """Levels of scores, total and sizes."""
    if chosen.exact:
        return np.asarray(chosen.function(*given[: 3 if rules.weighted else 2], **options))
    return np.asarray(rules.fit(chosen.function(given[0], **options), *given[1:]))


def _recorded(options: dict[str, Any], count: int) -> dict[str, Any]:
    """Options as a plan records them; of smoothing its window."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name == "smooth":
            found["smoothing_window"] = smoothing_window(count) if value else None
        elif name != "on_constant":
            found[name] = [*value] if name == "shape" else value
    return found


def _caution(
    scores: Scores, vector: NDArray[np.float64], aggregate: Aggregation, spread: str
) -> None:
    """Say so where scores that hardly tell the layers apart are spread over a whole range."""
    cautions = [flat_scores(vector)]
    if isinstance(scores, LayerScores):
        cautions.append(unreliable_scores(scores.influence, aggregate))
    for caution in filter(None, cautions):
        note(f"{caution}, and min-max spreads them to {spread}; compare with the uniform plan")


def _constant(scores: NDArray[np.float64]) -> bool:
    try:
        minmax(scores)
    except ConstantScoresError:
        return True
    return False


def _projections(scores: Scores, aggregate: Aggregation) -> list[ProjectionScore]:
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
    scores: Scores, aggregate: Aggregation, model: ModelInfo | None
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
