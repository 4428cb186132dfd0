"""Per-sample gradients of all layers from one backward pass over a whole batch.

A forward hook on each projection keeps u = A a, the input as the LoRA sees it (rank numbers a
position, not the input itself), and hooks the output's gradient e. When the backward pass brings e,
the gradient of sample i in B is the sum over its positions of e_t u_t^T: one small product. No base
weight gets a gradient, and no sample is run alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import nn

from layerif.batching import Batch
from layerif.errors import InputError, NumericalError
from layerif.influence.subspace import FreshLora
from layerif.likelihood import row_sums, token_losses
from layerif.model import evaluation_mode
from layerif.model.layers import Projection


class PerSampleGradients:
    """Computes grad(B) of every projection for every sample of a batch.

    A context manager that has its hooks on the model while it is open; use it inside
    `frozen(model)`.
    """

    def __init__(self, model: Any, projections: Sequence[Projection], lora: FreshLora) -> None:
        self._model = model
        self._scaling = lora.scaling
        self._gradients: list[torch.Tensor | None] = [None] * len(projections)
        self._keys = [projection.key for projection in projections]
        self._rows = self._positions = 0
        self._hooks = ExitStack()
        for row, projection in enumerate(projections):
            weight = projection.weight
            down = lora.down(projection).to(weight.device, weight.dtype)
            handle = projection.module.register_forward_hook(self._observer(row, down))
            self._hooks.callback(handle.remove)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def __call__(
        self, batch: Batch, kind: str = "sample"
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run one forward and one backward pass.

        Args:
            batch: the samples.
            kind: what an error calls one of them.

        Returns:
            (B,) mean completion loss of each sample, and for each projection (B, out, rank) its
            gradient with respect to B: float32, or float64 for a float64 model.

        Raises:
            NumericalError: a sample's loss or gradient is not finite.
        """
        self._gradients = [None] * len(self._keys)
        self._rows, self._positions = batch.predicts.shape
        losses = row_sums(token_losses(self._model, batch), batch) / batch.counts
        _require_finite(losses, f"loss of {kind}", batch)
        # Each sample's loss depends on its own row alone, so the gradient of the sum holds the
        # gradient of every sample, row by row.
        losses.sum().backward()
        gradients = []
        for key, gradient in zip(self._keys, self._gradients, strict=True):
            if gradient is None:
                raise NumericalError(
                    f"no gradient reached {key}: its output does not take part in the loss"
                )
            _require_finite(gradient.flatten(1).sum(1), f"gradient at {key} of {kind}", batch)
            gradients.append(gradient)
        return losses.detach(), gradients

    def _observer(self, row: int, down: torch.Tensor) -> Any:
        def observe(_module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
            if not output.requires_grad:
                return  # the first pass under gradient checkpointing; the second one counts
            reduced = nn.functional.linear(args[0].detach(), down)  # (B, T, rank)

            def collect(error: torch.Tensor) -> None:  # (B, T, out)
                if error[..., 0].numel() != self._rows * self._positions:
                    raise InputError(
                        f"{self._keys[row]} sees {error[..., 0].numel()} positions of a batch of "
                        f"{self._rows} x {self._positions}; projections that see a choice of "
                        "positions (routed experts) are not supported"
                    )
                gradient = _outer_sum(error, reduced, self._rows) * self._scaling
                kept = self._gradients[row]
                # A projection that is used twice has the sum of both uses as its gradient.
                self._gradients[row] = gradient if kept is None else kept + gradient

            output.register_hook(collect)

        return observe


def _outer_sum(error: torch.Tensor, reduced: torch.Tensor, rows: int) -> torch.Tensor:
    """(B, out, rank): sum over positions of error (B, T, out) x reduced (B, T, rank).

    Some architectures flatten rows and positions for their MLP, so both are brought to B rows.
    """
    exact = torch.promote_types(error.dtype, torch.float32)
    error = error.reshape(rows, -1, error.shape[-1]).to(exact)
    reduced = reduced.reshape(rows, -1, reduced.shape[-1]).to(exact)
    return torch.bmm(error.transpose(1, 2), reduced)


def _require_finite(values: torch.Tensor, what: str, batch: Batch) -> None:
    finite = values.isfinite()
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise NumericalError(
            f"the {what} {batch.items[row].index} is {values[row].item()}; stopped, as "
            "no score made from it would mean anything (try --dtype float32, or look at the sample)"
        )


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Dropout off and no gradient for any weight, yet a graph from the input embeddings up.

    The model is left as it was found.
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def start_graph(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_()

    handle = model.get_input_embeddings().register_forward_hook(start_graph)
    model.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
