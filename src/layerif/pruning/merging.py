"""Merge a LoRA that was trained on a pruned model, without losing the zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from layerif.artifacts import PRUNED, Manifest
from layerif.checkpoint import check_out
from layerif.errors import InputError
from layerif.files import require_disk
from layerif.model import adapted_modules, find_decoder_layers, open_model
from layerif.model.adapters import DEFAULT
from layerif.pruning.saving import save_pruned, saved_size


@torch.no_grad()
def merged(model: Any) -> Any:
    """The model with its LoRA added to the weights, but for those that are zero: they stay so.

    A LoRA's product is dense, so that a plain merge fills every zero of a pruned model in. Merged
    like this the model is no longer the one that was trained, base and LoRA side by side: what the
    LoRA did through the zeros is lost.

    Args:
        model: a PEFT model with a LoRA at work; used up.

    Returns:
        The model of transformers inside it, with no adapter left.

    Raises:
        InputError: the model has no adapter in it, or one that is merged already.
    """
    wrapped = adapted_modules(model)
    if not wrapped or not hasattr(model, "merge_and_unload"):
        raise InputError("the model has no adapter to merge; open it with one (--adapter DIR)")
    if any(module.merged for module in wrapped):
        raise InputError(
            "an adapter is merged into the model already, and its zeros are gone; call "
            "`unmerge_adapter()` first"
        )
    # Where zeros lie is kept, and not read off again: the merge fills them in.
    masks = {p.key: p.weight == 0 for p in find_decoder_layers(model).projections}
    plain = model.merge_and_unload()
    for projection in find_decoder_layers(plain).projections:
        projection.weight.masked_fill_(masks[projection.key], 0)
    return plain


def merge_into(
    folder: Path,
    pruned: Path,
    adapter: Path,
    *,
    adapter_name: str = DEFAULT,
    overwrite: bool = False,
    **opening: Any,
) -> Manifest:
    """Merge a LoRA into the model of a pruned folder, and write the outcome as another one.

    Args:
        folder: to write.
        pruned: model folder with a manifest.
        adapter: folder of a LoRA that PEFT has written.
        adapter_name: of the adapter, where its folder holds several.
        overwrite: whether what `folder` holds may be replaced.
        opening: as `open_model`.

    Returns:
        The new folder's manifest, with the zeros counted anew.

    Raises:
        InputError: as `check_out` and `open_model`; no manifest, or not this model's.
    """
    check_out(folder, PRUNED, overwrite=overwrite)
    if PRUNED.is_finished(folder) and not overwrite:
        raise InputError(f"{folder} already holds a model; choose another --out, or --overwrite")
    manifest = Manifest.of_folder(pruned)
    model, tokenizer = open_model(pruned, adapter=adapter, adapter_name=adapter_name, **opening)
    zeros = _zeros(model)
    said = {m.module: m.zeros for m in manifest.modules}
    if wrong := [key for key in zeros if said.get(key) != zeros[key]]:
        raise InputError(
            f"{pruned} is not what its manifest says: {wrong[0]} has {zeros[wrong[0]]:,} zeros; "
            "`layerif verify` lists all"
        )
    require_disk(folder, saved_size(model), "the merged model")
    plain = merged(model)
    counted = _zeros(plain)
    modules = [
        # What was measured of the pruned weights does not hold of the merged ones.
        m.model_copy(update={"zeros": counted[m.module], "error": None})
        for m in manifest.modules
    ]
    manifest = manifest.model_copy(
        update={
            "modules": modules,
            "sparsity": sum(m.zeros for m in modules) / sum(m.numel for m in modules),
            "merged": str(adapter),
            "fingerprint": None,
        }
    )
    return save_pruned(plain, tokenizer, manifest, folder)


def _zeros(model: Any) -> dict[str, int]:
    """Zeros of every projection, by its canonical name."""
    return {
        p.key: p.numel - int(p.weight.count_nonzero())
        for p in find_decoder_layers(model).projections
    }
