"""Wanda (arXiv 2306.11695): prune by weight magnitude times the norm of the input feature."""

from __future__ import annotations

import torch

from layerif.calibration.statistics import InputNorms
from layerif.compress.figures import Figures, relative
from layerif.compress.pruning.base import Masked
from layerif.compress.pruning.selection import group_mask, smallest_by_row
from layerif.compress.pruning.targets import Target
from layerif.model.layers import Projection


class Wanda:
    """In each output row the smallest |W_ij| |X_j|_2, or in each group where there is a pattern.

    The error is that of features without correlation: the diagonal of X X^T is all that is known.
    """

    statistics = InputNorms

    def prune(self, projection: Projection, statistics: InputNorms, target: Target) -> Figures:
        weight = projection.weight
        saliency = wanda_saliency(weight, statistics.norms(projection).to(weight.device))
        whole = saliency.square().sum(dtype=torch.float64)
        mask = _mask(weight, saliency, target)
        # A weight that is zero already loses nothing.
        saliency.clamp_(min=0).masked_fill_(~mask, 0)
        lost = saliency.square_().sum(dtype=torch.float64)
        weight.masked_fill_(mask, 0)
        return Figures(error=relative(lost, whole))

    def prunable(
        self, projection: Projection, original: torch.Tensor, statistics: InputNorms
    ) -> Masked:
        norms = statistics.norms(projection).to(original.device)
        # The share of a whole number is that number again.
        return Masked(original, lambda zeros: wanda_mask(original, norms, zeros / original.numel()))


def wanda_saliency(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """(out, in) |W_ij| |X_j|_2 in float32 or better, from norms (in,)."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    return weight.abs().to(exact) * norms.to(exact)


def wanda_mask(weight: torch.Tensor, norms: torch.Tensor, sparsity: float) -> torch.Tensor:
    """(out, in) bool, which weights go: in every output row those of the smallest |W_ij| |X_j|_2.

    Exactly round(sparsity * numel) weights are chosen, and rows differ by at most one: the rows
    that lose one more are those where the next weight matters least. Among equal weights the lower
    column goes first. Weights that are zero already have the smallest saliency, so they are chosen
    first and count.

    Args:
        weight: (out, in).
        norms: (in,) |X_j|_2 over the calibration tokens.
        sparsity: fraction of zeros wanted, 0 to 1.
    """
    target = Target(round(sparsity * weight.numel()))
    return _mask(weight, wanda_saliency(weight, norms), target)


def _mask(weight: torch.Tensor, saliency: torch.Tensor, target: Target) -> torch.Tensor:
    # Features that are dead on the text make zeros of the saliency of live weights too, so those
    # of weights that are zero already are put below every other, in place.
    saliency.masked_fill_(weight == 0, -1)
    if target.pattern:
        return group_mask(saliency, target.pattern)
    return smallest_by_row(saliency, target.zeros)


WANDA = Wanda()
