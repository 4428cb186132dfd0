"""What plans at the operating point have in common: units that share a sparsity, and the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerif.artifacts import Allocation, ModuleSparsity
from layerif.core.choices import Granularity, check_choice
from layerif.data.batching import collate, pack
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers
from layerif.model.opening import describe, input_device
from layerif.plans.maps.sparsity import project_to_total
from layerif.search.texts import Texts


@dataclass(frozen=True, eq=False)
class Units:
    """What has one sparsity each: every projection by itself, or those of a layer together.

    Attributes:
        of: (projections,) the unit of each projection, from 0.
        sizes: (units,) int64, parameters of each.
        total: S, the fraction of zeros over all of them.
        low, high: no unit goes below or above.
    """

    of: NDArray[np.int64]
    sizes: NDArray[np.int64]
    total: float
    low: float
    high: float

    @classmethod
    def among(
        cls,
        layers: DecoderLayers,
        granularity: Granularity,
        sparsity: float,
        *,
        below: float,
        above: float,
    ) -> Units:
        """The units of a model, each kept within [S - below, S + above] and [0, 1].

        Raises:
            InputError: a sparsity outside [0, 1], a negative distance, or no such granularity.
        """
        check_choice(granularity, Granularity, "granularity")
        if not 0 <= sparsity <= 1:
            raise InputError(f"sparsity must be within 0 to 1, not {sparsity}")
        for name, value in (("below", below), ("above", above)):
            if not value >= 0:
                raise InputError(f"{name} must not be negative, and is {value}")
        rows = range(len(layers.projections))
        units = [p.layer for p in layers.projections] if granularity == "layer" else list(rows)
        of = np.array(units, dtype=np.int64)
        numels = np.array([p.numel for p in layers.projections], dtype=np.int64)
        sizes = np.zeros(of.max() + 1, dtype=np.int64)
        np.add.at(sizes, of, numels)
        low, high = max(sparsity - below, 0.0), min(sparsity + above, 1.0)
        return cls(of, sizes, float(sparsity), low, high)

    @property
    def mean_size(self) -> float:
        return float(self.sizes.mean())

    def uniform(self) -> NDArray[np.float64]:
        """(units,) all alike."""
        return np.full(len(self.sizes), self.total)

    def spread(self, values: NDArray[np.float64]) -> list[float]:
        """One value for each projection, from one for each unit."""
        return [float(value) for value in values[self.of]]

    def projected(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(units,) the nearest sparsities of exactly the total, within the bounds."""
        return project_to_total(values, self.sizes, self.total, self.low, self.high)


def plan_of(
    model: Any,
    layers: DecoderLayers,
    sparsities: Sequence[float],
    total: float,
    how: dict[str, Any],
) -> Allocation:
    """A plan by projections, with the record of how it came about."""
    modules = [
        ModuleSparsity(module=p.key, sparsity=float(s), numel=p.numel)
        for p, s in zip(layers.projections, sparsities, strict=True)
    ]
    return Allocation.of_modules(modules, total=total, model=describe(model), how=how)


def calibration_batches(model: Any, texts: Texts, batch_tokens: int) -> list[dict[str, Any]]:
    """Calibration text as pruning runs it through the layers."""
    device = input_device(model)
    groups = pack(texts.calibration, batch_tokens, model)
    return [collate(items, device=device).inputs for items in groups]
