"""AutoRound: its `layer_config` as JSON, every projection by its whole name."""

from __future__ import annotations

import json
from typing import Any

from layerif.export.base import Export, Request, Written, group_sizes, raised
from layerif.export.options import IntegerOptions
from layerif.plans.maps.stored import WHOLE


def bits(request: Request) -> Written:
    """Bits, group size and symmetry of each projection; those of 16 bits stay floating-point."""
    chosen = request.options
    targets, notes = raised(request.targets, chosen.fused)
    sizes, more = group_sizes(targets, chosen.group_size)
    config: dict[str, Any] = {}
    for t in targets:
        config[t.name] = (
            {"bits": WHOLE, "data_type": "float"}
            if t.bits == WHOLE
            else {
                "bits": t.bits,
                "group_size": sizes[t.key],
                "sym": chosen.symmetric,
                "data_type": "int",
            }
        )
    usage = (
        "from auto_round import AutoRound; "
        f"AutoRound({request.place!r}, layer_config=json.load(open('{{file}}')))"
    )
    return Written(json.dumps(config, indent=2) + "\n", usage, (*notes, *more))


AUTOROUND = Export("AutoRound", {"bits": bits}, IntegerOptions)
