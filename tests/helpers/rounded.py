"""Tiny models that are quantised, and folders of them."""

from __future__ import annotations

from helpers.pruned import OPTIONS
from helpers.tiny import tiny_tokenizer
from layerif.artifacts import Plan
from layerif.artifacts.plan import ModuleLevel
from layerif.compress.quantization.runner import quantize
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe

MIXED = (2, 3, 4, 5, 8, 16)


def quantize_tiny(model, plan=4, **options):
    """The manifest; the model is rounded in place."""
    given = OPTIONS | {"group_size": 32} | options
    return quantize(model, plan, tokenizer=tiny_tokenizer(), **given)


def mixed_plan(model, levels=MIXED):
    """Projection by projection another number of bits."""
    projections = find_decoder_layers(model).projections
    modules = [
        ModuleLevel(module=p.key, level=levels[row % len(levels)], numel=p.numel)
        for row, p in enumerate(projections)
    ]
    return Plan.of_modules(modules, kind="bits", model=describe(model))
