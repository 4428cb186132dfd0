"""What the next weights of each projection are worth to the model as it is pruned now.

At sparsities s the band of a projection is D = W(s - delta) - W(s + delta), what the pruner changes
of it between the two, its inputs being given. To first order the loss changes by <dL/dW(s), D> / 2
when a fraction delta more of the weights is kept. For a pruner that leaves the weights that stay as
they are D = W * R, with R the weights ranked between s - delta and s + delta. Since dL/dW = sum_t
e_t a_t^T, the inner product is sum_t e_t . (D a_t): one forward and one backward pass serves all
projections, and no gradient of a weight is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.core.progress import Advance
from layerif.data.batching import Encoded, collate, pack
from layerif.errors import NumericalError
from layerif.influence.estimators.factored import FactoredGradients
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.subspaces.full import FullWeights
from layerif.likelihood import row_sums, token_losses
from layerif.model.opening import input_device
from layerif.search.operating_point import OperatingPoint
from layerif.search.order import Band


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """Predicted changes of the loss, at one operating point.

    Attributes:
        products: (projections,) float64 <dL/dW(s), D>, in nats.
        widths: (projections,) int64, weights in each band.
    """

    products: NDArray[np.float64]
    widths: NDArray[np.int64]

    def per_density(self, groups: NDArray[np.int64], mean_size: float) -> NDArray[np.float64]:
        """(groups,) g: predicted change of the loss per unit of density given to each group.

        A unit of density is as many weights as a group has on average, so that groups of any size
        compare by what a weight is worth. Negative: keeping more lowers the loss.

        Args:
            groups: (projections,) which group each projection belongs to, from 0.
            mean_size: parameters of a group, on average.
        """
        products = np.bincount(groups, weights=self.products)
        widths = np.bincount(groups, weights=self.widths)
        # A band of no weight at all, where delta N rounds to 0, predicts nothing.
        return np.divide(
            products * mean_size, widths, out=np.zeros_like(products), where=widths > 0
        )


def sensitivities(
    point: OperatingPoint,
    bands: Sequence[Band],
    items: Sequence[Encoded],
    *,
    batch_tokens: int,
    advance: Advance = lambda _units=1: None,
) -> Sensitivities:
    """The sensitivities of all projections, by one forward and backward pass over the texts.

    Args:
        point: the model, pruned.
        bands: for each projection what its pruner changes, on its device.
        items: the texts; each counts alike, whatever its length.
        batch_tokens: tokens of a batch, padding counted.
        advance: the progress bar's, told of tokens.

    Raises:
        NumericalError: a loss or a product is not finite; names the text or the projection.
    """
    projections = point.layers.projections
    products: list[torch.Tensor | None] = [None] * len(projections)

    def take(row: int, gradients: FactoredGradients) -> None:
        reached = gradients.times(bands[row].change(point.originals[row]).flatten()).sum()
        kept = products[row]
        products[row] = reached if kept is None else kept + reached

    device = input_device(point.model)
    matrices = FullWeights().matrices(projections)
    with (
        frozen(point.model),
        PerSampleGradients(point.model, projections, matrices) as per_sample,
    ):
        for group in pack(items, batch_tokens, point.model):
            batch = collate(group, device=device)
            per_sample.visit(batch, take, "text")
            advance(batch.tokens)
    found = np.array([0.0 if p is None else p.item() for p in products]) / len(items)
    for projection, value in zip(projections, found, strict=True):
        if not np.isfinite(value):
            raise NumericalError(
                f"the sensitivity of {projection.key} is {value}; try --dtype float32"
            )
    widths = np.array([band.width for band in bands], dtype=np.int64)
    return Sensitivities(found, widths)


@torch.inference_mode()
def mean_loss(
    point: OperatingPoint,
    items: Sequence[Encoded],
    *,
    batch_tokens: int,
    advance: Advance = lambda _units=1: None,
) -> float:
    """Mean over the texts of their mean loss a scored token, in nats, forward alone.

    Raises:
        NumericalError: it is not finite.
    """
    device = input_device(point.model)
    total = 0.0
    for group in pack(items, batch_tokens, point.model):
        batch = collate(group, device=device)
        sums = row_sums(token_losses(point.model, batch).double(), batch)
        total += (sums / batch.counts.to(sums.device)).sum().item()
        advance(batch.tokens)
    if not np.isfinite(total):
        raise NumericalError("the loss of the pruned model is not finite; try --dtype float32")
    return total / len(items)
