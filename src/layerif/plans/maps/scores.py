"""From a score to a position in [0, 1].

Scores are one number per layer, in the order of the layers, of any unit and sign. Plans use only
how they are placed between the lowest and the highest of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from layerif.core.choices import Orientation, check_choice
from layerif.errors import InputError
from layerif.plans.maps.aggregation import FloatArray, check_scores

SAVGOL_WINDOW = 7
SAVGOL_POLYORDER = 3

# A spread this small beside the scores is round-off of whatever summed them; min-max would blow
# it up to the full range and spend a budget on noise.
_ROUND_OFF = 1e-12


class ConstantScoresError(InputError):
    """The scores do not tell the layers apart, so no budget can follow from them."""


def minmax(scores: ArrayLike, *, name: str = "scores") -> FloatArray:
    """Map the lowest score to 0, the highest to 1, the others in proportion; shape (layers,).

    Raises:
        ConstantScoresError: all scores are equal, to within 1e-12 of the largest magnitude (one
            layer alone is such a case).
        InputError: see `check_scores`.
    """
    # Halved, since the difference of two finite numbers need not be finite.
    halves = check_scores(scores, name=name) / 2
    above = halves - halves.min()
    spread = above.max()
    if spread <= _ROUND_OFF * np.abs(halves).max():
        raise ConstantScoresError(
            f"the {name} do not tell the layers apart: all {halves.size} are "
            f"{2 * halves[0]:.6g}, which leaves no lowest and no highest to allocate between; "
            f"use other scores, or ask for the uniform allocation with on_constant='uniform'"
        )
    return above / spread


def smoothing_window(layers: int) -> int | None:
    """Window of `smoothed` for that many layers: 7, or 5 for five or six, or None for fewer."""
    window = min(SAVGOL_WINDOW, layers - 1 + layers % 2)
    return window if window > SAVGOL_POLYORDER else None


def smoothed(scores: ArrayLike) -> tuple[FloatArray, int | None]:
    """Smooth over neighbouring layers; shape (layers,), and the window used (None: unchanged).

    Savitzky-Golay of order 3 over 7 layers, the ends taken from the first and last window's own
    polynomial, as in LayerIF (arXiv 2505.23811). With fewer than 7 layers the window is the
    largest odd one that fits and is above the order. The result may leave the scores' own range.

    Raises:
        InputError: see `check_scores`.
    """
    vector = check_scores(scores)
    window = smoothing_window(vector.size)
    if window is None:
        return vector, None
    from scipy.signal import savgol_filter

    return np.asarray(savgol_filter(vector, window, SAVGOL_POLYORDER, mode="interp")), window


def orient(q: ArrayLike, orientation: Orientation) -> FloatArray:
    """Say which end of [0, 1] gets more experts and more sparsity; shape (layers,).

    `direct` keeps q: a low cumulative influence is read as a well-trained layer, which needs
    fewer experts and can spare fewer weights (LayerIF, arXiv 2505.23811). `inverse` is 1 - q.

    Raises:
        InputError: some q lies outside [0, 1], or there is no such orientation.
    """
    check_choice(orientation, Orientation, "orientation")
    vector = check_scores(q, name="positions q")
    if vector.min() < 0 or vector.max() > 1:
        raise InputError(
            f"the positions q go from {vector.min():.6g} to {vector.max():.6g}; "
            f"they are turned around within [0, 1], so take minmax of the scores first"
        )
    return vector if orientation == "direct" else 1 - vector
