"""llm-compressor: a recipe of config groups for bits, or of sparsities for SparseGPT."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import yaml

from layerif.errors import InputError
from layerif.export.base import Export, Request, Written, group_sizes, raised, said
from layerif.export.options import IntegerOptions
from layerif.plans.maps.stored import WHOLE

# What vLLM has kernels for in this format.
SERVED = (4, 8, WHOLE)


def bits(request: Request) -> Written:
    """A `GPTQModifier` with one config group for each pair of bits and group size.

    Targets are whole names, so no pattern takes another's; what is in none stays as it is.
    """
    chosen = request.options
    targets, notes = raised(request.targets, chosen.fused)
    sizes, more = group_sizes(targets, chosen.group_size)
    unserved = [t for t in targets if t.bits not in SERVED]
    if unserved:
        more = [
            *more,
            f"vLLM runs 4 and 8 bits in this format, and {said(t.key for t in unserved)} have "
            "others: such a folder is opened by transformers alone",
        ]
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for t in targets:
        if t.bits != WHOLE:
            groups[t.bits, sizes[t.key]].append(t.name)
    if not groups:
        raise InputError("the plan leaves every projection at 16 bits, so nothing is quantised")
    config = {
        f"group_{place}": {
            "weights": {
                "num_bits": width,
                "type": "int",
                "symmetric": chosen.symmetric,
                "strategy": "channel" if size == -1 else "group",
                **({} if size == -1 else {"group_size": size}),
            },
            "targets": names,
        }
        for place, ((width, size), names) in enumerate(sorted(groups.items()))
    }
    modifier = {"GPTQModifier": {"config_groups": config}}
    return Written(_recipe("quantization", modifier), _usage(request), (*notes, *more))


def sparsity(request: Request) -> Written:
    """A `SparseGPTModifier` with a sparsity for each target, in the order of the model's modules.

    The engine hands the sparsities to the modules that match in that order. Projections of
    sparsity 0 are left out.
    """
    kept = [t for t in request.targets if t.level > 0]
    if not kept:
        raise InputError("the plan has no zeros anywhere, so there is nothing to prune")
    modifier = {
        "SparseGPTModifier": {
            "sparsity": [t.level for t in kept],
            "targets": [t.name for t in kept],
        }
    }
    return Written(
        _recipe("sparsity", modifier),
        _usage(request),
        ("zeros anywhere make no dense kernel faster",),
    )


def _recipe(stage: str, modifier: dict[str, Any]) -> str:
    # Its modifiers are under a key that ends in `modifiers`, in a stage that ends in `_stage`.
    return yaml.safe_dump({f"{stage}_stage": {f"{stage}_modifiers": modifier}}, sort_keys=False)


def _usage(request: Request) -> str:
    return (
        "from llmcompressor import oneshot; "
        f"oneshot(model={request.place!r}, dataset=..., recipe='{{file}}')"
    )


LLMCOMPRESSOR = Export(
    "llm-compressor",
    {"bits": bits, "sparsity": sparsity},
    IntegerOptions,
)
