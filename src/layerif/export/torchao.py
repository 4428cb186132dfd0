"""torchao: a Python file that makes an `FqnToConfig`, every projection by its whole name."""

from __future__ import annotations

from layerif.export.base import Export, Request, Written, group_sizes, raised
from layerif.export.options import IntegerOptions
from layerif.plans.maps.stored import WHOLE

HEAD = '''\
"""Weights of few bits by a plan, for torchao; written by layerif."""

from collections import OrderedDict

import torch
from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_primitives import MappingType


def of(bits, group_size):
    """Of one projection; a group size of -1 is a whole row."""
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerAxis(0) if group_size == -1 else PerGroup(group_size),
        mapping_type=MappingType.'''
MIDDLE = """,
    )


LEVELS = OrderedDict(
    [
"""
TAIL = """    ]
)
config = FqnToConfig(LEVELS)


def apply(model):
    \"\"\"Quantise a model in place.\"\"\"
    quantize_(model, config, filter_fn=None)
"""


def bits(request: Request) -> Written:
    """A config for each name; those of 16 bits are named with None."""
    chosen = request.options
    targets, notes = raised(request.targets, chosen.fused)
    sizes, more = group_sizes(targets, chosen.group_size)
    lines = [
        f'        ("{t.name}", '
        + ("None" if t.bits == WHOLE else f"of({t.bits}, {sizes[t.key]})")
        + "),\n"
        for t in targets
    ]
    mapping = "SYMMETRIC" if chosen.symmetric else "ASYMMETRIC"
    text = HEAD + mapping + MIDDLE + "".join(lines) + TAIL
    usage = 'runpy.run_path("{file}")["apply"](model)'
    return Written(text, usage, (*notes, *more))


TORCHAO = Export("torchao", {"bits": bits}, IntegerOptions)
