"""What a metric of layers is: a function of a model's layers, and of text where it reads some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.calibration.walk import Visit, walk
from layerif.core.options import Options
from layerif.core.progress import progress
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MetricValues:
    """What a metric says.

    Attributes:
        layers: (layers,) one number a layer, in the metric's own unit.
        projections: (projections,) one number a projection, in the order of
            `DecoderLayers.projections`; None where the metric knows layers alone.
    """

    layers: FloatArray
    projections: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """The dense model that a metric looks at.

    Whatever reads text raises InputError where the metric is not registered as one that does.

    Attributes:
        layers: its decoder layers and their projections.
        seed: of whatever the metric draws.
        model: the causal LM, in evaluation mode; to be left as it is.
        batch_tokens: tokens of a batch, padding counted.
    """

    layers: DecoderLayers
    seed: int
    model: Any
    _batches: Sequence[dict[str, torch.Tensor]] | None = None
    _samples: tuple[Sequence[Encoded], Sequence[Encoded]] | None = None
    batch_tokens: int = 2048

    @property
    def of_task(self) -> bool:
        """Whether there are samples of a task, in place of calibration text."""
        return self._samples is not None

    @property
    def batches(self) -> Sequence[dict[str, torch.Tensor]]:
        """The calibration text, as `walk` takes it."""
        if self._batches is None:
            raise InputError(
                "this metric reads calibration text, but is not registered as one that does; "
                "register it with reads_text=True"
            )
        return self._batches

    @property
    def texts(self) -> list[Encoded]:
        """The chunks of calibration text."""
        rows = [row for inputs in self.batches for row in inputs["input_ids"].tolist()]
        return [Encoded(index, ids, 1) for index, ids in enumerate(rows)]

    @property
    def samples(self) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
        """Training and validation samples of a task; else every other chunk of calibration text.

        Raises:
            InputError: the text is a single chunk.
        """
        if self._samples is not None:
            return self._samples
        texts = self.texts
        if len(texts) < 2:
            raise InputError(
                "a single chunk of calibration text has no two halves; give at least 2 chunks, or "
                "samples of a task"
            )
        return texts[::2], texts[1::2]

    def visits(self) -> Iterator[Visit]:
        """The decoder layers from the bottom up, each with the calibration text's hidden states.

        Each may be run once, and must stay as it is.
        """
        batches = self.batches
        with progress("running the layers", len(self.layers)) as advance:
            for visit in walk(self.model, self.layers, batches, unchanged=True):
                yield visit
                advance()


MetricFunction = Callable[..., MetricValues]


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Attributes:
        function: of a Subject, and of the options by keyword.
        options: the class of its options.
        reads_text: whether it runs calibration text through the model.
        takes_samples: whether it takes training and validation samples of a task in its place.
        reads_weights: whether it reads the projections' weights, which must not be quantised then.
        seeded: whether it draws by the seed.
        of_another: whether it makes something of another metric, named by the option `of`, whose
            options it takes too.
    """

    function: MetricFunction
    options: type[Options] = Options
    reads_text: bool = False
    takes_samples: bool = False
    reads_weights: bool = True
    seeded: bool = False
    of_another: bool = False


def layer_means(layers: DecoderLayers, values: FloatArray) -> FloatArray:
    """(layers,) unweighted mean of the values of each layer's projections; 0 where it has none."""
    owners = [p.layer for p in layers.projections]
    counts = np.bincount(owners, minlength=len(layers)).clip(min=1)
    return np.asarray(np.bincount(owners, weights=values, minlength=len(layers)) / counts)
