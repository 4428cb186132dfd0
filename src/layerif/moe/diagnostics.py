"""What routers do: the load of each expert, how decided they are, and experts that nobody uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from layerif.moe.balance import BatchState
from layerif.moe.layer import LoraMoeLinear
from layerif.moe.routing import assigned


@dataclass(eq=False)
class RouterUse:
    """How the experts of one projection were used.

    Attributes:
        module: path of the projection in the model.
        layer: its decoder layer.
        counts: (n,) int64 assignments of each expert; None before anything has run.
        entropy_sum: of the probabilities before the top k, in nats, summed over tokens.
        tokens: that are no padding, as a tensor, so that nothing waits for the device.
    """

    module: str
    layer: int
    counts: torch.Tensor | None = None
    entropy_sum: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    def add(self, chances: torch.Tensor, chosen: torch.Tensor, state: BatchState) -> None:
        rows, mask = state.tokens_of(chances.detach())
        sent, _ = state.tokens_of(assigned(chances.detach(), chosen))
        counts = (sent * mask[..., None]).sum((0, 1), dtype=torch.float64).long()
        entropy = -torch.special.xlogy(rows, rows).sum(-1)
        found = (counts, (entropy * mask).sum(dtype=torch.float64), mask.sum().long())
        if self.counts is None or self.entropy_sum is None or self.tokens is None:
            self.counts, self.entropy_sum, self.tokens = found
        else:
            self.counts += found[0]
            self.entropy_sum += found[1]
            self.tokens += found[2]

    @property
    def load(self) -> list[float]:
        """The share of each expert in all assignments."""
        if self.counts is None:
            return []
        shares: list[float] = (self.counts.double() / self.counts.sum()).tolist()
        return shares

    @property
    def entropy(self) -> float:
        """Mean entropy of a token's probabilities, in nats: 0 decided, ln n at random."""
        if self.entropy_sum is None or self.tokens is None:
            return 0.0
        return float(self.entropy_sum / self.tokens)

    @property
    def dead(self) -> list[int]:
        """Experts that no token was sent to."""
        return [] if self.counts is None else (self.counts == 0).nonzero()[:, 0].tolist()


@dataclass(eq=False)
class RoutingReport:
    """The use of all routers, projection by projection.

    Attributes:
        routers: those of more than one expert.
    """

    routers: list[RouterUse] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Figures of the whole model: mean entropy, share of dead experts, the largest load."""
        used = [router for router in self.routers if router.counts is not None]
        if not used:
            return {}
        experts = sum(len(router.load) for router in used)
        return {
            "router_entropy": sum(router.entropy for router in used) / len(used),
            "dead_experts": sum(len(router.dead) for router in used) / experts,
            "largest_load": max(max(router.load) for router in used),
        }


@contextmanager
def routing(model: Any, adapter_name: str = "default") -> Iterator[RoutingReport]:
    """Observe every router of an adapter while the model runs inside.

    Args:
        model: a PEFT model, or one that transformers has put the adapter in.
    """
    report = RoutingReport()
    layers = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, LoraMoeLinear) and module.experts.get(adapter_name, 1) > 1
    ]
    try:
        for path, module in layers:
            use = RouterUse(path, module.layer)
            report.routers.append(use)
            module.observers[adapter_name] = use.add
        yield report
    finally:
        for _, module in layers:
            module.observers.pop(adapter_name, None)
