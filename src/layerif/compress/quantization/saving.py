"""Quantised models written to folders: rounded weights, or packed integers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from layerif.artifacts import QUANTIZED, QuantizedManifest
from layerif.compress.quantization.grid import Coded
from layerif.compress.quantization.options import GridOptions
from layerif.compress.quantization.packing import COMPRESSED_TENSORS, save_packed
from layerif.compress.saving import as_stored, refuse_adapters, write_model
from layerif.model.opening import Tokenizer
from layerif.model.precision import word_of
from layerif.report.cards import quantized_card


def save_quantized(
    model: Any,
    tokenizer: Tokenizer,
    manifest: QuantizedManifest,
    folder: str | Path,
    *,
    packed: Mapping[str, Coded] | None = None,
) -> QuantizedManifest:
    """Write a Hugging Face folder with the manifest and a card beside the weights.

    Rounded weights are written in the precision that the model runs in, and not in that of its
    files: in float32 they are exact, and 16 bits would round each once more. Such a folder is for
    measuring, and is no smaller. With integers, the folder is in the format of the library
    compressed-tensors, and what is not packed is in the precision of the model's files.

    Args:
        packed: the integers of each projection of less than 16 bits, as `quantize` shows them to
            `keep`; None for rounded weights.

    Returns:
        The manifest that is written.

    Raises:
        InputError: the model has adapters, which alone would be written; or `folder` cannot be
            written, or holds anything else.
        NumericalError: a weight leaves the range of the files' precision.
    """
    refuse_adapters(model)
    if packed is None:
        card = quantized_card(manifest)
        write_model(model, tokenizer, folder, QUANTIZED, manifest, card)
        return manifest
    with as_stored(model) as narrower:
        said: dict[str, Any] = {"packed": COMPRESSED_TENSORS}
        if isinstance(narrower, torch.dtype):
            said["precision"] = word_of(narrower)
        manifest = manifest.model_copy(update=said)
        names = GridOptions.model_fields.keys() & QuantizedManifest.model_fields.keys()
        grid = GridOptions(**{name: getattr(manifest, name) for name in names})
        write_model(
            model,
            tokenizer,
            folder,
            QUANTIZED,
            manifest,
            quantized_card(manifest),
            save=partial(save_packed, model, packed, grid),
        )
    return manifest
