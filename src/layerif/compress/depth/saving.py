"""Models of fewer layers written to folders, and looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerif.artifacts import DROPPED, DroppedLayers
from layerif.compress.saving import as_stored, write_model
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import Tokenizer, open_skeleton
from layerif.model.precision import word_of
from layerif.report.cards import dropped_card


def save_dropped(
    model: Any, tokenizer: Tokenizer, manifest: DroppedLayers, folder: str | Path
) -> DroppedLayers:
    """Write an ordinary Hugging Face folder with the manifest and a card beside the weights.

    It is written aside and renamed, so it is whole or absent, and replaces nothing but another
    folder of its kind. A model that was opened in a wider precision than its files are in is saved
    in theirs.

    Args:
        model: as `drop_layers` made it.

    Returns:
        The manifest that is written.

    Raises:
        InputError: `folder` cannot be written, or holds anything else.
    """
    with as_stored(model) as rounded:
        if rounded is not None:
            manifest = manifest.model_copy(update={"precision": word_of(rounded)})
        write_model(model, tokenizer, folder, DROPPED, manifest, dropped_card(manifest))
    return manifest


def verify_dropped(folder: str | Path, *, trust_remote_code: bool = False) -> list[str]:
    """What does not hold of a folder's manifest, in words; nothing where all does.

    The configuration's layers are counted, and their sizes compared with those of the layers that
    were kept. No weights are read.

    Raises:
        InputError: there is no manifest, or no model.
    """
    folder = Path(folder)
    manifest = DroppedLayers.of_folder(folder)
    sizes = find_decoder_layers(open_skeleton(folder, trust_remote_code=trust_remote_code)).sizes
    if len(sizes) != len(manifest.kept):
        return [f"the model has {len(sizes)} layers, and the manifest says {len(manifest.kept)}"]
    return [
        f"layer {place} has {size:,} parameters, and layer {old} of the whole model "
        f"{manifest.model.layer_sizes[old]:,}"
        for place, (size, old) in enumerate(zip(sizes.tolist(), manifest.kept, strict=True))
        if size != manifest.model.layer_sizes[old]
    ]
