"""PL alpha, the layer metric of AlphaPruning (arXiv 2410.10912) and AlphaLoRA (2410.10054)."""

from __future__ import annotations

import numpy as np
import torch

from layerif.core.choices import AlphaCompat, check_choice
from layerif.core.options import Options
from layerif.core.progress import progress
from layerif.errors import InputError, NumericalError
from layerif.metrics.base import Metric, MetricValues, Subject, layer_means

# Eigenvalues this small beside the largest are round-off.
EIGENVALUE_FLOOR = 1e-12
BINS = 100
# The tail begins at one of the eigenvalues in this range around the peak of the spectrum.
CANDIDATE_RANGE = (0.95, 1.5)
# Entries of a block of candidates x eigenvalues: a few such blocks stay in a core's cache.
_BLOCK = 2**16
# Logarithms whose mean spread is below this are all alike.
_NO_SPREAD = 1e-12


class PlAlphaOptions(Options):
    """Options of pl_alpha."""

    title = "Metric"

    compat: AlphaCompat = "corrected"
    """Where a tail may begin: as published (corrected), or as in the authors' code (reference)."""


def pl_alpha(subject: Subject, *, compat: AlphaCompat) -> MetricValues:
    """Exponent of the power law in the tail of each projection's spectrum; a layer has their mean.

    See `hill_alpha` for the estimate and `compat`. The model's weights alone are read.

    Returns:
        Values without a unit, above 1. High: read as less well trained.

    Raises:
        InputError: the spectrum of a projection has no tail; names it.
        NumericalError: a weight is not finite.
    """
    projections = subject.layers.projections
    alphas = []
    with progress("spectra of the projections", len(projections)) as advance:
        for projection in projections:
            try:
                alphas.append(hill_alpha(eigenvalues(projection.weight), compat))
            except (InputError, NumericalError) as error:
                raise type(error)(f"{projection.key}: {error}") from None
            advance()
    values = np.array(alphas)
    return MetricValues(layer_means(subject.layers, values), values)


@torch.no_grad()
def eigenvalues(weight: torch.Tensor) -> torch.Tensor:
    """The squares of a matrix's singular values, from its smaller Gram matrix in float64.

    That is twice as fast as the singular values themselves, and exact to about 1e-15 of the largest
    eigenvalue, well below the share (`EIGENVALUE_FLOOR`) under which `hill_alpha` drops them.

    Args:
        weight: (out, in), of any floating dtype.

    Returns:
        (min(out, in),) float64, ascending, on the weight's device; round-off may leave the
        smallest below 0.

    Raises:
        NumericalError: the weight is not finite.
    """
    if not weight.isfinite().all():
        raise NumericalError("the weight holds values that are not finite")
    exact = weight.to(torch.float64)
    if exact.shape[0] > exact.shape[1]:
        exact = exact.T
    return torch.linalg.eigvalsh(exact @ exact.T)


@torch.no_grad()
def hill_alpha(spectrum: torch.Tensor, compat: AlphaCompat = "corrected") -> float:
    """Hill's estimate of a power law's exponent, where the tail begins chosen by the KS distance.

    As in AlphaPruning (arXiv 2410.10912): of the N eigenvalues e in ascending order, those from the
    i-th on are fitted by alpha_i = 1 + n / (sum_{j>=i} ln e_j - n ln e_i), n = N - i, and of the
    candidates i the one with the least distance
    max_{j>=i} | 1 - (e_j / e_i)^(1 - alpha_i) - (j - i) / n | is taken, the first of equals.
    Candidates lie between 0.95 and 1.5 times x, the left edge of the fullest of 100 bins of
    log10 e. All candidates are fitted at once.

    Args:
        spectrum: (N,) eigenvalues, ascending; what is at most 1e-12 of the largest is dropped.
        compat: `corrected` has candidates as above; `reference` has log10(0.95 x) for the lower
            bound, as the authors' code compares it, so that mostly every smaller eigenvalue is one.

    Returns:
        The exponent, above 1.

    Raises:
        InputError: fewer than two eigenvalues, or all alike: there is no tail.
    """
    check_choice(compat, AlphaCompat, "compat")
    found = spectrum.to(torch.float64)
    if len(found):
        found = found[(found > EIGENVALUE_FLOOR * found.max()) & (found > 0)]
    if len(found) < 2:
        raise InputError(
            f"the spectrum has {len(found)} eigenvalues above round-off; a power law needs at "
            "least two, so this metric does not apply here"
        )
    logs = found.log()
    above = logs - logs[-1]  # from the largest down: sums of small numbers
    count = len(found)
    tails = torch.arange(count, 0, -1, dtype=torch.float64, device=found.device)
    spread = above.flip(0).cumsum(0).flip(0) - tails * above
    candidates = _candidates(found, logs, compat)
    candidates = candidates[spread[candidates] > _NO_SPREAD * tails[candidates]]
    if not len(candidates):
        raise InputError(
            "the eigenvalues in the tail of the spectrum are all alike; no power law describes "
            "them, so this metric does not apply here"
        )
    slopes = -tails[candidates] / spread[candidates]  # 1 - alpha
    distances = _distances(above, candidates, slopes)
    return 1 - float(slopes[distances.argmin()])


def _candidates(found: torch.Tensor, logs: torch.Tensor, compat: AlphaCompat) -> torch.Tensor:
    """Indices at which the tail may begin, ascending; the largest eigenvalue alone is no tail."""
    decades = logs / np.log(10)
    low, high = float(decades[0]), float(decades[-1])
    width = (high - low) / BINS
    fullest = 0
    if width > 0:
        bins = ((decades - low) / (high - low) * BINS).long().clamp_(max=BINS - 1)
        fullest = int(torch.bincount(bins, minlength=BINS).argmax())
    peak = 10 ** (low + fullest * width)
    lowest = CANDIDATE_RANGE[0] * peak
    if compat == "reference":
        lowest = float(np.log10(lowest))
    inside = (found >= lowest) & (found <= CANDIDATE_RANGE[1] * peak)
    return inside[:-1].nonzero()[:, 0]


def _distances(above: torch.Tensor, candidates: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """(candidates,) Kolmogorov-Smirnov distance of each candidate's fit.

    Candidates are taken in blocks, each against the eigenvalues from its first candidate on.
    """
    count = len(above)
    positions = torch.arange(count, dtype=torch.float64, device=above.device)
    distances = torch.empty_like(slopes)
    first, starts = 0, candidates.tolist()
    while first < len(starts):
        start = starts[first]
        last = min(first + max(1, _BLOCK // (count - start)), len(starts))
        rows, own = candidates[first:last, None], slopes[first:last, None]
        offsets = positions[start:] - rows
        # Before the tail's beginning there is nothing to fit; there the ratio is set to 1.
        ratios = (above[start:] - above[rows]).clamp_(min=0).mul_(own).exp_()
        gaps = ratios.add_(offsets.clamp_(min=0).div_(count - rows)).sub_(1).abs_()
        distances[first:last] = gaps.amax(1)
        first = last
    return distances


PL_ALPHA = Metric(pl_alpha, PlAlphaOptions)
