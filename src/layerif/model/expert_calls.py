"""The model's forward pass sent through the maps of its experts, and which tokens each is given.

Nothing is put into the model: a torch function mode sees every product with a slice of an experts'
parameter, and every choice of tokens. Outside of it the model is as it was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from layerif.errors import InputError
from layerif.model.experts import ExpertMap
from layerif.model.modes import replaced_forwards

# Where a configuration of transformers says how experts are called.
_CHOICE = "_experts_implementation"
_PRODUCTS = {
    torch.matmul,
    torch.bmm,
    torch.mm,
    torch.Tensor.matmul,
    torch.Tensor.bmm,
    torch.Tensor.mm,
    torch.Tensor.__matmul__,
}
_SELECTIONS = {torch.index_select, torch.Tensor.index_select}
_REPEATS = {torch.repeat_interleave, torch.Tensor.repeat_interleave}
_CONVERSIONS = {
    torch.Tensor.float,
    torch.Tensor.double,
    torch.Tensor.half,
    torch.Tensor.bfloat16,
    torch.Tensor.to,
    torch.Tensor.type,
}


@contextmanager
def expert_calls(projections: Sequence[Any]) -> Iterator[ExpertCalls]:
    """Forward passes inside go through the maps of experts; where there are none, as always.

    Experts are called one by one inside, whatever implementation the model is set to.

    Args:
        projections: those that are observed.

    Raises:
        InputError: an adapter of PEFT changes the weights of experts.
    """
    maps = [p.module for p in projections if isinstance(p.module, ExpertMap)]
    if any(p.adapted for p in projections):
        raise InputError(
            "adapters change the weights of experts in this model, whose parts cannot be observed "
            "one by one; merge the adapter into the model first (`merge_and_unload()`)"
        )
    calls = ExpertCalls(maps)
    if not maps and not any(_in_a_list(p.name) for p in projections):
        yield calls
        return
    stated = {id(c): c for m in maps if (c := getattr(m.owner, "config", None)) is not None}
    chosen = {key: c._experts_implementation for key, c in stated.items() if hasattr(c, _CHOICE)}
    try:
        for key in chosen:
            setattr(stated[key], _CHOICE, "eager")
        owners = list({id(m.owner): m.owner for m in maps}.values())
        with replaced_forwards(owners, calls.again), calls:
            yield calls
    finally:
        for key, choice in chosen.items():
            setattr(stated[key], _CHOICE, choice)


@dataclass
class _Rows:
    """Rows that were chosen of a matrix of tokens.

    Attributes:
        index: (n,) which rows.
        of: how many rows the matrix has.
        values: (n, width) the rows; held, so that nothing else takes their place in memory.
    """

    index: torch.Tensor
    of: int
    values: torch.Tensor

    def within(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """(m,) which rows a view of the values holds; None where it is no view of them."""
        offset = inputs.data_ptr() - self.values.data_ptr()
        size = self.values.shape[-1] * self.values.element_size()
        if not len(self.index) or not 0 <= offset < len(self.index) * size or offset % size:
            return None
        return self.index[offset // size :][: inputs[..., 0].numel()]


class ExpertCalls(TorchFunctionMode):
    """Sends products with an expert's weight through its map, and knows which tokens it is given.

    A weight is known by the place in memory that it is a view of, a choice of tokens by the place
    that it was written to. What an expert computes from its tokens has their order.
    """

    def __init__(self, maps: Sequence[ExpertMap]) -> None:
        super().__init__()
        experts: dict[int, list[ExpertMap]] = defaultdict(list)
        for one in maps:
            experts[one.parameter.data_ptr()].append(one)
        # Of every parameter its experts in order, by its first byte.
        self._experts = dict(sorted(experts.items()))
        self._begins = list(self._experts)
        self._sizes = {at: ones[0].weight.nbytes for at, ones in self._experts.items()}
        self._converted: tuple[torch.Tensor, ExpertMap] | None = None
        # Two: code may write to one while it reads from another.
        self._chosen: list[_Rows] = []
        # By expert, what it was given last; and the projections that were given a choice itself.
        self._given: dict[str, torch.Tensor] = {}
        self._handed: set[str] = set()

    def again(self, _place: int, forward: Any) -> Any:
        """The forward of experts that are run outside of this: again, in a backward pass."""

        @wraps(forward)  # whose parameters `every_expert` goes by
        def run(*args: Any, **kwargs: Any) -> Any:
            if any(mode is self for mode in _get_current_function_mode_stack()):
                return forward(*args, **kwargs)
            with self:
                return forward(*args, **kwargs)

        return run

    def forget(self) -> None:
        """Another batch begins: no choice of tokens that was made before is meant there."""
        self._chosen, self._given, self._handed = [], {}, set()

    def samples(
        self, projection: Any, inputs: torch.Tensor, batch: int, tokens: int
    ) -> torch.Tensor | None:
        """(n,) the sample of each row of what a projection is given; None for all, in order.

        Args:
            projection: that is given it.
            inputs: (n, in) or (batch, positions, in).
            batch: samples of the batch.
            tokens: positions of all its samples.
        """
        expert = _expert_of(projection)
        for chosen in reversed(self._chosen):
            rows = chosen.within(inputs)
            # Rows of anything but all tokens, in an order of its own, tell nothing of samples.
            if rows is not None and chosen.of == tokens:
                self._given[expert] = rows * batch // tokens
                self._handed.add(projection.key)
                # The last that is let go.
                self._chosen = [*(c for c in self._chosen if c is not chosen), chosen]
                return self._given[expert]
        if projection.key in self._handed:
            return None  # what it was given before is not what it is given now
        found = self._given.get(expert)
        return found if found is not None and len(found) == inputs[..., 0].numel() else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear:
            return self._linear(*args, **kwargs)
        if func in _PRODUCTS and isinstance(args[1], torch.Tensor):
            return self._product(func, *args, **kwargs)
        result = func(*args, **kwargs)
        if func is torch.Tensor.__getitem__:
            self._note(args[0], args[1], result)
        elif func in _SELECTIONS:
            source, dim, index = _selection(*args, **kwargs)
            if not dim:
                self._note(source, index, result)
        elif func in _REPEATS:
            source, repeats, dim = _repetition(*args, **kwargs)
            if dim == 0 and source.ndim == 2 and isinstance(repeats, int) and len(source):
                rows = torch.arange(len(source), device=source.device)
                self._keep(source, rows.repeat_interleave(repeats), result)
        elif func in _CONVERSIONS:
            self._follow(args[0], result)
        return result

    def _linear(self, inputs: Any, weight: Any, bias: Any = None) -> Any:
        found = self._map_of(weight)
        if found is None:
            return nn.functional.linear(inputs, weight, bias)
        found.check(weight.T)
        output: torch.Tensor = found(inputs)
        return output if bias is None else output + bias

    def _product(self, func: Any, inputs: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> Any:
        if weight.ndim == 3 and weight.data_ptr() in self._experts:
            experts = self._experts[weight.data_ptr()]
            experts[0].check(weight[0])
            return torch.stack([one(own) for one, own in zip(experts, inputs, strict=True)])
        found = self._map_of(weight)
        if found is None:
            return func(inputs, weight, **kwargs)
        found.check(weight)
        return found(inputs)

    def _map_of(self, weight: Any) -> ExpertMap | None:
        """The map whose weight this is: a view of the parameter, or converted from one.

        Raises:
            InputError: it is a part of an expert's weight.
        """
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.numel():
            return None
        place = weight.data_ptr()
        if self._converted is not None and place == self._converted[0].data_ptr():
            return self._converted[1]
        before = bisect_right(self._begins, place) - 1
        if before < 0:
            return None
        experts = self._experts[self._begins[before]]
        size = self._sizes[self._begins[before]]
        expert, inside = divmod(place - self._begins[before], size)
        if expert >= len(experts):
            return None
        if inside or weight.nbytes != size:
            raise InputError(
                f"the experts of {type(experts[expert].owner).__name__} use parts of a weight of "
                f"shape {tuple(experts[expert].parameter.shape)}; such experts are not supported"
            )
        return experts[expert]

    def _note(self, source: torch.Tensor, index: Any, result: torch.Tensor) -> None:
        """Keep which rows were chosen, where that is what was asked for."""
        parts = [part for part in _tuple(index) if part is not None]
        if source.ndim != 2 or len(parts) != 1 or not source.is_floating_point():
            return
        (rows,) = parts
        if not isinstance(rows, torch.Tensor) or rows.ndim != 1:
            return
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        if rows.dtype == torch.int64:
            self._keep(source, rows, result)

    def _keep(self, source: torch.Tensor, rows: torch.Tensor, result: torch.Tensor) -> None:
        """Remember a choice; one of rows that were chosen themselves is one of their source."""
        kept, of = self._chosen[-1:], len(source)
        for before in reversed(self._chosen):
            all_of = before.within(source)
            if all_of is not None and len(all_of) == of:
                kept, rows, of = [before], all_of[rows], before.of
                break
        self._chosen = [*kept, _Rows(rows, of, result)]

    def _follow(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """What is converted to another precision stays what it was."""
        for chosen in self._chosen:
            if chosen.values is source:
                chosen.values = result
        found = self._map_of(source)
        if found is not None and result is not source:
            self._converted = (result, found)


def _in_a_list(name: str) -> bool:
    """Whether a projection lies in a list of modules, as experts of their own modules do."""
    return any(part.isdigit() for part in name.split("."))


def _expert_of(projection: Any) -> str:
    """The expert that a projection belongs to: `experts.3` of `experts.up_proj.3`, too."""
    path, _, last = projection.key.rpartition(".")
    return path if projection.fused is None else f"{path.rpartition('.')[0]}.{last}"


def _selection(input: Any, dim: int, index: Any) -> tuple[Any, int, Any]:
    """The arguments of `index_select`, by whatever names they were given."""
    return input, dim, index


def _repetition(input: Any, repeats: Any, dim: int | None = None, **_: Any) -> tuple[Any, Any, Any]:
    """The arguments of `repeat_interleave`, by whatever names they were given."""
    return input, repeats, dim


def _tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)
