"""mergekit: the layers that a plan of depth keeps, as slices."""

from __future__ import annotations

import yaml

from layerif.errors import InputError
from layerif.export.base import Export, Request, Written


def depth(request: Request) -> Written:
    """Runs of kept layers, first included and last excluded, passed through.

    mergekit sets the number of layers alone, so a model with other lists by layer is refused where
    the list would be wrong afterwards.

    Raises:
        InputError: a layer is kept in part, or layers are of several kinds and would change places.
    """
    kept = request.plan.kept_layers()
    config = request.model.config.get_text_config(decoder=True)
    refuse_moved(config, kept, "mergekit")
    slices = [
        {"sources": [{"model": request.place, "layer_range": [first, end]}]}
        for first, end in runs(kept)
    ]
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    said = {"slices": slices, "merge_method": "passthrough", "dtype": stored}
    return Written(yaml.safe_dump(said, sort_keys=False), "mergekit-yaml {file} FOLDER")


def runs(kept: list[int]) -> list[tuple[int, int]]:
    """Runs of layers, each from its first to behind its last."""
    found: list[tuple[int, int]] = []
    for layer in kept:
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found


def refuse_moved(config: object, kept: list[int], engine: str) -> None:
    """Refuse to renumber layers that are told apart by their place.

    Raises:
        InputError: a kept layer would stand where the engine expects one of another kind, or layers
            share their keys and values.
    """
    for name in ("layer_types", "mlp_layer_types"):
        kinds = getattr(config, name, None)
        if kinds is None:
            continue
        for place, layer in enumerate(kept):
            if kinds[place] != kinds[layer]:
                raise InputError(
                    f"{engine} numbers the kept layers again and tells their kinds by their "
                    f"places: layer {layer} is of {kinds[layer]}, and would be taken for "
                    f"{kinds[place]} as layer {place}; drop layers so that kinds keep their places"
                )
    if getattr(config, "num_kv_shared_layers", 0):
        raise InputError(
            f"layers of this model share keys and values, which {engine} would tell apart wrongly "
            "after others are dropped"
        )


MERGEKIT = Export("mergekit", {"depth": depth})
