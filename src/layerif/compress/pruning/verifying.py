"""Whether a pruned model's folder holds what its manifest says, by its files alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

from layerif.artifacts import Manifest, PrunedModule
from layerif.artifacts.naming import layer_of
from layerif.compress.pruning.pattern import Pattern
from layerif.errors import InputError
from layerif.model.layers import Projection, find_decoder_layers
from layerif.model.opening import open_skeleton


@dataclass(frozen=True, slots=True)
class Verdict:
    """One projection: what the manifest says, and what lies in the file.

    Attributes:
        module: canonical name.
        said: zeros by the manifest.
        zeros: zeros counted; None where there is no such tensor.
        numel: weights counted.
        pattern: the N:M by the manifest.
        fault: what does not hold, in words; None where all does.
    """

    module: str
    said: int
    zeros: int | None
    numel: int
    pattern: str | None
    fault: str | None

    @property
    def layer(self) -> int:
        """Index of its decoder layer."""
        return layer_of(self.module)


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdicts on all projections, and on the overall sparsity."""

    modules: list[Verdict]
    said: float
    sparsity: float

    @property
    def ok(self) -> bool:
        return all(verdict.fault is None for verdict in self.modules)


def verify(folder: str | Path, *, trust_remote_code: bool = False) -> Verification:
    """Count the zeros of every projection in a folder's safetensors, and check N:M group by group.

    Only the projections are read, one at a time, and no model is built.

    Args:
        folder: as `layerif prune` writes it.
        trust_remote_code: run code that the folder brings, for the model's structure.

    Raises:
        InputError: the folder holds no manifest, no model, or weights that cannot be read.
    """
    folder = Path(folder)
    manifest = Manifest.of_folder(folder)
    projections = {p.key: p for p in _projections(folder, trust_remote_code=trust_remote_code)}
    verdicts = []
    with _Tensors(folder) as tensors:
        for entry in manifest.modules:
            projection = projections.pop(entry.module, None)
            weight = None if projection is None else tensors.weight(projection)
            verdicts.append(_verdict(entry, weight))
        # Projections that the manifest does not know are no part of what it promises, but there
        # should be none.
        for key, projection in projections.items():
            verdicts.append(Verdict(key, 0, None, projection.numel, None, "is not in the manifest"))
    counted = sum(v.zeros or 0 for v in verdicts) / max(sum(v.numel for v in verdicts), 1)
    return Verification(verdicts, manifest.sparsity, counted)


def _verdict(entry: PrunedModule, weight: torch.Tensor | None) -> Verdict:
    fault: str | None = None
    zeros: int | None = None
    if weight is None:
        fault = "has no weight in the folder"
    else:
        zeros = weight.numel() - int(weight.count_nonzero())
        if weight.numel() != entry.numel:
            fault = f"has {weight.numel():,} weights, and the manifest says {entry.numel:,}"
        elif not bool(weight.isfinite().all()):
            fault = "has weights that are not finite"
        elif zeros != entry.zeros:
            fault = f"has {zeros:,} zeros, and the manifest says {entry.zeros:,}"
        elif entry.pattern is not None:
            fault = _breach(weight, Pattern.parse(entry.pattern))
    return Verdict(
        entry.module,
        entry.zeros,
        zeros,
        entry.numel if weight is None else weight.numel(),
        entry.pattern,
        fault,
    )


def _breach(weight: torch.Tensor, pattern: Pattern) -> str | None:
    """How many groups of a weight (out, in) hold more than a pattern keeps; None for none."""
    if weight.shape[1] % pattern.group:
        return f"has {weight.shape[1]} inputs, no whole number of groups of {pattern.group}"
    kept = weight.reshape(-1, pattern.group).count_nonzero(dim=1)
    over = int((kept > pattern.keep).sum())
    return f"breaks {pattern} in {over:,} of {len(kept):,} groups" if over else None


def _projections(folder: Path, *, trust_remote_code: bool) -> list[_Located]:
    """All projections of the model, from its configuration."""
    skeleton = open_skeleton(folder, trust_remote_code=trust_remote_code)
    paths = {id(module): path for path, module in skeleton.named_modules()}
    return [
        _Located(p, f"{paths[id(p.module)]}.weight")
        for p in find_decoder_layers(skeleton).projections
    ]


class _Located:
    """A projection, and the name of its weight in the model."""

    def __init__(self, projection: Projection, parameter: str) -> None:
        self.key, self.numel = projection.key, projection.numel
        self.parameter = parameter
        # Conv1D stores (in, out).
        self.transposed = isinstance(projection.module, Conv1D)


class _Tensors:
    """The tensors of a folder's safetensors by name, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.safetensors"))
        if not self._files:
            raise InputError(
                f"{folder} holds no safetensors; expected a model folder as `layerif prune` writes"
            )
        self._open = ExitStack()
        self._where: dict[str, Any] = {}

    def __enter__(self) -> _Tensors:
        for path in self._files:
            try:
                file = self._open.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                self._open.close()
                raise InputError(f"{path} cannot be read as safetensors: {error}") from None
            self._where |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def weight(self, projection: _Located) -> torch.Tensor | None:
        """(out, in) the weight of a projection; None where there is none."""
        name = next(self._names(projection.parameter), None)
        if name is None:
            return None
        weight: torch.Tensor = self._where[name].get_tensor(name)
        return weight.T if projection.transposed else weight

    def _names(self, parameter: str) -> Iterator[str]:
        """The name itself, or as some models write it.

        Without its prefix, or, where a language model stands among others, with its parts in
        another order.
        """
        if parameter in self._where:
            yield parameter
        short = parameter.split(".", 1)[-1]
        if short in self._where:
            yield short
        parts = sorted(parameter.split("."))
        yield from (name for name in self._where if sorted(name.split(".")) == parts)
