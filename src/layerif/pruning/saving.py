"""Pruned models as folders, and models that cannot be pruned or saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerif.artifacts import MANIFEST_FILE, Manifest
from layerif.errors import InputError
from layerif.files import new_folder, write_text
from layerif.model import Projection, Tokenizer, quiet_transformers, refuse_adapted
from layerif.report import CARD_FILE, pruned_card


def save_pruned(model: Any, tokenizer: Tokenizer, manifest: Manifest, folder: str | Path) -> None:
    """Write an ordinary Hugging Face folder with the manifest and a card beside the weights.

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
        write_text(part / CARD_FILE, pruned_card(manifest))


def saved_size(model: Any) -> int:
    """Bytes of disk that the weights take; one that is in two places is saved once."""
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(weights.values())


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
    refuse_adapted(
        model,
        "and only these would be written; take them out (`unload()`) or into the weights "
        "(`merge_and_unload()`) before",
    )
