"""Whether a pruned model's folder holds what its manifest says, by its files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from layerif.artifacts import Manifest, PrunedModule
from layerif.artifacts.naming import layer_of
from layerif.compress.pruning.saving import zeros_in
from layerif.compress.pruning.targets import Pattern
from layerif.compress.stored import stored_model


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
    with stored_model(folder, trust_remote_code=trust_remote_code) as stored:
        weights = stored.weights(entry.module for entry in manifest.modules)
        verdicts = [_verdict(*each) for each in zip(manifest.modules, weights, strict=True)]
    # Nothing is said of projections that the manifest does not know, but there should be none.
    known = {entry.module for entry in manifest.modules}
    for key, projection in stored.projections.items():
        if key not in known:
            verdicts.append(Verdict(key, 0, None, projection.numel, None, "is not in the manifest"))
    counted = sum(v.zeros or 0 for v in verdicts) / max(sum(v.numel for v in verdicts), 1)
    return Verification(verdicts, manifest.sparsity, counted)


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
