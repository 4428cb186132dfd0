"""What a change of each projection would do to the loss, to first order, of the model as it is.

Since dL/dW = sum_t e_t a_t^T, the inner product <dL/dW, D> with a change D of the weights is
sum_t e_t . (D a_t): one forward and one backward pass serves all projections, and no gradient of a
weight is formed. At a compressed model, with D what the next unit of budget brings back, that is
the influence at the operating point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.compress.compressor import Change
from layerif.core.progress import Advance
from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.errors import NumericalError
from layerif.influence.estimators.factored import FactoredGradients
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.subspaces.full import FullWeights
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import Projection, find_decoder_layers
from layerif.model.opening import input_device

# As `collate`, of texts and a device.
Batched = Callable[..., Batch]
# Tokens of a backward pass of a search: what it keeps of them is most of the memory.
BACKWARD_TOKENS = 1024


def slopes(
    model: Any, changes: Sequence[Change], items: Sequence[Encoded], *, batch_tokens: int
) -> NDArray[np.float64]:
    """(projections,) <dL/dW, D> in nats, by one forward and backward pass over the texts.

    Args:
        model: the causal LM, compressed.
        changes: D of each projection, on its device.
        items: the texts; each counts alike, whatever its length.
        batch_tokens: tokens of a batch, padding counted.

    Raises:
        NumericalError: a loss or a product is not finite; names the text or the projection.
    """
    projections = find_decoder_layers(model).projections
    products: list[torch.Tensor | float] = [0.0] * len(projections)

    def take(_batch: Batch, row: int, gradients: FactoredGradients) -> None:
        products[row] = products[row] + gradients.times(changes[row]().flatten()).sum()

    over_gradients(model, items, take, batch_tokens=batch_tokens)
    found = np.array([float(product) for product in products]) / len(items)
    refuse_infinite(found, projections)
    return found


def over_gradients(
    model: Any,
    items: Sequence[Encoded],
    take: Callable[[Batch, int, FactoredGradients], None],
    *,
    batch_tokens: int,
    advance: Advance = lambda _units=1: None,
    batched: Batched = collate,
) -> None:
    """One forward and one backward pass over texts; no gradient of a weight is formed.

    Args:
        take: is handed a batch, the place of a projection, and its gradients.
        batch_tokens: tokens of a batch, padding counted.
        advance: is told of each batch that is done.
        batched: makes a batch of texts, with other labels than their own, say.

    Raises:
        NumericalError: a loss is not finite; names the text.
    """
    projections = find_decoder_layers(model).projections
    matrices = FullWeights().matrices(projections)
    device = input_device(model)
    with frozen(model), PerSampleGradients(model, projections, matrices) as per_sample:
        for group in pack(items, batch_tokens, model):
            batch = batched(group, device=device)
            per_sample.visit(batch, partial(take, batch), "text")
            advance()


def refuse_infinite(values: NDArray[np.float64], projections: Sequence[Projection]) -> None:
    """Refuse numbers (projections, ...) that are not finite.

    Raises:
        NumericalError: there is one; names its projection.
    """
    for projection, own in zip(projections, values, strict=True):
        if not np.isfinite(own).all():
            raise NumericalError(
                f"the predicted change of the loss at {projection.key} is not finite; try "
                "dtype='float32'"
            )


@torch.inference_mode()
def mean_loss(model: Any, items: Sequence[Encoded], *, batch_tokens: int) -> float:
    """Mean over the texts of their mean loss a scored token, in nats, forward alone.

    Raises:
        NumericalError: it is not finite.
    """
    device = input_device(model)
    total = 0.0
    for group in pack(items, batch_tokens, model):
        batch = collate(group, device=device)
        sums = row_sums(token_losses(model, batch).double(), batch)
        total += (sums / batch.counts.to(sums.device)).sum().item()
    if not np.isfinite(total):
        raise NumericalError("the loss of the compressed model is not finite; try dtype='float32'")
    return total / len(items)
