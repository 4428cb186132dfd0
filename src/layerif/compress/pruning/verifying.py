"""Whether a pruned model's folder holds what its manifest says, by its files alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from layerif.artifacts import Manifest, PrunedModule
from layerif.artifacts.naming import layer_of
from layerif.compress.pruning.saving import zeros_in
from layerif.compress.pruning.targets import Pattern
from layerif.errors import InputError
from layerif.model.folders import weights_of
from layerif.model.layers import Projection, find_decoder_layers
from layerif.model.opening import open_model, open_skeleton


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

    Only the projections are read, one at a time, and no model is built; but for experts whose
    files hold other tensors than the model, which transformers joins as it opens them.

    Args:
        folder: as `layerif prune` writes it.
        trust_remote_code: run code that the folder brings, for the model's structure.

    Raises:
        InputError: the folder holds no manifest, no model, or weights that cannot be read.
    """
    folder = Path(folder)
    manifest = Manifest.of_folder(folder)
    skeleton = open_skeleton(folder, trust_remote_code=trust_remote_code)
    paths = {id(parameter): path for path, parameter in skeleton.named_parameters()}
    projections = {p.key: p for p in find_decoder_layers(skeleton).projections}
    joined: dict[str, Projection] = {}
    stored: dict[str, torch.Tensor | None] = {}
    verdicts = []
    with ExitStack() as open_:
        files = _files_of_tensors(folder, open_)
        for entry in manifest.modules:
            weight = None
            if projection := projections.pop(entry.module, None):
                path = paths[id(projection.parameter)]
                if path not in stored:  # experts of one parameter come one after another
                    stored = {path: _weight(files, path)}
                if (whole := stored[path]) is not None:
                    weight = projection.part(whole)
                elif projection.fused is not None:
                    joined = joined or _opened(folder, trust_remote_code=trust_remote_code)
                    weight = joined[entry.module].weight
            verdicts.append(_verdict(entry, weight))
    # Nothing is said of projections that the manifest does not know, but there should be none.
    for key, projection in projections.items():
        verdicts.append(Verdict(key, 0, None, projection.numel, None, "is not in the manifest"))
    counted = sum(v.zeros or 0 for v in verdicts) / max(sum(v.numel for v in verdicts), 1)
    return Verification(verdicts, manifest.sparsity, counted)


def _opened(folder: Path, *, trust_remote_code: bool) -> dict[str, Projection]:
    model, _ = open_model(folder, device="cpu", trust_remote_code=trust_remote_code)
    return {p.key: p for p in find_decoder_layers(model).projections}


def _verdict(entry: PrunedModule, weight: torch.Tensor | None) -> Verdict:
    zeros, numel, fault = None, entry.numel, None
    if weight is None:
        fault = "has no weight in the folder"
    else:
        numel = weight.numel()
        zeros = zeros_in(weight)
        if numel != entry.numel:
            fault = f"has {numel:,} weights, and the manifest says {entry.numel:,}"
        elif not bool(weight.isfinite().all()):
            fault = "has weights that are not finite"
        elif zeros != entry.zeros:
            fault = f"has {zeros:,} zeros, and the manifest says {entry.zeros:,}"
        elif entry.pattern is not None:
            fault = _breach(weight, Pattern.parse(entry.pattern))
    return Verdict(entry.module, entry.zeros, zeros, numel, entry.pattern, fault)


def _breach(weight: torch.Tensor, pattern: Pattern) -> str | None:
    """How many groups of a weight (out, in) hold more than a pattern keeps; None for none."""
    if weight.shape[1] % pattern.group:
        return f"has {weight.shape[1]} inputs, not a multiple of {pattern.group}"
    kept = weight.reshape(-1, pattern.group).count_nonzero(dim=1)
    over = int((kept > pattern.keep).sum())
    return f"breaks {pattern} in {over:,} of {len(kept):,} groups" if over else None


def _files_of_tensors(folder: Path, open_: ExitStack) -> dict[str, Any]:
    """By the name of each tensor in a model's safetensors the open file that holds it.

    Others that lie in the folder are not the model's.
    """
    found = [path for path in weights_of(folder).files if path.suffix == ".safetensors"]
    if not found:
        raise InputError(
            f"{folder} holds no safetensors; expected a model folder as `layerif prune` writes"
        )
    files: dict[str, Any] = {}
    for path in found:
        try:
            file = open_.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise InputError(f"{path} cannot be read as safetensors: {error}") from None
        files |= dict.fromkeys(file.keys(), file)
    return files


def _weight(files: Mapping[str, Any], parameter: str) -> torch.Tensor | None:
    """The tensor of a parameter by its name, or as some models write it; None where there is none.

    Without its prefix, or, where a language model is one of several parts, with the parts of its
    name in another order.
    """
    parts = sorted(parameter.split("."))
    reordered = (name for name in files if sorted(name.split(".")) == parts)
    names = chain((parameter, parameter.split(".", 1)[-1]), reordered)
    found: torch.Tensor | None = next((files[n].get_tensor(n) for n in names if n in files), None)
    return found
