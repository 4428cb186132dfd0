"""A plan searched for at the operating point: the model is asked as it is once compressed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerif.artifacts.plan import Plan
from layerif.compress.registry import COMPRESSORS
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import Options, takes
from layerif.data.base import Task
from layerif.data.batching import collate, pack
from layerif.data.corpora import Corpus
from layerif.estimates import note_memory
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.opening import Tokenizer, input_device
from layerif.search.base import Search
from layerif.search.options import StrategyOptions
from layerif.search.registry import KINDS, SEARCHES, STRATEGIES, options_of
from layerif.search.texts import texts_for


def of_kind(arguments: Mapping[str, Any]) -> type[Options]:
    """The options of a search, from its other arguments."""
    return options_of(arguments.get("kind", "sparsity"))


@takes(StrategyOptions, of_kind)
def search_plan(
    model: Any,
    total: float,
    *,
    options: StrategyOptions,
    tokenizer: Tokenizer,
    calibration: Corpus,
    target: Corpus | Task | None = None,
    kind: str = "sparsity",
    steps: Steps = NO_STEPS,
) -> Plan:
    """Search for the plan whose compressed model has the lowest loss on held-out text.

    By the strategy of `options`, from the plan that they say. The model is left as before. With
    the strategy marginal, or a limit in evaluations, the plan depends on the seed alone; with a
    limit in seconds on the machine as well.

    Args:
        model: a causal LM of transformers.
        total: S, for sparsity the fraction of zeros over all projections, 0 to 1; for depth how
            many layers or sublayers are dropped.
        options: the strategy, its options, and the method that compresses.
        tokenizer: the model's tokenizer.
        calibration: a corpus, whose calibration part is used.
        target: what the loss is taken on: another corpus or a task's completions; None for the
            calibration text.
        kind: of budget.
        steps: keeps finished rounds or generations, so that a run cut short can go on.

    Returns:
        A plan of exactly the total, with losses and seconds of the search in `how`.

    Raises:
        InputError: a value is out of its range, a text too short, or a weight quantised.
        NumericalError: activations, a loss or a slope are not finite.
    """
    if kind in SEARCHES.names():
        return SEARCHES.find(kind)(
            model,
            total,
            options=options,
            tokenizer=tokenizer,
            calibration=calibration,
            target=target,
            steps=steps,
        )
    strategy = STRATEGIES.find(options.strategy)
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    units = KINDS.find(kind)(layers, total, options)
    texts = texts_for(model, tokenizer, calibration, target, options, options.calibration_samples)
    device = input_device(model)
    batches = [
        collate(items, device=device).inputs
        for items in pack(texts.calibration, options.batch_tokens, model)
    ]
    held = strategy.held
    if options.start == "quadratic":
        held = max(held, STRATEGIES.find("quadratic").held)
    kept = held * sum(projection.weight.nbytes for projection in layers.projections)
    note_memory(model, "the search", strategy.passes, options.batch_tokens, kept=kept)
    with COMPRESSORS.find(kind)(model, layers, batches, options) as compressor:
        found = strategy.run(Search(model, units, compressor, texts, options, steps))
    how = {
        "metric": strategy.metric,
        "map": options.strategy,
        "method": options.method,
        "granularity": options.granularity,
        "target": texts.origin,
        "calibration": {
            "name": calibration.name,
            "samples": options.calibration_samples,
            "context_length": options.context_length,
            "seed": options.seed,
        },
        **found.how,
    }
    return units.plan(model, found.state, how)
