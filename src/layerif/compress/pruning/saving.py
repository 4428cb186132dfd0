"""Pruned models written to folders, and models that cannot be pruned or saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layerif.artifacts import PRUNED, Manifest
from layerif.compress.saving import as_stored, refuse_adapters, write_model
from layerif.model.layers import Projection, find_decoder_layers, refuse_quantised
from layerif.model.opening import Tokenizer
from layerif.model.precision import word_of
from layerif.report.cards import pruned_card


def save_pruned(
    model: Any, tokenizer: Tokenizer, manifest: Manifest, folder: str | Path
) -> Manifest:
    """Write an ordinary Hugging Face folder with the manifest and a card beside the weights.

    Plain `AutoModelForCausalLM.from_pretrained` opens it. It is written aside and renamed, so it
    is whole or absent, and replaces nothing but another pruned model. A model that was opened
    in a wider precision than its files are in is saved in theirs; its own weights stay as they are.

    Returns:
        The manifest that is written, with the zeros counted after rounding.

    Raises:
        InputError: the model has adapters, which alone would be written; or `folder` cannot be
            written, or holds anything else.
        NumericalError: a weight leaves the range of the files' precision.
    """
    refuse_adapters(model)
    with as_stored(model) as rounded:
        if rounded is not None:
            manifest = recounted(manifest, model)
            manifest = manifest.model_copy(update={"precision": word_of(rounded)})
        write_model(model, tokenizer, folder, PRUNED, manifest, pruned_card(manifest))
    return manifest


def recounted(manifest: Manifest, model: Any, **of_modules: Any) -> Manifest:
    """The manifest of weights that were changed after pruning, with the zeros that are there now.

    Args:
        of_modules: what else changes in the entry of every projection.
    """
    zeros = {p.key: zeros_in(p.weight) for p in find_decoder_layers(model).projections}
    modules = [
        m.model_copy(update={"zeros": zeros[m.module], **of_modules}) for m in manifest.modules
    ]
    sparsity = sum(m.zeros for m in modules) / sum(m.numel for m in modules)
    return manifest.model_copy(update={"modules": modules, "sparsity": sparsity})


def zeros_in(weight: torch.Tensor) -> int:
    return weight.numel() - int(weight.count_nonzero())


def refuse_packed(projections: Sequence[Projection]) -> None:
    """Refuse quantised weights, which cannot be set to zero one by one.

    Raises:
        InputError: there is one; names its projection.
    """
    refuse_quantised(
        projections,
        "so nothing in it can be set to zero; prune the model as it was before quantisation",
    )
