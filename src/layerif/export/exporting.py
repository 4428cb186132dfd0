"""Write a plan in the words of an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from layerif.artifacts import Plan
from layerif.core.files import check_place, read_text, write_text
from layerif.errors import InputError
from layerif.export.base import Request, Target, Written
from layerif.export.registry import EXPORTS
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe, open_skeleton


def export_plan(
    engine: str,
    plan: Plan,
    model: Any = None,
    *,
    options: Any = None,
    trust_remote_code: bool = False,
) -> Written:
    """A plan in an engine's words.

    Args:
        engine: one of `EXPORTS`.
        plan: of a kind that the engine takes.
        model: the model, a skeleton of it, or its name; None for the one that the plan names.
        options: of the engine's own class.

    Raises:
        InputError: the engine takes no such plan, there is no model, the plan is another model's,
            or the engine cannot say what the plan says, as of experts that share a parameter.
    """
    entry = EXPORTS.find(engine)
    if plan.kind not in entry.write:
        raise InputError(
            f"{entry.title} takes plans of {' and '.join(entry.write)}; this plan allocates "
            f"{plan.kind}"
        )
    if model is None:
        if plan.model is None:
            raise InputError("the plan names no model; name the one that it is for (model=...)")
        model = plan.model.name
    if isinstance(model, str | Path):
        name = str(model)
        model = open_skeleton(name, trust_remote_code=trust_remote_code)
    else:
        name = str(model.config.name_or_path or type(model).__name__)
    plan.check_fits(describe(model), plan.kind)
    _refuse_joined(plan, model, entry.title)
    request = Request(
        plan=plan,
        model=model,
        name=name,
        path=find_decoder_layers(model).path,
        targets=targets_of(plan, model),
        options=options if options is not None else entry.options(),
    )
    return entry.write[plan.kind](request)


def targets_of(plan: Plan, model: Any) -> list[Target]:
    """The projections of a model's decoder layers with their levels, in the order of its modules.

    A plan of depth gives every projection its layer's.
    """
    layers = find_decoder_layers(model)
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    found = []
    for p in layers.projections:
        name = f"{layers.path}.{p.layer}.{p.name}"
        by_layer = plan.kind == "depth"
        level = float(plan.allocation[p.layer]) if by_layer else plan.level_of(p.key)
        sides = (p.out_features, p.in_features)
        found.append(Target(p.key, name, p.name, p.layer, *sides, level))
    return sorted(found, key=lambda target: order.get(target.name, len(order)))


def _refuse_joined(plan: Plan, model: Any, title: str) -> None:
    """Refuse levels of experts that share a parameter: engines name modules, and there is one."""
    joined = [p.key for p in find_decoder_layers(model).projections if p.fused is not None]
    if joined and plan.kind in ("bits", "sparsity"):
        raise InputError(
            f"{joined[0]} shares a parameter with other experts (as do {len(joined) - 1} more), "
            f"and {title} names whole modules: it cannot be told the level of each expert"
        )


def export_into(out: Path, written: Written) -> Written:
    """Write an export to a file, and name it in its usage.

    A file that is there already is left as it is, since no engine's file says who wrote it; one of
    the same text will do.

    Raises:
        InputError: another file is there.
    """
    check_new(out)
    if out.exists():
        if read_text(out, "an export") != written.text:
            raise InputError(f"{out} is there already and says something else; remove it first")
    else:
        write_text(out, written.text)
    return replace(written, usage=written.usage.replace("{file}", str(out)))


def check_new(out: Path) -> None:
    """Refuse a place that no file can be written to, before the work.

    Raises:
        InputError: it is one.
    """
    check_place(out, folder=False)
