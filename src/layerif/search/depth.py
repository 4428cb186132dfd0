"""Layers to drop, searched for: the model is asked, and run, without them."""

from __future__ import annotations

import time
from typing import Any

from layerif.artifacts.plan import ModuleLevel, Plan
from layerif.compress.depth.skipping import Skipping
from layerif.compress.depth.streams import parts_of
from layerif.compress.depth.units import Unit, check_count, find_units, refuse_dependent_layers
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.data.base import Task
from layerif.data.corpora import Corpus
from layerif.estimates import note_memory
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.opening import Tokenizer, describe
from layerif.search.depth_options import DEPTH_STRATEGIES, DepthSearchOptions
from layerif.search.depth_strategies import DepthSearch
from layerif.search.slopes import BACKWARD_TOKENS
from layerif.search.texts import texts_for, up_to

# Copies of the residual stream at each layer, beside what a backward pass keeps.
HELD = 2


@takes(DepthSearchOptions)
def search_depth(
    model: Any,
    drop: float,
    *,
    options: DepthSearchOptions,
    tokenizer: Tokenizer,
    calibration: Corpus,
    target: Corpus | Task | None = None,
    steps: Steps = NO_STEPS,
) -> Plan:
    """Search for the layers, or sublayers, without which the loss of a text or a task rises least.

    One after another is dropped: each step asks the model, as it is by then, by one backward pass
    what every layer is worth, and measures the loss without each of the few that seem to be worth
    least. Other strategies choose all at once. The plan is judged on held-out text. Interrupted,
    the same command goes on after the last finished step.

    Args:
        model: a causal LM of transformers; left as before.
        drop: how many layers, or sublayers, are dropped, 1 to all but one.
        options: the strategy, what is dropped, and how much text is read; each by keyword too.
        tokenizer: the model's tokenizer.
        calibration: a corpus, whose calibration part is used.
        target: what the loss is taken on: another corpus or a task's completions; None for the
            calibration text.
        steps: keeps finished steps, so that a search cut short can go on.

    Returns:
        A plan of kind `depth`: 1 for each layer that is kept, 0 for each that is dropped, their sum
        the layers kept. By sublayers each of these has 1 or 0, and a layer the share of its weights
        that is kept. `how` has the losses on held-out text of the whole model and of the plan, in
        nats a token, the tokens run, and the seconds.

    Raises:
        InputError: a value is out of its range, a text too short, layers depend on one another, or
            sublayers cannot be told apart.
        NumericalError: a loss or a gradient is not finite.
    """
    began = time.perf_counter()
    strategy = DEPTH_STRATEGIES.find(options.strategy)
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    refuse_dependent_layers(model, layers)
    units = find_units(layers, options.unit)
    count = check_count(units, drop)
    skipping = Skipping(model, layers, units)
    parts = parts_of(skipping, units)
    texts = texts_for(model, tokenizer, calibration, target, options)
    tokens = min(options.batch_tokens, BACKWARD_TOKENS) if strategy.backward else 0
    embeddings = model.get_input_embeddings().weight
    numbers = max(tokens, options.trial_tokens) * embeddings.shape[-1] * len(layers)
    note_memory(
        model,
        "the search",
        "backward" if strategy.backward else "forward",
        tokens or options.batch_tokens,
        kept=HELD * numbers * embeddings.itemsize,
    )
    search = DepthSearch(
        skipping,
        parts,
        [unit for layer in parts for part in layer for unit in part.units],
        count,
        asked=up_to(texts.pool, options.tokens),
        tried=up_to(texts.pool, options.trial_tokens),
        options=options,
        steps=steps,
    )
    dropped = [search.units[place] for place in strategy.run(search)]
    seconds = round(time.perf_counter() - began, 3)
    with_all, without = (
        search.loss(places, texts.held_out)
        for places in ([], [search.units.index(unit) for unit in dropped])
    )
    how = {
        "metric": strategy.metric,
        "map": options.strategy,
        "unit": options.unit,
        "dropped": [unit.key for unit in dropped],
        "target": texts.origin,
        "calibration": {
            "name": calibration.name,
            "context_length": options.context_length,
            "seed": options.seed,
        },
        **search.passes,
        "seconds": seconds,
        "trace": search.trace,
        "dense_held_out_loss": with_all,
        "held_out_loss": without,
    }
    return plan_of(model, units, dropped, how)


def plan_of(model: Any, units: list[Unit], dropped: list[Unit], how: dict[str, Any]) -> Plan:
    """A plan by what is dropped.

    Args:
        units: all of the model, layers or sublayers.
    """
    out = {unit.key for unit in dropped}
    described = describe(model)
    if not units[0].name:
        levels = [0 if unit.key in out else 1 for unit in units]
        total = sum(levels)
        return Plan(kind="depth", allocation=levels, total=total, model=described, how=how)
    modules = [
        ModuleLevel(module=unit.key, level=float(unit.key not in out), numel=unit.numel)
        for unit in units
    ]
    plan = Plan.of_modules(modules, kind="depth", model=described, how=how)
    return plan.model_copy(update={"total": round(plan.realised_total, 6)})
