"""Fingerprints: what a result depends on, so that it is not taken for that of other work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import field_validator

from layerif.artifacts.base import JsonArtifact


class Fingerprint(JsonArtifact):
    """What a stage's result depends on, by part, so that a mismatch can say which part differs.

    Attributes:
        model: hash of all weights and of the configuration.
        data: hash of the texts.
        options: the stage's parameters, plain JSON values.
    """

    model: str
    data: str
    options: dict[str, Any]

    @field_validator("options", mode="before")
    @classmethod
    def _as_json(cls, options: dict[str, Any]) -> dict[str, Any]:
        # Through JSON once, so that tuples and the like equal what is read back; NaN, no part of
        # JSON, becomes a word here and is refused by whom it concerns.
        plain: dict[str, Any] = json.loads(json.dumps(options), parse_constant=str)
        return plain

    def digest(self) -> str:
        """One hash of it all, for a file's name."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, found: Fingerprint) -> str:
        """Where `found` is of other work than this one, in words; options by their dotted names."""
        parts = [
            f"the {part} {'was' if part == 'model' else 'were'} another then"
            for part in ("model", "data")
            if getattr(found, part) != getattr(self, part)
        ]
        return ", ".join(parts + differing(found.options, self.options))


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Which of plain values differ, in words, by their dotted names."""
    before, now = _flat(found), _flat(wanted)
    return [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def hash_texts(texts: Sequence[Any]) -> str:
    """SHA-256 of texts, or of any plain JSON values, and of their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def hash_model(model: Any) -> str:
    """SHA-256 of a model's class, configuration and weights: name, dtype, shape and bytes.

    Where PEFT has put adapters in it, also which of them are at work, at what scale, and how many
    experts a token is sent to where they are mixtures.
    """
    import torch

    digest = hashlib.sha256(type(model).__name__.encode())
    settings = model.config.to_dict()
    settings.pop("_name_or_path", None)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
        digest.update(flat.numpy().data)
    for name, module in model.named_modules():
        if hasattr(module, "get_base_layer"):
            scaling = dict(getattr(module, "scaling", {}))
            at_work = [list(module.active_adapters), module.disable_adapters]
            digest.update(json.dumps([name, at_work, module.merged_adapters, scaling]).encode())
            # How many experts there are, their matrices tell by their shapes.
            if top_k := dict(getattr(module, "top_k", {})):
                digest.update(json.dumps(top_k).encode())
    return digest.hexdigest()
