"""What can be taken out of a model, one by one: decoder layers, or the sublayers in them.

A sublayer is a direct child of a layer that holds projections: its attention, its MLP, its
state-space mixer. Taking one out means that it adds nothing to the residual stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from layerif.core.choices import DepthUnit
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers

# What configurations call layers that use the keys and values of others.
_SHARED = re.compile(r"kv_shared|shared_kv|kv_sharing|cla_share")


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer, or one sublayer of it.

    Attributes:
        layer: index of the decoder layer.
        name: of the sublayer in its layer; empty for the layer itself.
        module: what is passed over.
        numel: parameters of its projections.
    """

    layer: int
    name: str
    module: nn.Module
    numel: int

    @property
    def key(self) -> str:
        """As plans and records call it: `layers.7`, `layers.7.mlp`."""
        return f"layers.{self.layer}.{self.name}".removesuffix(".")


def find_units(layers: DecoderLayers, unit: DepthUnit) -> list[Unit]:
    """All layers, or all sublayers, from the bottom up.

    Raises:
        InputError: a layer has projections that belong to no sublayer; names one.
    """
    if unit == "layer":
        sizes = layers.sizes.tolist()
        return [Unit(i, "", module, sizes[i]) for i, module in enumerate(layers.modules)]
    found = []
    for index, layer in enumerate(layers.modules):
        sizes = {}
        for projection in layers.of(index):
            name, _, rest = projection.name.partition(".")
            if not rest:
                raise InputError(
                    f"{projection.key} belongs to no sublayer, so attention and MLP of this model "
                    "cannot be told apart; choose whole layers, unit='layer'"
                )
            sizes[name] = sizes.get(name, 0) + projection.numel
        found += [Unit(index, n, layer.get_submodule(n), size) for n, size in sizes.items()]
    return found


def refuse_dependent_layers(model: Any, layers: DecoderLayers) -> None:
    """Refuse layers that others cannot do without.

    Raises:
        InputError: layers share keys and values, or weights; says which.
    """
    config = model.config.get_text_config(decoder=True)
    for name, value in config.to_dict().items():
        if _SHARED.search(name) and value not in (None, False, 0):
            raise InputError(
                f"{type(model).__name__} has {name}={value}: its upper layers use the keys and "
                "values of lower ones, so none of its layers can be dropped by itself; layers that "
                "depend on no other layer are expected"
            )
    owners: dict[int, str] = {}
    for index, layer in enumerate(layers.modules):
        own = {id(parameter): name for name, parameter in layer.named_parameters()}
        for parameter, name in own.items():
            if parameter in owners:
                raise InputError(
                    f"layers.{index}.{name} and {owners[parameter]} of {type(model).__name__} are "
                    "one weight that layers share, so none of them can be dropped by itself"
                )
        owners |= {parameter: f"layers.{index}.{name}" for parameter, name in own.items()}


def check_count(units: Sequence[Unit], drop: float) -> int:
    """How many units are dropped, all but one at most.

    Raises:
        InputError: it is no such number.
    """
    if drop != int(drop) or not 1 <= drop < len(units):
        what = "sublayers" if units[0].name else "layers"
        raise InputError(
            f"{drop:g} of {len(units)} {what} cannot be dropped; expected a whole number from 1 to "
            f"{len(units) - 1}"
        )
    return int(drop)
