"""The stage that drops layers: a model folder that is never made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerif.artifacts import DROPPED, DroppedLayers, Plan, hash_texts
from layerif.compress.depth.dropping import drop_layers
from layerif.compress.depth.saving import save_dropped
from layerif.compress.saving import saved_size
from layerif.core.checkpoint import Steps
from layerif.model.layers import unwrapped
from layerif.model.opening import Tokenizer, describe, setting
from layerif.model.precision import stored_precision, word_of
from layerif.workflows.stage import Stage, fingerprint_of

DROPPING = Stage(DROPPED, DroppedLayers.load)


def drop_into(
    folder: Path, model: Any, tokenizer: Tokenizer, plan: Plan, *, overwrite: bool = False
) -> DroppedLayers:
    """`drop_layers`, saved to a model folder; `model` stays as it is.

    Raises:
        InputError: as `drop_layers` and `resumable`; or the folder holds another model.
    """
    asked: dict[str, Any] = {"depth": plan.allocation}
    precision = word_of(stored_precision(model))
    if precision != setting(model).dtype:
        asked["precision"] = precision
    wanted = fingerprint_of(model, hash_texts([]), asked)

    def work(steps: Steps) -> DroppedLayers:
        cut = drop_layers(model, plan)
        steps.reserve(saved_size(cut), "the model that is left", "*.safetensors")
        whole = unwrapped(model)
        manifest = DroppedLayers(
            model=describe(model),
            plan=plan,
            kept=plan.kept_layers(),
            parameters=(cut.num_parameters(), whole.num_parameters()),
            setting=setting(model),
            fingerprint=wanted,
        )
        return save_dropped(cut, tokenizer, manifest, folder)

    return DROPPING.run(folder, wanted, work, overwrite=overwrite)
