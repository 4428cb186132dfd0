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
from layerif.calibration.sampling import sampled_chunks
from layerif.calibration.text import drawn_chunks
from layerif.calibration.walk import Visit, walk
from layerif.compress.pruning.base import Figures, Pruner, Target
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.pattern import Pattern
from layerif.compress.pruning.registry import PRUNERS
from layerif.compress.pruning.saving import refuse_packed
from layerif.compress.pruning.targets import check_sparsity, targets
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.core.progress import note, progress
from layerif.data import Corpus, SelfText
from layerif.data.batching import Encoded, collate, pack
from layerif.data.chunks import check_context_length
from layerif.errors import InputError, NumericalError
from layerif.estimates import note_memory
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import Tokenizer, describe, input_device, setting

# The step that holds what the model wrote to calibrate on, and in a layer's step its figures.
SAMPLED = "sampled"
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
    method, nm = options.method, options.nm
    samples, context_length, seed = (
        options.calibration_samples,
        options.context_length,
        options.seed,
    )
    batch_tokens = options.batch_tokens
    pruner = PRUNERS.find(method)
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    refuse_packed(layers.projections)
    info = describe(model)
    plan = _as_plan(plan, nm, layers)
    plan.check_fits(info, "sparsity")
    asked = targets(layers.projections, plan, nm)
    about: dict[str, Any] = {}
    modules: list[PrunedModule] = []
    with ExitStack() as open_:
        visits: Iterable[Visit | int] = range(len(layers))
        if pruner.statistics is not None:
            if calibration is None or tokenizer is None:
                raise InputError(
                    f"the method {method} takes statistics from text; give a tokenizer and "
                    "calibration text, or use the method magnitude"
                )
            check_context_length(model, context_length)
            wanted = (samples, context_length, seed)
            chunks, origin = _chunks(model, tokenizer, calibration, wanted, batch_tokens, steps)
            device = input_device(model)
            groups = pack(chunks, batch_tokens, model)
            batches = [collate(items, device=device).inputs for items in groups]
            hidden_size = model.config.get_text_config(decoder=True).hidden_size
            size = samples * context_length * hidden_size * next(model.parameters()).element_size()
            store = open_.enter_context(
                hidden_states(options.hidden_states, size, device, steps.folder)
            )
            note(
                f"{method}: {samples} chunks of {context_length} tokens; hidden states "
                f"{size / 1e6:.0f} MB"
            )
            note_memory(model, f"pruning by {method}", "walk", batch_tokens, kept=size)
            about = {"samples": samples, "context_length": context_length, "seed": seed}
            about["text"] = origin
            visits = walk(model, layers, batches, store)
        open_.enter_context(evaluation_mode(model))
        advance = open_.enter_context(progress(f"pruning ({method})", len(layers)))
        for visit in visits:
            modules += _prune_layer(visit, layers, pruner, asked, steps)
            advance()
    return Manifest(
        model=info,
        plan=plan,
        method=method,
        nm=nm,
        sparsity=sum(m.zeros for m in modules) / sum(m.numel for m in modules),
        modules=modules,
        calibration=about,
        seconds=round(time.perf_counter() - began, 3),
        setting=setting(model),
    )


@torch.no_grad()
def _prune_layer(
    visit: Visit | int,
    layers: DecoderLayers,
    pruner: Pruner,
    asked: Mapping[str, Target],
    steps: Steps,
) -> list[PrunedModule]:
    """Prune the projections of one layer, or take them as an interrupted run left them."""
    index = visit if isinstance(visit, int) else visit.index
    projections = layers.of(index)
    step = f"layer-{index:04d}"
    kept = steps.load(step)
    if kept is None:
        statistics = None
        if isinstance(visit, Visit) and pruner.statistics is not None:
            statistics = pruner.statistics(projections)
            visit.observe(statistics)
        found: dict[str, tuple[Figures, float]] = {}
        together: dict[tuple[str, ...], list[Projection]] = {}
        for projection in projections:
            sharing = statistics.sharing(projection) if statistics else (projection.key,)
            together.setdefault(sharing, []).append(projection)
        for projection in (p for alike in together.values() for p in alike):
            began = time.perf_counter()
            if not bool(projection.weight.isfinite().all()):
                raise NumericalError(
                    f"the weight of {projection.key} holds NaN or infinity, which has no rank"
                )
            figures = pruner.prune(projection, statistics, asked[projection.key])
            if figures.error is not None and not math.isfinite(figures.error):
                raise NumericalError(
                    f"the output of {projection.key} on the calibration text is not finite; try "
                    "dtype float32"
                )
            if not bool(projection.weight.isfinite().all()):
                raise NumericalError(
                    f"a weight of {projection.key} that stays leaves the range of "
                    f"{projection.weight.dtype} as it is refitted; try dtype float32"
                )
            found[projection.key] = figures, time.perf_counter() - began
        table = _as_table([found[p.key] for p in projections])
        steps.save(step, {FIGURES: table, **{p.key: p.weight for p in projections}})
    else:
        table = kept[FIGURES]
        for projection in projections:
            projection.weight.copy_(kept[projection.key])
    return [
        PrunedModule(
            module=p.key,
            asked=asked[p.key].zeros,
            zeros=p.numel - int(p.weight.count_nonzero()),
            numel=p.numel,
            pattern=_word(asked[p.key].pattern),
            **_named(row),
        )
        for p, row in zip(projections, table.tolist(), strict=True)
    ]


def _word(pattern: Pattern | None) -> str | None:
    return None if pattern is None else str(pattern)


def _as_table(found: Sequence[tuple[Figures, float]]) -> torch.Tensor:
    """(projections, 3) float64 of error, damping and seconds, to be kept; NaN for None."""
    rows = [(figures.error, figures.damping, seconds) for figures, seconds in found]
    return torch.tensor(
        [[math.nan if value is None else value for value in row] for row in rows],
        dtype=torch.float64,
    )


def _named(row: Sequence[float]) -> dict[str, float | None]:
    error, damping, seconds = (None if math.isnan(value) else value for value in row)
    return {
        "error": error,
        "damping": damping,
        "seconds": None if seconds is None else round(seconds, 4),
    }


def _as_plan(plan: Plan | float | None, nm: str | None, layers: DecoderLayers) -> Plan:
    if isinstance(plan, Plan):
        return plan
    if plan is None:
        if nm is None:
            raise InputError("give a plan, a sparsity, or a pattern N:M such as 2:4")
        plan = Pattern.parse(nm).sparsity
    check_sparsity(plan, nm)
    return Plan(
        kind="sparsity",
        allocation=[float(plan)] * len(layers),
        total=float(plan),
        layer_sizes=[int(size) for size in layers.sizes],
        how={"map": "uniform"},
    )


def _chunks(
    model: Any,
    tokenizer: Tokenizer,
    calibration: Corpus | SelfText | str | Sequence[str],
    wanted: tuple[int, int, int],
    batch_tokens: int,
    steps: Steps,
) -> tuple[list[Encoded], dict[str, Any]]:
    """Calibration chunks, and where they come from; `wanted` is how many, how long, which seed."""
    samples, context_length, seed = wanted
    if isinstance(calibration, SelfText):
        kept = steps.load(SAMPLED)
        if kept is None:
            chunks = sampled_chunks(
                model,
                tokenizer,
                samples,
                context_length,
                seed=seed,
                batch_tokens=batch_tokens,
            )
            # Sampled from the dense model: when a run goes on, its weights are pruned in part.
            steps.save(SAMPLED, {"tokens": torch.tensor([c.input_ids for c in chunks])})
        else:
            chunks = [Encoded(i, row, 1) for i, row in enumerate(kept["tokens"].tolist())]
        return chunks, {"name": calibration.name, "source": "sampled from the model"}
    return drawn_chunks(tokenizer, calibration, samples, context_length, seed)
