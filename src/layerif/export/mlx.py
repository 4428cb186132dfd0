"""MLX: the `quantization` of a model's config.json, every projection by its whole name."""

from __future__ import annotations

import json
from typing import Any

from layerif.export.base import Export, Request, Written, among, said
from layerif.export.options import MlxOptions
from layerif.plans.maps.stored import WHOLE

KNOWN = (2, 3, 4, 5, 6, 8, WHOLE)


def bits(request: Request) -> Written:
    """Bits and group size of each projection, false for what is left as it is.

    MLX gives what the dictionary does not name the level at its top, so embeddings and head are
    named too. A row that no group divides is left as it is.
    """
    chosen = request.options
    targets, notes = among(request.targets, KNOWN, "MLX")
    named: dict[str, Any] = {}
    smaller, left = [], []
    for t in targets:
        size = next(
            (s for s in (128, 64, 32) if s <= chosen.group_size and not t.in_features % s), 0
        )
        if t.bits == WHOLE or not size:
            named[t.name] = False
            left += [t.key] if t.bits != WHOLE else []
            continue
        smaller += [t.key] if size != chosen.group_size else []
        named[t.name] = {"group_size": size, "bits": t.bits}
    if smaller:
        notes = [*notes, f"{said(smaller)} get smaller groups, which divide their rows"]
    if left:
        notes = [*notes, f"MLX has no groups for the rows of {said(left)}: they stay as they are"]
    levels = [own["bits"] for own in named.values() if own]
    for name in outer_names(request.model):
        fits = chosen.embeddings is not None
        named[name] = (
            {"group_size": chosen.group_size, "bits": chosen.embeddings} if fits else False
        )
    top = {"group_size": chosen.group_size, "bits": max(set(levels), key=levels.count, default=4)}
    usage = (
        'put it under "quantization" in the converted folder\'s config.json, or give '
        "mlx_lm.convert a quant_predicate that looks names up in it"
    )
    return Written(json.dumps(top | named, indent=2) + "\n", usage, tuple(notes))


def outer_names(model: Any) -> list[str]:
    """The token embeddings and an untied head, by their paths."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = modules[1] is not None and modules[1].weight is modules[0].weight
    wanted = modules[:1] if tied or modules[1] is None else modules
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in wanted]


MLX = Export("MLX", {"bits": bits}, MlxOptions)
