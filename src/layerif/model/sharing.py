"""Refuse projections whose weight is used in another place too, saying where.

A weight that two layers share has one gradient and one set of zeros: influence through one layer
could not be separated from that through the other, nor a plan for each be carried out. A block of
weights that several layers share as a whole, as in Zamba, is no weight of any of them: it is left
as it is, and the layers have their other projections.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from layerif.errors import InputError


@dataclass(frozen=True, eq=False)
class _Place:
    """A parameter where one module holds it."""

    name: str
    parameter: nn.Parameter
    in_projection: bool

    @property
    def storage(self) -> int:
        """What it is in; the parameter itself where it has no address, as on the meta device."""
        weight = self.parameter
        return weight.untyped_storage().data_ptr() if weight.data_ptr() else id(weight)

    @property
    def first(self) -> int:
        """Its first byte in the storage."""
        return int(self.parameter.storage_offset()) * self.parameter.element_size()

    @property
    def end(self) -> int:
        """The byte after its last one."""
        shape, strides = self.parameter.shape, self.parameter.stride()
        reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        return self.first + (reach + 1) * self.parameter.element_size()


def shared_blocks(
    model: nn.Module, layers: Sequence[nn.Module], linear: Callable[[nn.Module], bool]
) -> list[torch.Tensor]:
    """The weights of blocks that several decoder layers have, each at the same place in it.

    A block is a part of a layer with several linear maps. All of its weights are shared, and used
    nowhere else; each layer has maps beside it. If a block breaks one of these rules, there is none
    in the model.

    Args:
        linear: whether a module is a linear map.
    """
    places: dict[tuple[Any, ...], list[tuple[int, str]]] = defaultdict(list)
    for index, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if name and sum(map(linear, module.modules())) > 1:
                places[name, *map(id, module.parameters())].append((index, name))
    blocks = {place for group in places.values() if len(group) > 1 for place in group}
    found = {
        id(weight): weight
        for index, name in blocks
        for weight in layers[index].get_submodule(name).parameters()
    }
    if not found:
        return []
    outside = [module for _, module in model.named_modules(memo=set(layers))]
    for index, layer in enumerate(layers):
        beside = [
            module
            for name, module in layer.named_modules()
            if not any((index, start) in blocks for start in accumulate(name.split("."), _joined))
        ]
        if not any(linear(module) for module in beside):
            return []
        outside += beside
    weights = {id(weight) for module in outside for weight in module.parameters(recurse=False)}
    return [] if weights & found.keys() else list(found.values())


def _joined(start: str, name: str) -> str:
    return f"{start}.{name}"


def refuse_shared_weights(
    model: nn.Module, layers: Sequence[nn.Module], path: str, weights: Sequence[torch.Tensor]
) -> None:
    """Check that no projection's weight is also a weight of anything else in the model.

    The same module under two names in one layer is one projection. Slices of one storage are
    weights of their own as long as they have no element in common.

    Args:
        layers: the decoder layers, found under `path`.
        weights: the parameters of their projections.

    Raises:
        InputError: one is; names both places.
    """
    places = list(_places(model, layers, path, {id(weight) for weight in weights}))
    by_storage = defaultdict(list)
    for place in places:
        by_storage[place.storage].append(place)
    for group in by_storage.values():
        below: list[_Place] = []
        for place in sorted(group, key=lambda place: place.first):
            below = [other for other in below if other.end > place.first]
            for other in below:
                if (place.in_projection or other.in_projection) and _meet(place, other):
                    first, second = sorted((place, other), key=places.index)
                    raise InputError(
                        f"{first.name} and {second.name} are one weight: influence through one "
                        "place could not be separated from that through the other, nor zeros be "
                        "given to one alone; every projection of the decoder layers needs a weight "
                        "of its own (untie them, `module.weight = nn.Parameter(weight.clone())`)"
                    )
            below.append(place)


def _places(
    model: nn.Module, layers: Sequence[nn.Module], path: str, weights: set[int]
) -> Iterator[_Place]:
    """Every parameter in every place, the decoder layers first."""
    inside = [
        (f"{path}.{index}.{name}", module)
        for index, layer in enumerate(layers)
        for name, module in layer.named_modules()
    ]
    # The layers count as seen, so that what else refers to a whole layer is no other place.
    outside = model.named_modules(memo=set(layers))
    for name, module in (*inside, *outside):
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.numel() > 0:
                named = ".".join(part for part in (name.strip("."), own) if part)
                yield _Place(named, parameter, id(parameter) in weights)


def _meet(one: _Place, other: _Place) -> bool:
    """Whether two parameters of one storage, whose bytes overlap, have an element in common."""
    a, b = one.parameter, other.parameter
    if a is b or (a.is_contiguous() and b.is_contiguous()) or a.dtype != b.dtype:
        return True
    # Slices by column are interleaved: mark the elements of one and look for those of the other.
    first = min(a.storage_offset(), b.storage_offset())
    last = max(one.end, other.end) // a.element_size()
    marked = torch.zeros(last - first, dtype=torch.bool)
    marked.as_strided(a.shape, a.stride(), a.storage_offset() - first).fill_(True)
    return bool(marked.as_strided(b.shape, b.stride(), b.storage_offset() - first).any())
