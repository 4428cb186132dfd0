"""A figure with its interval and outcomes, from what was measured item by item."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from layerif.artifacts import Measurement, Outcomes
from layerif.evaluation.statistics import perplexity_interval, wilson_interval

_DECIMALS = 6  # of nats: more than any model's arithmetic settles, and short to read


def accuracy_figure(
    items: Iterable[Any],
    correct: np.ndarray,
    nats: Iterable[float] = (),
    tokens: Iterable[int] = (),
    **about: Any,
) -> Measurement:
    """The share of items that are right.

    Args:
        items: plain JSON values that tell the items apart.
        correct: (items,) 1 or true where one is right.
        nats, tokens: (items,) loss of the right completion, summed, and the tokens of each sum.
        about: the other fields of the measurement.
    """
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return Measurement(
        metric="accuracy",
        value=float(correct.mean()),
        low=low,
        high=high,
        count=len(correct),
        outcomes=_outcomes(items, nats, tokens, correct),
        **about,
    )


def perplexity_figure(
    items: Iterable[Any], nats: np.ndarray, tokens: np.ndarray, **about: Any
) -> Measurement:
    """exp of the mean loss of a token; the arguments are those of `accuracy_figure`."""
    low, high = perplexity_interval(nats, tokens) or (None, None)
    return Measurement(
        metric="perplexity",
        value=math.exp(nats.sum() / tokens.sum()),
        low=low,
        high=high,
        count=int(tokens.sum()),
        outcomes=_outcomes(items, nats, tokens),
        **about,
    )


def _outcomes(
    items: Iterable[Any],
    nats: Iterable[float],
    tokens: Iterable[int],
    correct: Iterable[bool] = (),
) -> Outcomes:
    return Outcomes(
        items=hash_of(items),
        nats=[round(float(value), _DECIMALS) for value in nats],
        tokens=[int(count) for count in tokens],
        correct=[1 if hit else 0 for hit in correct],
    )


def hash_of(items: Iterable[Any]) -> str:
    """What tells items and their order apart."""
    text = json.dumps(list(items), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
