"""Ranks: the rank of a plain LoRA at each projection of a layer, at least 1, their sum exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layerif.plans.kinds.experts import EXPERTS

RANKS = replace(
    EXPERTS,
    name="ranks",
    label="LoRA rank",
    level="rank {}",
    span="{} to {} ranks",
    ranks=lambda levels, _rank: np.asarray(levels, dtype=np.int64),
)
