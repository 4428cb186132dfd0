"""Prune a model decoder layer by decoder layer, each layer by its share of a plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerif.artifacts import MANIFEST_FILE, Allocation, Manifest, PrunedModule
from layerif.batching import collate, pack
from layerif.calibration import InputNorms, Visit, walk
from layerif.checkpoint import NoSteps, Steps
from layerif.choices import PruningMethod, check_choice
from layerif.chunks import check_context_length, cut, draw
from layerif.errors import InputError
from layerif.model import (
    DecoderLayers,
    Projection,
    Tokenizer,
    describe,
    evaluation_mode,
    find_decoder_layers,
    input_device,
    quiet_transformers,
    setting,
    unwrapped,
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
    steps: Steps | None = None,
) -> Manifest:
    """Set weights of the decoder layers' projections to zero, in place.

    A layer's statistics come from the calibration text as the pruned layers below hand it on. The
    zeros are unstructured: no dense kernel runs faster for them.

    Args:
        model: a causal LM of transformers, changed in place. Where PEFT has put adapters in it, the
            weights under them are pruned, with the adapters at work, and these stay as they are.
        plan: sparsity of each decoder layer, or one number for all of them.
        tokenizer: the model's tokenizer.
        calibration: a corpus, whose calibration part is used, or text.
        samples, context_length: chunks of calibration text and their length in tokens (Wanda's
            authors use 128 of 2048).
        seed: of the draw of chunks.
        batch_tokens: tokens run through a layer at once.
        steps: keeps finished layers, so that a run cut short can go on; None keeps nothing.

    Returns:
        The manifest, with the zeros of each projection counted after the fact.

    Raises:
        InputError: the plan belongs to another model, the calibration text is too short, or a
            projection's weight is quantised; names it.
        NumericalError: activations are not finite.
    """
    began = time.perf_counter()
    check_choice(method, PruningMethod, "pruning method")
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    refuse_packed(layers.projections)
    info = describe(model)
    plan = _as_plan(plan, layers)
    plan.check_fits(info, "sparsity")
    check_context_length(model, context_length)
    text, origin = _calibration_text(calibration)
    chunks = draw(cut(tokenizer, text, context_length), samples, seed)
    device = input_device(model)
    batches = [collate(items, device=device).inputs for items in pack(chunks, batch_tokens)]

    hidden_size = model.config.get_text_config(decoder=True).hidden_size
    itemsize = next(model.parameters()).element_size()
    kept = samples * context_length * hidden_size * itemsize
    note(
        f"{method}: {samples} chunks of {context_length} tokens; hidden states {kept / 1e6:.0f} MB"
    )
    modules: list[PrunedModule] = []
    with evaluation_mode(model), progress(f"pruning ({method})", len(layers)) as advance:
        for visit in walk(model, layers, batches):
            modules += _prune_layer(visit, layers.of(visit.index), plan, steps or NoSteps())
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

    Raises:
        InputError: the model has adapters, which alone would be written.
    """
    refuse_adapters(model)
    with quiet_transformers(), new_folder(Path(folder)) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        manifest.save(part / MANIFEST_FILE)


def refuse_packed(projections: Sequence[Projection]) -> None:
    """No weight can be set to zero where it is stored in a packed form.

    Raises:
        InputError: one is; names its projection.
    """
    for projection in projections:
        if projection.packed:
            raise InputError(
                f"the weight of {projection.key} is quantised (stored as "
                f"{str(projection.weight.dtype).removeprefix('torch.')} of shape "
                f"{tuple(projection.weight.shape)}), so nothing in it can be set to zero; prune "
                "the model as it was before quantisation"
            )


def refuse_adapters(model: Any) -> None:
    """A model with adapters is not saved as a whole by transformers, nor by PEFT.

    Raises:
        InputError: it has some.
    """
    if any(hasattr(module, "get_base_layer") for module in model.modules()):
        raise InputError(
            "the model has adapters in it, and only these would be written; take them out "
            "(`unload()`) or into the weights (`merge_and_unload()`) before"
        )


def _prune_layer(
    visit: Visit, projections: Sequence[Projection], plan: Allocation, steps: Steps
) -> list[PrunedModule]:
    """Prune the projections of one layer, or take them as an interrupted run left them."""
    step = f"layer-{visit.index:04d}"
    kept = steps.load(step)
    if kept is None:
        statistics = InputNorms(projections)
        with statistics.watching():
            for _ in visit.run():
                pass
        for projection in projections:
            weight = projection.weight
            norms = statistics.norms(projection).to(weight.device)
            weight.masked_fill_(wanda_mask(weight, norms, plan.sparsity_of(projection.key)), 0)
        steps.save(step, {p.key: p.weight for p in projections})
    else:
        for projection in projections:
            projection.weight.copy_(kept[projection.key])
    return [
        PrunedModule(
            module=p.key,
            asked=round(plan.sparsity_of(p.key) * p.numel),
            zeros=p.numel - int(p.weight.count_nonzero()),
            numel=p.numel,
        )
        for p in projections
    ]


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
