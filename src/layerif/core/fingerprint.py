"""Fingerprints: what a result depends on, so that it is not taken for another."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import field_validator

from layerif.core.files import cache_folder, write_text
from layerif.core.files.tensors import as_bytes
from layerif.core.record import JsonArtifact
from layerif.errors import InputError


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
        # JSON, becomes a word here, and is refused by what reads it.
        plain: dict[str, Any] = json.loads(json.dumps(options), parse_constant=str)
        return plain

    def digest(self) -> str:
        """One hash of it all, for a file's name."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, found: Fingerprint) -> str:
        """In what `found` differs from this one, in words; options by their dotted names."""
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


# The last hash of each model in this process, and the sums of its tensors that it is of.
_HASHED: WeakKeyDictionary[Any, tuple[list[Any], str]] = WeakKeyDictionary()
# Path, size and time of the files that a model was opened from.
_FILES: WeakKeyDictionary[Any, list[list[Any]]] = WeakKeyDictionary()


def hash_model(model: Any) -> str:
    """SHA-256 of a model's class, configuration and weights: name, dtype, shape and bytes.

    Where PEFT has put adapters in it, also which of them are active, at what scale, and how many
    experts a token is sent to where they are mixtures.

    A model that was hashed before is not hashed again while all of that and the sums of its weights
    are the same, which take a twentieth of the time: neither in this process, nor where a model of
    the same files (`opened_from`) was hashed in another, which the user's cache remembers.
    """
    settings = model.config.to_dict()
    settings.pop("_name_or_path", None)
    adapters = [
        text
        for name, module in model.named_modules()
        if hasattr(module, "get_base_layer")
        for text in _adapter_texts(name, module)
    ]
    tensors = [
        (f"{name} {tensor.dtype} {tuple(tensor.shape)}", as_bytes(tensor))
        for name, tensor in sorted(model.state_dict().items())
    ]
    head = type(model).__name__ + json.dumps(settings, sort_keys=True, default=str)
    parts = [head, *adapters, *((title, _sums(raw)) for title, raw in tensors)]
    known, digest = _HASHED.get(model, (None, ""))
    if parts == known:
        return digest
    files = _FILES.get(model)
    place = None
    if files is not None:
        place = cache_folder() / "hashes" / hash_texts([files, *parts])
        if (kept := _read_hash(place)) is not None:
            _HASHED[model] = parts, kept
            return kept
    sha = hashlib.sha256(head.encode())
    for title, raw in tensors:
        sha.update(title.encode())
        sha.update(raw.numpy().data)
    for text in adapters:
        sha.update(text.encode())
    _HASHED[model] = parts, sha.hexdigest()
    if place is not None:
        with suppress(InputError, OSError):  # a cache that cannot be written stops nothing
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, sha.hexdigest())
    return sha.hexdigest()


def opened_from(model: Any, files: Sequence[Path]) -> None:
    """Remember which files a model's weights were read from: path, size and time of each."""
    stats = [(path.resolve(), path.stat()) for path in files]
    _FILES[model] = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _read_hash(path: Path) -> str | None:
    """A hash that was kept; None where there is none, or it is damaged."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _adapter_texts(name: str, module: Any) -> list[str]:
    scaling = dict(getattr(module, "scaling", {}))
    active = [list(module.active_adapters), module.disable_adapters]
    texts = [json.dumps([name, active, module.merged_adapters, scaling])]
    # How many experts there are, their matrices tell by their shapes.
    if top_k := dict(getattr(module, "top_k", {})):
        texts.append(json.dumps(top_k))
    return texts


def _sums(raw: Any) -> tuple[int, ...]:
    """What changes with any weight, but for an exchange: sums of 64-bit words, and the odd rest."""
    import torch

    whole = len(raw) // 8 * 8
    words = raw[:whole].view(torch.int64) if raw.data_ptr() % 8 == 0 else raw[:whole]
    rest = raw[whole:].tolist()
    half = len(words) // 2
    return (int(words[:half].sum()), int(words[half:].sum()), *rest)
