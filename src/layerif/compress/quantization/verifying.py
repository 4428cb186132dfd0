"""Whether a quantised model's folder holds what its manifest says, by its files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from layerif.artifacts import Matrix, QuantizedManifest, QuantizedModule
from layerif.artifacts.naming import layer_of
from layerif.compress.quantization.grid import group_width
from layerif.compress.quantization.packing import unpacked
from layerif.compress.stored import StoredModel, stored_model
from layerif.plans.maps.stored import WHOLE, groups_of, stored_bytes


@dataclass(frozen=True, slots=True)
class QuantizedVerdict:
    """One projection, or embeddings: what the manifest says, and what lies in the file.

    Attributes:
        module: canonical name; of embeddings that of the parameter.
        bits: by the manifest.
        values: the most different values that a group was found to have; None where there is no
            such tensor, or nothing is rounded.
        bytes: of the tensors that are there at the bits of the manifest.
        numel: weights counted.
        fault: what does not hold, in words; None where all does.
    """

    module: str
    bits: int | None
    values: int | None
    bytes: int
    numel: int
    fault: str | None

    @property
    def layer(self) -> int | None:
        """Index of its decoder layer; None for embeddings."""
        return layer_of(self.module) if self.module.startswith("layers.") else None


@dataclass(frozen=True, slots=True)
class QuantizedVerification:
    """The verdicts on all projections and embeddings, and the bytes of the projections.

    Attributes:
        said: bytes by the manifest.
        bytes: counted.
    """

    modules: list[QuantizedVerdict]
    said: int
    bytes: int

    @property
    def ok(self) -> bool:
        return all(verdict.fault is None for verdict in self.modules)


def verify_quantized(
    folder: str | Path, *, trust_remote_code: bool = False
) -> QuantizedVerification:
    """Count the values of every group in a folder's safetensors, and the bytes that they take.

    A group of b bits has at most 2^b different values. Of packed integers the size of each tensor
    is compared, and codes and scales are unpacked.

    Args:
        folder: as `layerif quantize` writes it.
        trust_remote_code: run code that the folder brings, for the model's structure.

    Raises:
        InputError: the folder holds no manifest, no model, or weights that cannot be read.
        MissingDependencyError: its integers are packed, and compressed-tensors is not installed.
    """
    folder = Path(folder)
    manifest = QuantizedManifest.of_folder(folder)
    with stored_model(folder, trust_remote_code=trust_remote_code) as stored:
        weights = stored.weights(entry.module for entry in manifest.modules)
        verdicts = []
        for entry, weight in zip(manifest.modules, weights, strict=True):
            if manifest.packed is not None and entry.bits != WHOLE:
                verdicts.append(_packed(entry, stored, manifest))
            else:
                verdicts.append(_rounded(entry, entry.module, weight, manifest))
        for other in manifest.others:
            verdicts.append(_rounded(other, other.name, stored.tensor(other.name), manifest))
    known = {entry.module for entry in manifest.modules}
    for key, own in stored.projections.items():
        if key not in known:
            fault = "is not in the manifest"
            verdicts.append(QuantizedVerdict(key, None, None, 0, own.numel, fault))
    counted = sum(verdict.bytes for verdict in verdicts if verdict.layer is not None)
    return QuantizedVerification(verdicts, manifest.bytes, counted)


def _rounded(
    entry: QuantizedModule | Matrix,
    name: str,
    weight: torch.Tensor | None,
    manifest: QuantizedManifest,
) -> QuantizedVerdict:
    """What is found of one matrix of rounded weights."""
    if weight is None:
        return QuantizedVerdict(name, entry.bits, None, 0, 0, "has no weight in the folder")
    fault = _misshapen(entry, tuple(weight.shape))
    bits, values, size = entry.bits, None, weight.nbytes
    if bits is not None:
        size = stored_bytes(entry.out_features, entry.in_features, bits, manifest)
    if fault is None and not bool(weight.isfinite().all()):
        fault = "has weights that are not finite"
    if fault is None and bits not in (None, WHOLE):
        assert bits is not None
        values = most_values(weight, manifest.group_size)
        if values > 2**bits:
            fault = f"has {values} different values in a group, and {bits} bits hold {2**bits}"
    return QuantizedVerdict(name, bits, values, size, weight.numel(), fault)


def _packed(
    entry: QuantizedModule, stored: StoredModel, manifest: QuantizedManifest
) -> QuantizedVerdict:
    """What is found of one projection of packed integers."""
    bits, name = entry.bits, entry.module

    def faulty(fault: str, size: int = 0) -> QuantizedVerdict:
        return QuantizedVerdict(name, bits, None, size, 0, fault)

    projection = stored.projections.get(name)
    if projection is None:
        return faulty("has no weight in the folder")
    path = stored.path(projection).removesuffix(".weight")
    found = {}
    for part in ("weight_packed", "weight_scale", "weight_shape"):
        tensor = stored.tensor(f"{path}.{part}")
        if tensor is None:
            return faulty(f"has no {part} in the folder")
        found[part] = tensor
    size = found["weight_packed"].nbytes + found["weight_scale"].nbytes
    shape = tuple(found["weight_shape"].tolist())
    groups = groups_of(entry.in_features, manifest.group_size)
    fault = _misshapen(entry, shape)
    if fault is None and size != entry.bytes:
        fault = f"takes {size:,} bytes, and the manifest says {entry.bytes:,}"
    elif fault is None and tuple(found["weight_scale"].shape) != (entry.out_features, groups):
        fault = f"has scales of the shape {tuple(found['weight_scale'].shape)}"
    elif fault is None and not bool(found["weight_scale"].isfinite().all()):
        fault = "has scales that are not finite"
    if fault is not None:
        return faulty(fault, size)
    values = most_values(unpacked(found, bits), manifest.group_size)
    return QuantizedVerdict(name, bits, values, size, entry.numel, None)


def _misshapen(entry: QuantizedModule | Matrix, shape: tuple[int, ...]) -> str | None:
    said = (entry.out_features, entry.in_features)
    return None if shape == said else f"has the shape {shape}, and the manifest says {said}"


def most_values(weight: torch.Tensor, group_size: int) -> int:
    """The most different values that a group of a matrix (out, in) has."""
    width = group_width(weight.shape[1], group_size)
    most = 1
    # Part by part, the last group of a row being shorter.
    for columns in weight.split(width, dim=1):
        for part in columns.split(1 << 14):
            ordered = part.sort(dim=1).values
            different = (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1
            most = max(most, int(different.max()))
    return most
