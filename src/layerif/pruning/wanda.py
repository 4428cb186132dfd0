"""Wanda (arXiv 2306.11695): prune by weight magnitude times the norm of the input feature."""

from __future__ import annotations

import torch


def wanda_mask(weight: torch.Tensor, norms: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Which weights go: in every output row those with the smallest |W_ij| |X_j|_2.

    Exactly round(sparsity * numel) weights are chosen, and rows differ by at most one: the rows
    that lose one more are those where the next weight matters least. Among equal weights the lower
    column goes first. Weights that are zero already have the smallest saliency, so they are chosen
    first and count.

    Args:
        weight: (out, in).
        norms: (in,) |X_j|_2 over the calibration tokens.
        sparsity: fraction of zeros wanted, 0 to 1.

    Returns:
        (out, in) bool, true where the weight is to become zero.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    saliency = weight.abs().to(exact) * norms.to(exact)
    each, extra = divmod(round(sparsity * weight.numel()), len(weight))
    # Below every other: features that are dead on the text make zeros of live weights too.
    saliency.masked_fill_(weight == 0, -1)
    order = saliency.argsort(dim=1, stable=True)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask.scatter_(1, order[:, :each], True)
    if extra:  # then no row is empty yet: each has a next weight
        following = order[:, each]
        costs = saliency.gather(1, following[:, None])[:, 0]
        chosen = costs.argsort(stable=True)[:extra]
        mask[chosen, following[chosen]] = True
    return mask
