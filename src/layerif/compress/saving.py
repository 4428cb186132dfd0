"""Changed models written to folders, and models that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from layerif.artifacts import CARD_FILE, MANIFEST_FILE
from layerif.core.files import Kind, new_folder, write_text
from layerif.core.record import JsonArtifact
from layerif.errors import NumericalError
from layerif.model.hub import file_of
from layerif.model.opening import Tokenizer
from layerif.model.peft_adapters import refuse_adapted
from layerif.model.precision import stored_precision, word_of
from layerif.model.quiet import quiet_transformers

# Of SentencePiece.
VOCABULARY = "tokenizer.model"


def write_model(
    model: Any,
    tokenizer: Tokenizer,
    folder: str | Path,
    kind: Kind,
    manifest: JsonArtifact,
    card: str,
    *,
    save: Callable[[Path], None] | None = None,
) -> None:
    """Write a model's folder, whole or not at all, with its manifest and card.

    Args:
        kind: of folder; only another one of it is replaced.
        save: writes configuration and weights; None for how transformers does.

    Raises:
        InputError: `folder` cannot be written, or holds anything else.
    """
    with quiet_transformers(), new_folder(Path(folder), kind) as part:
        (save or model.save_pretrained)(part)
        save_tokenizer(tokenizer, part)
        manifest.save(part / MANIFEST_FILE)
        write_text(part / CARD_FILE, card)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer's files, and the SentencePiece model that it came with.

    transformers reads `tokenizer.json` and leaves the other out, but llama.cpp's converter takes
    the text for another tokenizer's where it is missing.
    """
    tokenizer.save_pretrained(folder)
    found = file_of(tokenizer.name_or_path, VOCABULARY)
    if found is not None and not (folder / VOCABULARY).exists():
        copyfile(found, folder / VOCABULARY)


@contextmanager
def as_stored(model: Any) -> Iterator[torch.dtype | None]:
    """The model in the precision of its files inside; None where it runs in none that is wider.

    Matrices are rounded. Vectors that the precision does not hold exactly stay as they are, since
    norms and biases may be stored in a wider one, and nothing changes them.
    """
    precision = stored_precision(model)
    wider = [
        (name, weight, weight.data)
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and weight.itemsize > precision.itemsize
    ]
    try:
        for name, weight, _ in wider:
            narrow = weight.data.to(precision)
            if not bool(narrow.isfinite().all()):
                raise NumericalError(
                    f"a changed weight of {name} is not finite in {word_of(precision)}, the "
                    "precision of the model's files; save the model in float32 first"
                )
            if weight.ndim > 1 or torch.equal(narrow.to(weight.dtype), weight.data):
                weight.data = narrow
        yield precision if wider else None
    finally:
        for _, weight, exact in wider:
            weight.data = exact


def saved_size(model: Any) -> int:
    """Bytes of disk that the weights take; one that is in two places is saved once."""
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(weights.values())


def refuse_adapters(model: Any) -> None:
    """Refuse a model with adapters, which neither transformers nor PEFT saves as a whole.

    Raises:
        InputError: it has some.
    """
    refuse_adapted(
        model,
        "and only these would be written; take them out (`unload()`) or into the weights "
        "(`merge_and_unload()`) before",
    )
