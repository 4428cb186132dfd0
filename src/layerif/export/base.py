"""What an export is: a plan, a model's projections, and what an engine's file says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layerif.core.aliases import ALIASES
from layerif.errors import InputError
from layerif.export.options import ExportOptions
from layerif.plans.maps.fused import fused_group
from layerif.plans.maps.stored import WHOLE

if TYPE_CHECKING:
    from layerif.artifacts import Plan

# Modules that are named in a note.
SAID = 3
GROUP_SIZES = (128, 64, 32, 16)


@dataclass(frozen=True)
class Target:
    """One projection, and what the plan gives it.

    Attributes:
        key: its canonical name, `layers.7.mlp.up_proj`.
        name: its path in the model, `model.layers.7.mlp.up_proj`.
        inside: its path in the decoder layer, `mlp.up_proj`.
        level: by the plan.
    """

    key: str
    name: str
    inside: str
    layer: int
    out_features: int
    in_features: int
    level: float

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features

    @property
    def bits(self) -> int:
        """The level as whole bits."""
        return round(self.level)


@dataclass(frozen=True)
class Request:
    """What is to be written.

    Attributes:
        plan: of a kind that the engine takes.
        model: a skeleton of the model, without weights.
        name: of the model, as it was opened.
        path: of the decoder layers in it, `model.layers`.
        targets: the projections in the order of the model's modules.
    """

    plan: Plan
    model: Any
    name: str
    path: str
    targets: Sequence[Target]
    options: Any

    @property
    def place(self) -> str:
        """What the engine is told to open: no alias or GGUF file, which layerif alone opens."""
        return "FOLDER" if self.name in ALIASES or self.name.endswith(".gguf") else self.name


@dataclass(frozen=True)
class Written:
    """A plan in an engine's words.

    Attributes:
        text: of the file.
        usage: how the engine is given it, with `{file}` for its path.
        notes: where the engine's rules made the file differ from the plan, and what to know of it.
        bytes: what the model's tensors will take, where that is known exactly.
        sizes: the same by the engine's names of tensors.
    """

    text: str
    usage: str
    notes: tuple[str, ...] = ()
    bytes: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """An engine.

    Attributes:
        title: what it is called.
        write: the file by a kind of plan.
        options: beside the plan.
    """

    title: str
    write: dict[str, Callable[[Request], Written]]
    options: type[ExportOptions] = ExportOptions


def raised(targets: Sequence[Target], fused: str) -> tuple[list[Target], list[str]]:
    """Targets whose fused groups have one level each, and what was done to that end.

    Args:
        fused: raise, refuse or keep.

    Raises:
        InputError: levels differ in a group and may not be raised.
    """
    groups: dict[str, list[Target]] = {}
    for target in targets:
        groups.setdefault(fused_group(target.key), []).append(target)
    mixed = {name: own for name, own in groups.items() if len({t.level for t in own}) > 1}
    if not mixed or fused == "keep":
        return list(targets), []
    first, own = next(iter(mixed.items()))
    levels = ", ".join(f"{t.inside.rpartition('.')[2]} {t.level:g}" for t in own)
    if fused == "refuse":
        raise InputError(
            f"vLLM and SGLang run {first} as one, and the plan has {levels} there ({len(mixed)} "
            "such groups): search with granularity='fused', or let fused='raise' give each group "
            "its highest level"
        )
    tops = {t.key: max(o.level for o in own) for own in mixed.values() for t in own}
    changed = [replace(t, level=tops.get(t.key, t.level)) for t in targets]
    before, after = mean_level(targets), mean_level(changed)
    return changed, [
        f"{len(mixed)} groups that vLLM and SGLang run as one ({first}: {levels}) have their "
        f"highest level throughout: {after:.3f} bits on average, where the plan has {before:.3f}; "
        "a search by fused groups spends the same bits better"
    ]


def mean_level(targets: Sequence[Target]) -> float:
    """By weight."""
    return sum(t.level * t.numel for t in targets) / sum(t.numel for t in targets)


def among(
    targets: Sequence[Target], known: Sequence[int], engine: str
) -> tuple[list[Target], list[str]]:
    """Targets whose bits an engine has; others are raised to the next that it has."""
    levels = sorted(known)
    changed, raised_ones = [], []
    for target in targets:
        level = next(level for level in levels if level >= target.bits)
        changed.append(replace(target, level=level))
        if level != target.bits:
            raised_ones.append((target, level))
    if not raised_ones:
        return changed, []
    first, level = raised_ones[0]
    return changed, [
        f"{engine} has no {first.bits} bits: {said(t.key for t, _ in raised_ones)} get {level} or "
        "the next that it has"
    ]


def group_sizes(targets: Sequence[Target], asked: int) -> tuple[dict[str, int], list[str]]:
    """The group size of each projection by key: the largest up to `asked` that divides its rows.

    -1 where none does: a whole row.
    """
    sizes = {
        t.key: next((s for s in GROUP_SIZES if s <= asked and t.in_features % s == 0), -1)
        for t in targets
    }
    other = [t for t in targets if sizes[t.key] != asked and t.bits != WHOLE]
    if not other:
        return sizes, []
    return sizes, [
        f"groups of {asked} do not divide rows of {other[0].in_features}: "
        f"{said(t.key for t in other)} get groups of {sizes[other[0].key]} (-1: a whole row)"
    ]


def said(names: Any) -> str:
    """The first of some names, and how many there are."""
    listed = list(names)
    more = len(listed) - SAID
    return ", ".join(listed[:SAID]) + (f" and {more} more" if more > 0 else "")
