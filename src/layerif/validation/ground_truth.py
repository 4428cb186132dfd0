"""What taking weights from one decoder layer really does to the loss.

Two ground truths of how a layer bears pruning, after Wanda's choice of weights:

- `isolated`: the layer alone is pruned, the others are dense; the rise of the loss.
- `operating_point`: all layers are pruned at S, and one of them moves by delta up and down; the
  change of the loss per unit of its sparsity, (L(S + delta) - L(S - delta)) / (2 delta).

Only the layers from the changed one upwards are run, from hidden states that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerif.artifacts import GroundTruth
from layerif.calibration.statistics import InputNorms
from layerif.calibration.walk import walk
from layerif.compress.compressor import Compressible, put_back
from layerif.compress.pruning.compressor import PruningCompressor
from layerif.compress.pruning.options import MethodOptions
from layerif.compress.pruning.targets import Target
from layerif.compress.pruning.wanda import WANDA
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.progress import progress
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import describe, setting
from layerif.validation.partial import PartialForward, Rows


def isolated(
    model: Any,
    chunks: Sequence[Encoded],
    sparsity: float,
    *,
    batch_tokens: int = 2048,
    text: dict[str, Any] | None = None,
    steps: Steps = NO_STEPS,
) -> GroundTruth:
    """Each layer pruned alone at `sparsity`, all others dense.

    Args:
        model: a causal LM of transformers; its weights are as before afterwards.
        chunks: calibration text, of equal length; both the statistics and the losses are of them.
        steps: keeps finished layers.

    Raises:
        InputError: the sparsity is not within 0 to 1.
        NumericalError: a loss is not finite.
    """
    check_point(sparsity)
    bench = _Bench(model, chunks, batch_tokens)
    costs = []
    with evaluation_mode(bench.model), progress("one layer at a time", len(bench.layers)) as tick:
        dense = bench.base()
        for visit in walk(bench.model, bench.layers, bench.inputs):
            step = f"isolated-{visit.index:04d}"
            kept = steps.load(step)
            if kept is None:
                own = bench.layers.of(visit.index)
                statistics = InputNorms(own)
                visit.observe(statistics)
                with put_back(own):
                    for projection in own:
                        zeros = round(sparsity * projection.numel)
                        WANDA.prune(projection, statistics, Target(zeros))
                    kept = {"nats": bench.losses(visit.index)}
                steps.save(step, kept)
            costs.append((kept["nats"] - dense).tolist())
            tick()
    return bench.result(dense, text, kind="isolated", sparsity=sparsity, delta=None, costs=costs)


def operating_point(
    model: Any,
    chunks: Sequence[Encoded],
    sparsity: float,
    *,
    delta: float = 0.05,
    batch_tokens: int = 2048,
    text: dict[str, Any] | None = None,
    steps: Steps = NO_STEPS,
) -> GroundTruth:
    """All layers pruned at `sparsity`, one of them moved by `delta` up and down.

    Args:
        model, chunks, steps: as for `isolated`.
        delta: less than the sparsity and what is left of 1.

    Raises:
        InputError: sparsity or delta is out of its range.
        NumericalError: a loss is not finite.
    """
    check_point(sparsity, delta)
    bench = _Bench(model, chunks, batch_tokens)
    projections = bench.layers.projections
    usual, more, less = (
        [round(s * p.numel) for p in projections]
        for s in (sparsity, sparsity + delta, sparsity - delta)
    )
    costs = []
    with (
        PruningCompressor.held(
            bench.model, bench.layers, bench.inputs, MethodOptions()
        ) as compressor,
        progress("projections pruned, then moved", 2 * len(projections)) as tick,
    ):

        def keep(_row: int, projection: Compressible) -> Compressible:
            tick()
            return projection

        prunable = compressor.at(usual, keep)
        base = bench.base()
        for layer in range(len(bench.layers)):
            own = [row for row, p in enumerate(projections) if p.layer == layer]
            step = f"moved-{layer:04d}"
            kept = steps.load(step)
            if kept is None:
                kept = {}
                with put_back([projections[row] for row in own]):
                    for name, levels in (("more", more), ("less", less)):
                        for row in own:
                            compressor.set(row, prunable[row].at(levels[row]))
                        kept[name] = bench.losses(layer)
                steps.save(step, kept)
            costs.append(((kept["more"] - kept["less"]) / (2 * delta)).tolist())
            tick(len(own))
    point = {"sparsity": sparsity, "delta": delta}
    return bench.result(base, text, kind="operating_point", costs=costs, **point)


class _Bench:
    """The model on the chunks, with what each layer gets of every batch kept."""

    def __init__(self, model: Any, chunks: Sequence[Encoded], batch_tokens: int) -> None:
        self.model = unwrapped(model)
        self.layers = find_decoder_layers(self.model)
        self._rows = Rows(chunks, batch_tokens, self.model, "chunk")
        self.inputs = [batch.inputs for batch in self._rows.batches]
        self._partial = PartialForward(self.model, self.layers)

    def base(self) -> torch.Tensor:
        """(chunks,) nats a token of the model as it is; what each layer gets is kept."""
        found = [self._partial.whole(batch) for batch in self._rows.batches]
        self._hidden = [inputs for _, inputs in found]
        return self._rows.means([nats for nats, _ in found], "as the model is")

    @torch.no_grad()
    def losses(self, layer: int) -> torch.Tensor:
        """(chunks,) nats a token, the layers below `layer` being as they were at `base`."""
        nats = [
            self._partial.upwards(batch, layer, hidden[layer])
            for batch, hidden in zip(self._rows.batches, self._hidden, strict=True)
        ]
        return self._rows.means(nats, f"with layer {layer} pruned")

    def result(self, base: torch.Tensor, text: dict[str, Any] | None, **fields: Any) -> GroundTruth:
        return GroundTruth(
            base_loss=base.mean().item(),
            model=describe(self.model),
            text={**(text or {}), "chunks": len(self._rows), "tokens": self._rows.tokens},
            setting=setting(self.model),
            **fields,
        )


def check_point(sparsity: float, delta: float | None = None) -> None:
    """Refuse what no layer can be pruned at, or moved by.

    Raises:
        InputError: sparsity, or delta if it is given, is out of its range.
    """
    if not 0 < sparsity < 1:
        raise InputError(f"the sparsity is {sparsity:g}; it must lie between 0 and 1")
    if delta is not None and not 0 < delta <= min(sparsity, 1 - sparsity):
        raise InputError(
            f"a delta of {delta:g} does not fit around a sparsity of {sparsity:g}; expected "
            f"above 0 and at most {min(sparsity, 1 - sparsity):g}"
        )
