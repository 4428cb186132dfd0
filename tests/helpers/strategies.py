"""Strategies of hypothesis for scores of layers and their sizes, and the mean that plans keep."""

from __future__ import annotations

from math import fsum

import numpy as np
from hypothesis import strategies as st

fractions = st.floats(0, 1)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    return fsum(values * weights) / fsum(weights)


@st.composite
def layers(draw: st.DrawFn, smallest: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Scores without ties, and sizes."""
    scores = draw(st.lists(st.integers(-99, 99), min_size=smallest, max_size=40, unique=True))
    sizes = draw(st.lists(st.integers(1, 10**9), min_size=len(scores), max_size=len(scores)))
    return np.array(scores, dtype=float), np.array(sizes)
