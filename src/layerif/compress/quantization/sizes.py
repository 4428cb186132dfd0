"""What a plan of bits takes on disk, and the bits that a size leaves room for."""

from __future__ import annotations

import re
from typing import Any

from layerif.artifacts import Plan
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers, find_decoder_layers
from layerif.model.precision import stored_precision
from layerif.plans.maps.bits import LEVELS
from layerif.plans.maps.stored import SCALE_BYTES, Grouping, groups_of, stored_bytes

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def plan_bytes(plan: Plan, layers: DecoderLayers, grid: Grouping) -> int:
    """Bytes of all projections, scales and zero points counted.

    Args:
        plan: of bits, for these layers.
        layers: of the model; a skeleton's will do.
        grid: how weights share their scales.
    """
    return sum(
        stored_bytes(p.out_features, p.in_features, int(plan.level_of(p.key)), grid)
        for p in layers.projections
    )


def bits_within(size: str, model: Any, grid: Grouping) -> float:
    """The mean bits of the projections' weights with which a model's weights take at most a size.

    All else in the model, embeddings and head too, counts in the precision of its files.

    Args:
        size: a number with B, kB, MB, GB, or KiB, MiB, GiB, as in 120MB.
        model: the causal LM; a skeleton's shapes will do.
        grid: how weights share their scales.

    Raises:
        InputError: it is no size, or leaves less than 2 bits a weight.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)\s*", size.upper())
    if found is None:
        raise InputError(f"{size!r} is no size; expected a number and a unit, such as 120MB")
    projections = find_decoder_layers(model).projections
    numel = sum(p.numel for p in projections)
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    rest = (sum(parameters.values()) - numel) * stored_precision(model).itemsize
    groups = [p.out_features * groups_of(p.in_features, grid.group_size) for p in projections]
    minima = grid.offset == "minimum" and not grid.symmetric
    offsets = SCALE_BYTES * (2 if minima else 1) * sum(groups)
    room = float(found[1]) * UNITS[found[2]] - rest - offsets
    # Zero points have as many bits as codes; each matrix ends with less than two bytes unused.
    codes = (
        numel
        if grid.symmetric or minima
        else numel * max(1 + own / p.numel for own, p in zip(groups, projections, strict=True))
    )
    bits = 8 * (room - 2 * len(projections)) / codes
    if bits < LEVELS[0]:
        least = rest + sum(
            stored_bytes(p.out_features, p.in_features, LEVELS[0], grid) for p in projections
        )
        raise InputError(
            f"{size} leaves less than {LEVELS[0]} bits a weight: with {LEVELS[0]} bits everywhere "
            f"the model takes {least:,} bytes, {rest:,} of them outside the projections"
        )
    return min(bits, float(LEVELS[-1]))
