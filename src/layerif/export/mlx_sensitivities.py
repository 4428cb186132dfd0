"""MLX: levels as the sensitivities that `mlx_lm.dynamic_quant` gives bits by, highest first."""

from __future__ import annotations

import json

from layerif.export.base import Export, Request, Written
from layerif.export.mlx import outer_names


def bits(request: Request) -> Written:
    """A list of [module, level]; embeddings and head come first, as `dynamic_quant` asks for all.

    The engine has two levels, and gives the higher one to the modules above a threshold that it
    finds for its own total: of a plan with more levels the order alone survives.
    """
    highest = max(target.level for target in request.targets)
    listed: list[list[str | float]] = [[t.name, t.level] for t in request.targets]
    listed += [[name, highest + 1] for name in outer_names(request.model)]
    notes = []
    if len({target.level for target in request.targets}) > 2:
        notes = ["mlx_lm.dynamic_quant has two levels: of the plan's, the order alone survives"]
    usage = f"mlx_lm.dynamic_quant --model {request.place} --sensitivities {{file}}"
    return Written(json.dumps(listed, indent=1) + "\n", usage, tuple(notes))


MLX_SENSITIVITIES = Export("mlx_lm.dynamic_quant", {"bits": bits})
