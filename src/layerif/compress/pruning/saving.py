"""Pruned models written to folders, and models that cannot be pruned or saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from layerif.artifacts import CARD_FILE, MANIFEST_FILE, PRUNED, Manifest
from layerif.core.files import new_folder, write_text
from layerif.errors import NumericalError
from layerif.model.layers import Projection, find_decoder_layers, refuse_quantised
from layerif.model.opening import Tokenizer
from layerif.model.peft_adapters import refuse_adapted
from layerif.model.precision import stored_precision, word_of
from layerif.model.quiet import quiet_transformers
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
        with quiet_transformers(), new_folder(Path(folder), PRUNED) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            manifest.save(part / MANIFEST_FILE)
            write_text(part / CARD_FILE, pruned_card(manifest))
    return manifest


@contextmanager
def as_stored(model: Any) -> Iterator[torch.dtype | None]:
    """The model in the precision of its files inside; None where it runs in none that is wider.

    Matrices are rounded. Vectors that the precision does not hold exactly stay as they are, since
    norms and biases may be stored in a wider one, and pruning changes none of them.
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


def saved_size(model: Any) -> int:
    """Bytes of disk that the weights take; one that is in two places is saved once."""
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(weights.values())


def refuse_packed(projections: Sequence[Projection]) -> None:
    """Refuse quantised weights, which cannot be set to zero one by one.

    Raises:
        InputError: there is one; names its projection.
    """
    refuse_quantised(
        projections,
        "so nothing in it can be set to zero; prune the model as it was before quantisation",
    )


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
