"""Which base model an adapter was trained on: kept with it, and compared where it is opened.

PEFT's configuration has a place for what is known of the base model, `auto_mapping`, and keeps it
when an adapter is opened and saved again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from layerif.core.files.tensors import bytes_of

BASE_HASH = "base_model_sha256"


def base_record(model: Any) -> dict[str, str]:
    """What an adapter's configuration keeps of the model, of transformers and without adapters."""
    known = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    digest = base_hash(model)
    return known if digest is None else {**known, BASE_HASH: digest}


def base_hash(model: Any) -> str | None:
    """SHA-256 of a model's weights, rounded to bfloat16: the same in float32, float64 and bfloat16.

    None in float16, whose rounding and range are different.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if weight.dtype == torch.float16:
            return None
        plain = weight.detach()
        if plain.is_floating_point():
            plain = plain.to(torch.bfloat16)
        digest.update(f"{name} {tuple(plain.shape)}".encode())
        digest.update(bytes_of(plain))
    return digest.hexdigest()


def other_base(config: Any, model: Any) -> str | None:
    """What an adapter was trained on, in words, where its hash says that this is another model.

    Args:
        config: of PEFT, as read from the adapter's folder.
        model: of transformers, without adapters.
    """
    recorded = _recorded(config)
    if recorded is None or base_hash(model) in (None, recorded):
        return None
    return f"other weights than those of {model.config.name_or_path} ({_stated(config)} then)"


def other_name(config: Any, model: Any) -> str | None:
    """The name of the base model in an adapter's configuration, where this model has another.

    None where the configuration has the hash of the weights, which says more than a name.
    """
    stated, here = _stated(config), str(model.config.name_or_path or "")
    if _recorded(config) is not None or not stated or not here:
        return None
    same = Path(stated).name.lower() == Path(here).name.lower()
    return None if same else stated


def _recorded(config: Any) -> str | None:
    mapping = config.auto_mapping
    found = mapping.get(BASE_HASH) if isinstance(mapping, dict) else None
    return found if isinstance(found, str) else None


def _stated(config: Any) -> str:
    return str(config.base_model_name_or_path or "")
