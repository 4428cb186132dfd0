"""Plan: how much of a budget each decoder layer gets; a JSON file that people may edit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StrictFloat, StrictInt, Tag, model_validator

from layerif.artifacts.naming import OfModule, check_modules, layer_of
from layerif.core.fingerprint import differing
from layerif.core.record import JsonArtifact, ModelInfo
from layerif.errors import InputError
from layerif.plans.kinds.base import PlanKind
from layerif.plans.kinds.registry import KINDS

# A hand-edited plan is written with few digits; this much drift of its total is rounding.
TOTAL_TOLERANCE = 1e-4
# Differences that are listed.
SAID = 5


class ModuleLevel(OfModule):
    """The level of one projection, or sublayer, by its canonical name (`layers.7.mlp.up_proj`)."""

    level: float
    numel: int = Field(ge=1)


class ModuleSparsity(OfModule):
    """The sparsity of one projection, as plans of sparsity call its level."""

    sparsity: float = Field(ge=0, le=1)
    numel: int = Field(ge=1)

    @property
    def level(self) -> float:
        return self.sparsity


Level = ModuleLevel | ModuleSparsity
_ReadLevel = Annotated[
    Annotated[ModuleLevel, Tag("=level")] | Annotated[ModuleSparsity, Tag("=sparsity")],
    Discriminator(
        lambda own: "=level" if isinstance(own, ModuleLevel) or _says_level(own) else "=sparsity"
    ),
]


def _says_level(own: object) -> bool:
    return isinstance(own, dict) and "level" in own


def module_level(kind: str, module: str, level: float, numel: int) -> Level:
    """The level of one projection in a plan of a kind."""
    if kind == "sparsity":
        return ModuleSparsity(module=module, sparsity=level, numel=numel)
    return ModuleLevel(module=module, level=level, numel=numel)


class Plan(JsonArtifact):
    """A plan: one number per decoder layer, or one per projection.

    A hand-written plan needs `kind` and `allocation` alone. Where `total` is given, the numbers
    must add up to it, so that two plans of the same total can be compared.

    Attributes:
        kind: `sparsity` (fraction of zeros in the layer's projections), `experts` (LoRA experts),
            `ranks` (of a plain LoRA, at each of the layer's projections), `bits` (of a weight),
            `depth` (1 for a layer that is kept, else 0), or a registered one.
        allocation: one number per decoder layer; where projections differ within a layer, their
            mean weighted by size.
        modules: the level of every projection, for depth of every sublayer; None where those of a
            layer are alike.
        total: of the levels, as the kind counts them: for sparsity and bits the mean weighted by
            `layer_sizes`, for experts, ranks and depth the sum.
        layer_sizes: parameters of each layer, where no model gives them; without either all layers
            count as equally large.
        model: which model the plan was made for; None fits any model with as many layers.
        how: metric, map and their parameters.
    """

    format: Literal["layerif.allocation/1"] = "layerif.allocation/1"
    kind: Annotated[str, KINDS]
    allocation: list[StrictInt | StrictFloat] = Field(min_length=1)
    total: int | float | None = None
    layer_sizes: list[int] | None = None
    modules: list[_ReadLevel] | None = None
    model: ModelInfo | None = None
    how: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.modules is None:
            self.rules.check(self.allocation)
        if self.model and self.layer_sizes not in (None, self.model.layer_sizes):
            raise ValueError("layer_sizes differ from the model's; leave them out")
        if self.sizes is not None:
            if len(self.sizes) != len(self.allocation):
                raise ValueError(
                    f"allocation has {len(self.allocation)} layers, layer_sizes {len(self.sizes)}"
                )
            if min(self.sizes) < 0 or not any(self.sizes):
                raise ValueError("layer sizes must be at least 0, and one of them above it")
        if self.modules is not None:
            self._check_modules(self.modules)
        if self.total is not None and not self.rules.has_total(
            self.realised_total, self.total, TOTAL_TOLERANCE
        ):
            what = "weighted mean" if self.rules.weighted else "sum"
            raise ValueError(
                f"the {what} of the allocation is {self.realised_total:.8g}, but total says "
                f"{self.total:.8g}; change a layer, or total, or leave total out"
            )
        return self

    def _check_modules(self, modules: list[Level]) -> None:
        if not self.rules.by_projection:
            raise ValueError(f"a plan of {self.kind} goes by layers alone, and has no modules")
        if any(isinstance(m, ModuleSparsity) != (self.kind == "sparsity") for m in modules):
            raise ValueError(
                "modules of sparsity have a `sparsity` each, those of others a `level`"
            )
        self.rules.check([m.level for m in modules], [m.module for m in modules])
        check_modules(modules, len(self.allocation))
        by_layer = _by_layer(modules, len(self.allocation))
        for layer, (value, own) in enumerate(zip(self.allocation, by_layer, strict=True)):
            size = sum(module.numel for module in own)
            if (size != self.sizes[layer]) if self.sizes else not own:
                raise ValueError(
                    f"the modules of layer {layer} have {size} parameters in all; expected "
                    f"{self.sizes[layer] if self.sizes else 'at least one module'}"
                )
            if own and abs((mean := _mean(own)) - value) > TOTAL_TOLERANCE:
                raise ValueError(
                    f"layer {layer} has {self.rules.level.format(f'{value:.8g}')}, but its modules "
                    f"come to {mean:.8g}"
                )

    def level_of(self, module: str) -> float:
        """The level of one projection, by its canonical name.

        Raises:
            InputError: the plan goes by projections, and this is none of them.
        """
        if self.modules is None:
            return float(self.allocation[layer_of(module)])
        if module not in self._levels:
            raise InputError(
                f"the plan has no {self.rules.label} for {module}; make a plan for this model"
            )
        return self._levels[module]

    @cached_property
    def _levels(self) -> dict[str, float]:
        return {own.module: own.level for own in self.modules or ()}

    @classmethod
    def of_modules(cls, modules: Sequence[Level], *, kind: str = "sparsity", **fields: Any) -> Self:
        """A plan by projections, with the layers' means by size worked out.

        Args:
            modules: all projections; without a model, of every decoder layer at least one.
            kind: of plan.
            fields: `total`, `model` and `how`.
        """
        rules = KINDS.find(kind)
        model = fields.get("model")
        count = model.layers if model else 1 + max(module.layer for module in modules)
        by_layer = _by_layer(modules, count)
        sizes = [sum(module.numel for module in own) for own in by_layer]
        empty = rules.high if rules.every_layer else rules.low
        return cls(
            kind=kind,
            allocation=[min(_mean(own), rules.high) if own else empty for own in by_layer],
            layer_sizes=None if model else sizes,
            modules=list(modules),
            **fields,
        )

    @property
    def sizes(self) -> list[int] | None:
        """Parameters of each layer, from the model or the plan itself."""
        return self.model.layer_sizes if self.model else self.layer_sizes

    @property
    def rules(self) -> PlanKind:
        """What holds for all plans of its kind."""
        return KINDS.find(self.kind)

    @property
    def realised_total(self) -> float:
        """The mean weighted by layer size, or the sum, as the kind counts it."""
        return self.rules.total(self.allocation, self.sizes)

    def differences(self, found: Plan) -> str:
        """Where `found` is another plan than this one, in words."""
        said = [
            {"kind": p.kind, "total": p.total, "model": p.model and p.model.name, **p.how}
            for p in (found, self)
        ]
        layers = [{f"layer {i}": v for i, v in enumerate(p.allocation)} for p in (found, self)]
        parts = [*differing(*said), *differing(*layers)] or ["its projections or sizes differ"]
        more = len(parts) - SAID
        return ", ".join(parts[:SAID]) + (f" and {more} more" if more > 0 else "")

    def check_fits(self, model: ModelInfo, kind: str) -> None:
        """Refuse to spend this plan on a model it was not made for.

        Raises:
            InputError: another kind of plan, another number of layers, or layers of other sizes.
        """
        if self.kind != kind:
            raise InputError(f"this plan allocates {self.kind}; a plan of {kind} is needed here")
        made_for = f" (made for {self.model.name})" if self.model else ""
        if len(self.allocation) != model.layers:
            raise InputError(
                f"the plan{made_for} has {len(self.allocation)} layers, but {model.name} has "
                f"{model.layers} decoder layers; make a plan for this model"
            )
        for layer, (here, there) in enumerate(
            zip(self.sizes or model.layer_sizes, model.layer_sizes, strict=True)
        ):
            if here != there:
                raise InputError(
                    f"in the plan{made_for} layer {layer} has {here:,} projection parameters, "
                    f"where {model.name} has {there:,}; make a plan for this model"
                )

    def kept_layers(self) -> list[int]:
        """The indices of the layers that a plan of depth keeps.

        Raises:
            InputError: it keeps a layer in part, or none at all.
        """
        for layer, level in enumerate(self.allocation):
            if level not in (0, 1):
                gone = (m.module for m in self.modules or () if m.layer == layer and not m.level)
                raise InputError(
                    f"the plan drops {', '.join(gone)} and keeps the rest of layer {layer}: "
                    "neither a model's configuration nor an engine's file can say that a layer "
                    "lacks a sublayer; search with unit='layer'"
                )
        if not any(self.allocation):
            raise InputError("the plan drops every layer; expected one that keeps at least one")
        return [layer for layer, level in enumerate(self.allocation) if level]

    def check_projections(self, numels: Mapping[str, int]) -> None:
        """Refuse to spend this plan on projections that it does not name by their sizes.

        Args:
            numels: weights of each, by its canonical name.

        Raises:
            InputError: the plan names others, or gives one another size.
        """
        for own in self.modules or ():
            if own.module not in numels:
                raise InputError(
                    f"the plan has {self.rules.level.format(own.level)} for {own.module}, which "
                    "the model does not have; make a plan for this model"
                )
            if own.numel != numels[own.module]:
                raise InputError(
                    f"in the plan {own.module} has {own.numel:,} weights, where the model has "
                    f"{numels[own.module]:,}; make a plan for this model"
                )


def _by_layer(modules: Sequence[Level], layers: int) -> list[list[Level]]:
    found = defaultdict(list)
    for module in modules:
        found[module.layer].append(module)
    return [found[layer] for layer in range(layers)]


def _mean(modules: Sequence[Level]) -> float:
    """Level of several projections together, weighted by size."""
    whole = sum(module.numel for module in modules)
    return math.fsum(module.level * module.numel for module in modules) / whole
