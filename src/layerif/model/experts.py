"""Experts whose weights are one parameter, each seen as the linear maps it is made of.

Mixtures of transformers keep the weights of all experts of a layer in one parameter, mostly
(experts, out, in), and apply a slice of it to the tokens that are routed there. Each slice is an
`ExpertMap`: a module with a weight and a forward function, so hooks on it see an expert's inputs
and outputs as they see those of any `nn.Linear`, wherever `expert_calls` sends products through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import nn

from layerif.errors import InputError
from layerif.model.modes import replaced_forwards

# Names of maps that read the residual stream, and of those that write to it.
_READS = ("gate", "up", "w1", "w3", "v1", "input")
_WRITES = ("down", "w2", "output")


class ExpertMap(nn.Module):
    """The linear map of one expert: a slice of a parameter that holds those of all.

    Attributes:
        owner: the module that holds the parameter.
        parameter: the parameter; (experts, out, in), (experts, in, out), or either with the rows of
            all experts in one dimension.
        expert: which slice.
        transposed: whether a slice is (in, out).
    """

    owner: nn.Module
    parameter: torch.Tensor

    def __init__(
        self,
        owner: nn.Module,
        parameter: nn.Parameter,
        experts: int,
        expert: int,
        *,
        transposed: bool,
    ) -> None:
        super().__init__()
        # Past `nn.Module`, which would take them for its own.
        self.__dict__.update(owner=owner, parameter=parameter)
        self.experts, self.expert, self.transposed = experts, expert, transposed

    def slice(self, whole: torch.Tensor) -> torch.Tensor:
        """(out, in) this expert's part of a tensor in the parameter's shape; a view."""
        part = whole.view(self.experts, -1, whole.shape[-1])[self.expert]
        return part.T if self.transposed else part

    @property
    def weight(self) -> torch.Tensor:
        return self.slice(self.parameter)

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        return int(self.weight.shape[0])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight.to(inputs.dtype))

    def check(self, right: torch.Tensor) -> None:
        """See to it that an (in, out) factor of the model's product is stored as `transposed` says.

        Raises:
            InputError: it is not.
        """
        if min(right.shape) > 1 and (right.stride(-1) == 1) != self.transposed:
            raise InputError(
                f"the experts of {type(self.owner).__name__} use a weight of shape "
                f"{tuple(self.parameter.shape)} the other way round than its shape and name say; "
                "such experts are not supported"
            )


def expert_maps(
    modules: Mapping[str, nn.Module], hidden: int | None
) -> Iterator[tuple[str, list[ExpertMap]]]:
    """The maps of every parameter of a decoder layer that holds those of many experts.

    Args:
        modules: of the layer, by their paths in it without adapters.
        hidden: width of the model's hidden states.

    Yields:
        The parameter's path inside the layer, without `weight`, and its maps, expert by expert.
    """
    for path, module in modules.items():
        if "expert" not in type(module).__name__.lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            experts = _experts(module, parameter)
            if experts is None:
                continue
            whole = parameter.view(experts, -1, parameter.shape[-1])
            transposed = _transposed(module, f"{path}.{name}", whole.shape[1:], hidden)
            maps = [
                ExpertMap(module, parameter, experts, expert, transposed=transposed)
                for expert in range(experts)
            ]
            yield f"{path}.{name}".strip(".").removesuffix(".weight"), maps


def _experts(module: nn.Module, parameter: nn.Parameter) -> int | None:
    """How many experts' matrices a parameter holds; None where it holds none."""
    if parameter.ndim == 3:
        return parameter.shape[0]
    if parameter.ndim != 2:
        return None
    stated = [
        value for name, value in vars(module).items() if name.endswith("num_experts") and value
    ]
    # DBRX: the rows of all experts in one dimension. A single row each would be a bias.
    stacked = stated and parameter.shape[0] % stated[0] == 0 and parameter.shape[0] > stated[0]
    return int(stated[0]) if stacked else None


def _transposed(module: nn.Module, path: str, shape: torch.Size, hidden: int | None) -> bool:
    """Whether a slice is (in, out): as the module states, or else by where `hidden` stands."""
    stated = getattr(module, "is_transposed", None)
    if stated is not None:
        return bool(stated)
    lower = ".".join(path.split(".")[-2:]).lower()
    if hidden not in shape or shape[0] == shape[1]:
        return False
    reads = any(word in lower for word in _READS) and not any(word in lower for word in _WRITES)
    return (shape[1] != hidden) if reads else (shape[0] != hidden)


@contextmanager
def every_expert(layer: nn.Module, projections: Sequence[Any]) -> Iterator[None]:
    """Inside, each expert of a layer is also run on the tokens that are not routed to it.

    What the layer computes stays the same; hooks on its experts see every token once.

    Args:
        projections: of the layer.

    Raises:
        InputError: experts are called in a way that leaves no choice of them.
    """
    owners = {id(p.module.owner): p.module for p in projections if isinstance(p.module, ExpertMap)}
    routed: dict[nn.Module, int] = {}
    for one in owners.values():
        holders = [m for m in layer.modules() if _takes_routes(m) and one.owner in m.modules()]
        if not holders:
            raise InputError(
                f"all_experts: the experts of {type(one.owner).__name__} cannot be sent every "
                "token; leave it out"
            )
        routed |= dict.fromkeys(holders, one.experts)
    modules = list(routed)

    def replacement(place: int, forward: Any) -> Any:
        count = routed[modules[place]]

        def run(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> Any:
            others = torch.ones(len(index), count, dtype=torch.bool, device=index.device)
            others.scatter_(1, index, value=False)
            rest = others.nonzero()[:, 1].view(len(index), -1)
            forward(hidden, rest, weights.new_zeros(rest.shape))
            return forward(hidden, index, weights)

        return run

    with replaced_forwards(modules, replacement):
        yield


def _takes_routes(module: nn.Module) -> bool:
    """Whether a module's forward takes tokens, the experts of each, and their weights."""
    names = list(signature(module.forward).parameters)
    return len(names) == 3 and "ind" in names[1] and "weights" in names[2]
