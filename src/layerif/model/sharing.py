"""Refuse projections whose weight is used in another place too, saying where.

A weight that two layers share has one gradient and one set of zeros: influence through one layer
could not be separated from that through the other, nor a plan for each be carried out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    def bytes(self) -> range:
        """The addresses that it spans; on the meta device, where nothing has one, its identity."""
        weight = self.parameter
        begin = weight.data_ptr()
        if begin == 0:
            return range(id(weight), id(weight) + 1)
        steps = zip(weight.shape, weight.stride(), strict=True)
        reach = sum((size - 1) * stride for size, stride in steps)
        return range(begin, begin + (reach + 1) * weight.element_size())


def refuse_shared_weights(
    model: nn.Module, layers: Sequence[nn.Module], path: str, projections: Sequence[nn.Module]
) -> None:
    """Check that no projection's weight is also a weight of anything else in the model.

    The same module under two names in one layer is one projection. Slices of one tensor are weights
    of their own as long as they have no element in common.

    Args:
        layers: the decoder layers, found under `path`.
        projections: the modules of their projections.

    Raises:
        InputError: one is; names both places.
    """
    places = list(_places(model, layers, path, {id(module) for module in projections}))
    shared: list[tuple[int, int]] = []
    below: list[int] = []  # of those before, the ones that reach as far as this one
    for row in sorted(range(len(places)), key=lambda row: places[row].bytes.start):
        place = places[row]
        below = [other for other in below if places[other].bytes.stop > place.bytes.start]
        for other in below:
            if (place.in_projection or places[other].in_projection) and _meet(place, places[other]):
                shared.append((min(row, other), max(row, other)))
        below.append(row)
    if shared:
        first, second = (places[row].name for row in min(shared))
        raise InputError(
            f"{first} and {second} are one weight: influence through one place could not be "
            "separated from that through the other, nor zeros be given to one alone; every "
            "projection of the decoder layers needs a weight of its own (untie them, "
            "`module.weight = nn.Parameter(weight.clone())`)"
        )


def _places(
    model: nn.Module, layers: Sequence[nn.Module], path: str, projections: set[int]
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
                yield _Place(named, parameter, id(module) in projections and own == "weight")


def _meet(one: _Place, other: _Place) -> bool:
    """Whether two parameters that span the same bytes have an element in common."""
    a, b = one.parameter, other.parameter
    if a is b or (a.is_contiguous() and b.is_contiguous()) or a.dtype != b.dtype:
        return True
    # Slices by column are interleaved: mark the elements of one and look for those of the other.
    first = min(one.bytes.start, other.bytes.start)
    last, size = max(one.bytes.stop, other.bytes.stop), a.element_size()
    marked = torch.zeros((last - first) // size, dtype=torch.bool)
    marked.as_strided(a.shape, a.stride(), (one.bytes.start - first) // size).fill_(True)
    return bool(marked.as_strided(b.shape, b.stride(), (other.bytes.start - first) // size).any())
