"""From scores to plans: a map of a kind applied, and recorded in a Plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.artifacts import (
    LayerScores,
    MetricScores,
    ModelInfo,
    Plan,
    ProjectionScore,
    module_level,
)
from layerif.core.choices import Aggregation
from layerif.core.options import takes
from layerif.core.progress import note
from layerif.errors import InputError
from layerif.plans.kinds.base import Map, PlanKind
from layerif.plans.kinds.registry import KINDS
from layerif.plans.maps.cautions import flat_scores, unreliable_scores
from layerif.plans.maps.scores import check_scores, positions, smoothing_window
from layerif.plans.options import CountsMapOptions, MapOptions, SparsityMapOptions

Scores = LayerScores | MetricScores | ArrayLike


def allocate(
    scores: Scores,
    kind: str,
    total: float,
    options: MapOptions | None = None,
    *,
    map: str | Callable[..., ArrayLike] | Map | None = None,
    model: ModelInfo | None = None,
    **given: Any,
) -> Plan:
    """A level for each decoder layer, or projection, whose total is `total` exactly.

    Args:
        scores: what `score` or `metric_scores` returned, or one number a layer from elsewhere.
        kind: `sparsity`, `experts`, `ranks`, or a registered one.
        total: the mean by weight of sparsities, the sum of experts or ranks.
        options: of the kind's maps, SparsityMapOptions or CountsMapOptions; each by keyword too.
        map: how scores become levels, by name; or a function of the scores (n,), and of options by
            keyword, whose levels are fitted to the total: sparsities by one shift of all, experts
            and ranks in proportion to them.
        model: whose layer sizes count, for plain numbers; None counts layers as equally large.

    Raises:
        InputError: the scores do not tell the layers apart, a value is out of its range, no such
            kind, map or option, or no score for projections where one is needed.
    """
    rules = KINDS.find(kind)
    if map is not None and not isinstance(map, str):
        chosen = Map.given(map)
        name = getattr(chosen.function, "__name__", "given")
        own = {n: given.pop(n, usual) for n, usual in chosen.options.items()}
    elif map is not None:
        given["map"] = map
    options = rules.options(**given) if options is None else options.but(**given)
    if map is None or isinstance(map, str):
        name, chosen, own = options.map, rules.maps[options.map], _own(rules, options)
    vector, model, how = _resolve(scores, options.aggregate, model)
    sizes = np.asarray(model.layer_sizes) if model else np.ones(len(vector), dtype=np.int64)
    modules: Sequence[ProjectionScore] = ()
    if getattr(options, "granularity", "layer") == "projection":
        modules = _projections(scores, options.aggregate)
        vector = np.array([module.score for module in modules])
        sizes = np.array([module.numel for module in modules])
        if "smooth" in own:  # projections have no neighbours
            own["smooth"] = False
    # Layers without a projection have no part in it.
    held = (sizes > 0) | (rules.every_layer and not modules)
    vector, sizes = vector[held], sizes[held]
    vector = _shuffled(vector, options.shuffle if chosen.scored else None, how)
    uniform = chosen.scored and options.on_constant == "uniform"
    if uniform and positions(vector, "direct", "uniform") is None:
        name, chosen = "uniform", rules.maps["uniform"]  # recorded as what was done
        own = {n: getattr(options, n) for n in chosen.options}
    if chosen.exact:
        exactly = (total, sizes) if rules.weighted else (total,)
        levels = np.asarray(chosen.function(vector, *exactly, **own))
    else:
        levels = np.asarray(rules.fit(chosen.function(vector, **own), total, sizes))
    how = (how if chosen.scored else {}) | {"map": name}
    if chosen.recorded:
        how |= _recorded(own, len(vector))
    if chosen.scored and own.get("normalise") != "none":
        spread = rules.span.format(levels.min(), levels.max())
        _caution(scores, vector, options.aggregate, spread)
    if modules:
        how |= {"granularity": "projection"}
        planned = [
            module_level(kind, module.module, value, module.numel)
            for module, value in zip(modules, levels.tolist(), strict=True)
        ]
        made = Plan.of_modules(planned, kind=kind, total=total, model=model, how=how)
    else:
        whole = np.full(len(held), rules.low, dtype=levels.dtype)
        whole[held] = levels
        made = Plan(kind=kind, allocation=whole.tolist(), total=total, model=model, how=how)
    note_cautions(made)
    return made


@takes(SparsityMapOptions)
def allocate_sparsity(
    scores: Scores,
    sparsity: float,
    *,
    options: SparsityMapOptions,
    model: ModelInfo | None = None,
) -> Plan:
    """A sparsity for each decoder layer or projection; by weight their mean is `sparsity` exactly.

    Args:
        scores, options, model: as for `allocate`.
        sparsity: fraction of zeros over all projections of the decoder layers, 0 to 1.

    Raises:
        InputError: as `allocate`.
    """
    return allocate(scores, "sparsity", sparsity, options, model=model)


@takes(CountsMapOptions)
def allocate_experts(
    scores: Scores, total: int, *, options: CountsMapOptions, model: ModelInfo | None = None
) -> Plan:
    """A number of LoRA experts for each decoder layer, at least one each, `total` in all.

    LayerIF's plan is the default; AlphaLoRA's comes from the metric `pl_alpha` with `beta=2.5`,
    `normalise="none"` and, where it is to be theirs to the rounding, `compat="authors"`.

    Args:
        scores, options, model: as for `allocate`.
        total: experts of all layers together.

    Raises:
        InputError: as `allocate`, or fewer experts than layers.
    """
    return allocate(scores, "experts", total, options, model=model)


@takes(CountsMapOptions)
def allocate_ranks(
    scores: Scores, total: int, *, options: CountsMapOptions, model: ModelInfo | None = None
) -> Plan:
    """A rank of plain LoRA for each decoder layer, at least 1 each, their sum `total` exactly.

    All projections of a layer have its rank; `layerif.adapters.lora_config_for` makes a LoraConfig.

    Args:
        scores, options, model: as for `allocate`.
        total: ranks of all layers together; rank 8 in each of 32 layers is 256.

    Raises:
        InputError: as `allocate`, or a total below the number of layers.
    """
    return allocate(scores, "ranks", total, options, model=model)


def note_cautions(plan: Plan) -> None:
    """Say what a reader should know of a plan: which layers it leaves without any weight."""
    levels = {f"layer {layer}": level for layer, level in enumerate(plan.allocation)}
    if plan.modules is not None:
        levels = {module.module: module.level for module in plan.modules}
    if caution := plan.rules.caution([*levels], [*levels.values()]):
        note(caution)


def _shuffled(
    vector: NDArray[np.float64], seed: int | None, how: dict[str, Any]
) -> NDArray[np.float64]:
    """The scores in another order, which the record then says; as they are without a seed."""
    if seed is None:
        return vector
    how["shuffle"] = seed
    return np.random.default_rng(seed).permutation(vector)


def _own(rules: PlanKind, options: MapOptions) -> dict[str, Any]:
    """The options that the map takes; what is None is the map's own.

    Raises:
        InputError: an option without a default of its own, which belongs to other maps, is given.
    """
    usual = rules.maps[options.map].options
    of_maps = type(options).model_fields.keys() - MapOptions.model_fields.keys()
    for name in sorted(of_maps - usual.keys()):
        default = type(options).model_fields[name].default
        if default is None and getattr(options, name) is not None:
            takers = [n for n, each in rules.maps.items() if name in each.options]
            raise InputError(
                f"{name} is for the maps {', '.join(takers)}; the map {options.map} takes "
                f"{', '.join(usual)}"
            )
    return {n: u if (value := getattr(options, n)) is None else value for n, u in usual.items()}


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
        held = np.array(scores.model.layer_sizes) > 0
        cautions.append(unreliable_scores(scores.influence[held], aggregate))
    for caution in filter(None, cautions):
        note(f"{caution}, and min-max spreads them to {spread}; compare with the uniform plan")


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
