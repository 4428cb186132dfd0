"""Per-sample gradients of all layers from one backward pass over a whole batch.

A forward hook on each projection keeps its inputs as the trainable matrices see them (for a LoRA's
B that is u = A a, rank numbers a position), and hooks the output's gradient e. When the backward
pass brings e, the gradient of sample i is the sum over its positions of e_t u_t^T: one small
product. No base weight gets a gradient, and no sample is run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import nn

from layerif.core.progress import note
from layerif.data.batching import Batch
from layerif.errors import InputError, NumericalError
from layerif.influence.estimators.factored import FactoredGradients
from layerif.influence.subspaces.base import Matrix
from layerif.likelihood import row_sums, token_losses
from layerif.model.expert_calls import expert_calls
from layerif.model.layers import Projection
from layerif.model.modes import as_found, evaluation_mode

# Takes the row of a matrix, and the gradients of a batch's samples in it.
Take = Callable[[int, FactoredGradients], None]


class PerSampleGradients:
    """Computes the gradient of every trainable matrix for every sample of a batch.

    A context manager that has its hooks on the model while it is open; use it inside
    `frozen(model)`.
    """

    def __init__(
        self, model: Any, projections: Sequence[Projection], matrices: Sequence[Matrix]
    ) -> None:
        self._model = model
        self._matrices = matrices
        self._take: Take = lambda _row, _gradients: None
        self._reached = [0] * len(matrices)
        self._rows = self._positions = 0
        self._open = ExitStack()
        self._at: dict[int, list[int]] = {}
        for row, matrix in enumerate(matrices):
            self._at.setdefault(matrix.projection, []).append(row)
        self._projections = projections
        self._idle: set[str] = set()

    def __enter__(self) -> Self:
        self._calls = self._open.enter_context(expert_calls(self._projections))
        for index, rows in self._at.items():
            projection = self._projections[index]
            observe = self._observer(projection, rows)
            self._open.enter_context(projection.module.register_forward_hook(observe))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(
        self, batch: Batch, kind: str = "sample"
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run one forward and one backward pass.

        Args:
            batch: the samples.
            kind: what an error calls one of them.

        Returns:
            (B,) mean completion loss of each sample, and for each matrix (B, out, in) its
            gradient: float32, or float64 for a float64 model.

        Raises:
            NumericalError: a sample's loss or gradient is not finite.
        """
        found: dict[int, torch.Tensor] = {}

        def add(row: int, gradients: FactoredGradients) -> None:
            # A projection that is used twice has the sum of both uses as its gradient.
            formed = gradients.formed()
            found[row] = found[row] + formed if row in found else formed

        losses = self.visit(batch, add, kind)
        for row, matrix in enumerate(self._matrices):
            sums = found[row].flatten(1).sum(1)
            _require_finite(sums, f"gradient at {matrix.key} of {kind}", batch)
        return losses, [found[row] for row in range(len(self._matrices))]

    def visit(self, batch: Batch, take: Take, kind: str = "sample") -> torch.Tensor:
        """The same with the gradients handed to `take` one by one, in factors, as they come.

        Nothing is kept of them here: what a pass over full weights needs is computed from the
        factors on the way.

        Returns:
            (B,) mean completion loss of each sample.
        """
        self._take = take
        self._reached = [0] * len(self._matrices)
        self._rows, self._positions = batch.predicts.shape
        self._calls.forget()
        losses = row_sums(token_losses(self._model, batch), batch)
        losses = losses / batch.counts.to(losses.device)
        _require_finite(losses, f"loss of {kind}", batch)
        # Each sample's loss depends on its own row alone, so the gradient of the sum holds the
        # gradient of every sample, row by row.
        losses.sum().backward()
        if not any(self._reached):
            raise NumericalError("no gradient reached any projection: the loss depends on none")
        self._take_nothing(take, losses)
        return losses.detach()

    def _take_nothing(self, take: Take, like: torch.Tensor) -> None:
        """Hand on zero where no gradient came, as in experts without a token.

        Raises:
            NumericalError: none came to any expert of a parameter, so none was seen to be run.
        """
        owners = [self._projections[matrix.projection].fused for matrix in self._matrices]
        seen = {owner for owner, times in zip(owners, self._reached, strict=True) if times}
        if unseen := [owner for owner in owners if owner is not None and owner not in seen]:
            raise NumericalError(
                f"no gradient reached any expert of {unseen[0]}: no token was sent to one, or "
                "their weights are used in a way that cannot be observed"
            )
        for row, matrix in enumerate(self._matrices):
            if self._reached[row]:
                continue
            out, width = matrix.shape
            nothing = like.new_zeros(self._rows, 1, max(out, width))
            take(
                row,
                FactoredGradients.of(
                    nothing[..., :out], nothing[..., :width], self._rows, matrix.scale
                ),
            )
            if self._projections[matrix.projection].fused is None and matrix.key not in self._idle:
                self._idle.add(matrix.key)
                note(f"no gradient reaches {matrix.key}: it counts as 0")

    @property
    def uses(self) -> list[int]:
        """How often each matrix took part in the last batch."""
        return list(self._reached)

    def _observer(self, projection: Projection, rows: Sequence[int]) -> Any:
        maps = [(self._matrices[row].left, self._matrices[row].right) for row in rows]

        def observe(_module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
            if not output.requires_grad:
                return  # the first pass under gradient checkpointing; the second one counts
            inputs = args[0].detach().to(output.device)
            # Brought once to where the projection computes, and in its precision.
            maps[:] = [(_brought(left, inputs), _brought(right, inputs)) for left, right in maps]
            tokens = self._rows * self._positions
            samples = self._calls.samples(projection, inputs, self._rows, tokens)
            seen = [
                inputs if right is None else nn.functional.linear(inputs, right)
                for _, right in maps
            ]  # each (B, T, in)

            def collect(error: torch.Tensor) -> None:  # (B, T, out)
                # Positions before samples would be taken for samples.
                turned = error.shape[:-1] == (self._positions, self._rows) and self._rows > 1
                turned = turned and self._rows != self._positions
                whole = error[..., 0].numel() == tokens and not turned
                if samples is None and not whole:
                    raise InputError(
                        f"{projection.key} sees {error[..., 0].numel()} positions of a batch of "
                        f"{self._rows} x {self._positions}; projections that see a choice of "
                        "positions in an order that is not known are not supported"
                    )
                for row, (left, _), reduced in zip(rows, maps, seen, strict=True):
                    mapped = error if left is None else nn.functional.linear(error, left)
                    self._reached[row] += 1
                    errors, given = spread((mapped, reduced), samples, self._rows)
                    scale = self._matrices[row].scale
                    self._take(row, FactoredGradients.of(errors, given, self._rows, scale))

            output.register_hook(collect)

        return observe


def spread(
    parts: Sequence[torch.Tensor], samples: torch.Tensor | None, batch: int
) -> Sequence[torch.Tensor]:
    """(B, T, width) rows of some tokens at their samples, the rest zero, T the most of a sample.

    Args:
        parts: (n, width) each, what an expert sees, or everything as it is where `samples` is None.
        samples: (n,) the sample of each row.
    """
    if samples is None:
        return parts
    order = samples.argsort(stable=True)
    owners = samples[order]
    counts = torch.bincount(samples, minlength=batch)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(owners), device=samples.device) - first[owners]
    most = int(counts.max())
    found = []
    for values in parts:
        at_samples = values.new_zeros(batch, most, values.shape[-1])
        at_samples[owners, place] = values.flatten(0, -2)[order]
        found.append(at_samples)
    return found


def _brought(side: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor | None:
    return None if side is None else side.to(inputs)


def _require_finite(values: torch.Tensor, what: str, batch: Batch) -> None:
    finite = values.isfinite()
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise NumericalError(
            f"the {what} {batch.items[row].index} is {values[row].item()}; stopped, as "
            "no score made from it would mean anything (try dtype='float32', or look at the sample)"
        )


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Dropout off and no gradient for any weight, yet a graph from the input embeddings up.

    The model is left as before.
    """

    def start_graph(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        # A copy, since some models (CTRL) scale their embeddings in place, which no leaf allows.
        return output.requires_grad_().clone()

    with as_found(model), evaluation_mode(model):
        model.get_input_embeddings().register_forward_hook(start_graph)
        model.requires_grad_(False)
        yield
