"""Prune a model decoder layer by decoder layer, each layer by its share of a plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layerif.artifacts import MANIFEST_FILE, Allocation, Manifest, PrunedModule
from layerif.batching import collate, pack
from layerif.calibration import InputNorms, walk
from layerif.choices import PruningMethod, check_choice
from layerif.chunks import check_context_length, cut, draw
from layerif.errors import InputError
from layerif.model import (
    DecoderLayers,
    Projection,
    Tokenizer,
    describe,
    find_decoder_layers,
    quiet_transformers,
    setting,
)
from layerif.progress import note, progress
from layerif.pruning.wanda import wanda_mask
from layerif.runs import new_folder
from layerif.tasks import Corpus


def prune(
    model: Any,
    plan: Allocation | float,
    *,
    tokenizer: Tokenizer,
    calibration: Corpus | str | Sequence[str],
    method: PruningMethod = "wanda",
    samples: int = 32,
    context_length: int = 512,
    seed: int = 0,
    batch_tokens: int = 2048,
) -> Manifest:
    """Set weights of the decoder layers' projections to zero, in place.

    A layer's statistics come from the calibration text as the pruned layers below hand it on. The
    zeros are unstructured: no dense kernel runs faster for them.

    Args:
        model: a causal LM of transformers, changed in place.
        plan: sparsity of each decoder layer, or one number for all of them.
        tokenizer: the model's tokenizer.
        calibration: a corpus, whose calibration part is used, or text.
        samples, context_length: chunks of calibration text and their length in tokens (Wanda's
            authors use 128 of 2048).
        seed: of the draw of chunks.
        batch_tokens: tokens run through a layer at once.

    Returns:
        The manifest, with the zeros of each projection counted after the fact.

    Raises:
        InputError: the plan belongs to another model, or the calibration text is too short.
        NumericalError: activations are not finite.
    """
    began = time.perf_counter()
    check_choice(method, PruningMethod, "pruning method")
    layers = find_decoder_layers(model)
    info = describe(model)
    plan = _as_plan(plan, layers)
    plan.check_fits(info, "sparsity")
    check_context_length(model, context_length)
    text, origin = _calibration_text(calibration)
    chunks = draw(cut(tokenizer, text, context_length), samples, seed)
    device = next(model.parameters()).device
    batches = [collate(items, device=device).inputs for items in pack(chunks, batch_tokens)]

    hidden_size = model.config.get_text_config(decoder=True).hidden_size
    itemsize = next(model.parameters()).element_size()
    kept = samples * context_length * hidden_size * itemsize
    note(
        f"{method}: {samples} chunks of {context_length} tokens; hidden states {kept / 1e6:.0f} MB"
    )
    modules: list[PrunedModule] = []
    model.eval()
    with progress(f"pruning ({method})", len(layers)) as advance:
        for visit in walk(model, layers, batches):
            projections = layers.of(visit.index)
            statistics = InputNorms(projections)
            sparsity = plan.allocation[visit.index]
            with statistics.watching():
                for _ in visit.run():
                    pass
            modules += [_prune(p, statistics.norms(p), sparsity) for p in projections]
            advance()
    return Manifest(
        model=info,
        plan=plan,
        method=method,
        sparsity=sum(m.zeros for m in modules) / sum(m.numel for m in modules),
        modules=modules,
        calibration={
            "samples": samples,
            "context_length": context_length,
            "seed": seed,
            "text": origin,
        },
        seconds=round(time.perf_counter() - began, 3),
        setting=setting(model),
    )


def save_pruned(model: Any, tokenizer: Tokenizer, manifest: Manifest, folder: str | Path) -> None:
    """Write an ordinary Hugging Face folder with the manifest beside the weights.

    Plain `AutoModelForCausalLM.from_pretrained` opens it. It is written aside and renamed, so it
    is whole or absent.
    """
    with quiet_transformers(), new_folder(Path(folder)) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        manifest.save(part / MANIFEST_FILE)


def _prune(projection: Projection, norms: torch.Tensor, sparsity: float) -> PrunedModule:
    weight = projection.weight
    mask = wanda_mask(weight, norms.to(weight.device), sparsity)
    weight.masked_fill_(mask, 0)
    return PrunedModule(
        module=projection.key,
        asked=int(mask.sum()),
        zeros=weight.numel() - int(weight.count_nonzero()),
        numel=weight.numel(),
    )


def _as_plan(plan: Allocation | float, layers: DecoderLayers) -> Allocation:
    if isinstance(plan, Allocation):
        return plan
    if not 0 <= plan <= 1:
        raise InputError(f"sparsity must be within 0 to 1, not {plan}")
    return Allocation(
        kind="sparsity",
        allocation=[float(plan)] * len(layers),
        total=float(plan),
        layer_sizes=[int(size) for size in layers.sizes],
        how={"map": "uniform"},
    )


def _calibration_text(calibration: Corpus | str | Sequence[str]) -> tuple[str, dict[str, Any]]:
    if isinstance(calibration, Corpus):
        return calibration.text("calibration"), {"name": calibration.name, **calibration.origin}
    text = calibration if isinstance(calibration, str) else "\n\n".join(calibration)
    return text, {"name": "text handed over in memory"}
