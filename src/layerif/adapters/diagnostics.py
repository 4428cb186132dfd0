"""What routers do: the load of each expert, how decided they are, and experts that nobody uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from layerif.adapters.balance import BatchState
from layerif.adapters.layer import LoraMoeLinear
from layerif.adapters.routing import assigned
from layerif.artifacts import RouterLoad, RoutingUse
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe


@dataclass(eq=False)
class RouterUse:
    """How the experts of one projection were used.

    Attributes:
        module: path of the projection in the model.
        layer: its decoder layer.
        top_k: experts that a token is sent to.
        counts: (n,) int64 assignments of each expert; None before anything has run.
        entropy_sum: of the probabilities before the top k, in nats, summed over tokens.
        tokens: that are no padding, as a tensor, so that nothing waits for the device.
    """

    module: str
    layer: int
    top_k: int
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

    def add_trained(self, chances: torch.Tensor, chosen: torch.Tensor, state: BatchState) -> None:
        if torch.is_grad_enabled():
            self.add(chances, chosen, state)

    def forget(self) -> None:
        """Begin again."""
        self.counts = self.entropy_sum = self.tokens = None

    @property
    def load(self) -> list[float]:
        """The share of each expert in all assignments."""
        if self.counts is None:
            return []
        shares: list[float] = (self.counts.double() / self.counts.sum().clamp(min=1)).tolist()
        return shares

    @property
    def entropy(self) -> float:
        """Mean entropy of a token's probabilities, in nats: 0 decided, ln n at random."""
        if self.entropy_sum is None or self.tokens is None:
            return 0.0
        return float(self.entropy_sum / self.tokens.clamp(min=1))

    @property
    def dead(self) -> list[int]:
        """Experts that no token was sent to."""
        return [] if self.counts is None else (self.counts == 0).nonzero()[:, 0].tolist()


@dataclass(eq=False)
class RoutingReport:
    """The use of all routers, projection by projection.

    Attributes:
        adapter_name: the adapter that they are of.
        routers: those of more than one expert.
    """

    adapter_name: str = "default"
    routers: list[RouterUse] = field(default_factory=list)

    def forget(self) -> None:
        """Begin again: what was observed up to now does not count."""
        for router in self.routers:
            router.forget()

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

    def use(self, model: Any) -> RoutingUse:
        """What was observed, as an artifact that is saved and drawn (`report.plot_routing`).

        Args:
            model: that was observed.

        Raises:
            InputError: nothing was observed.
        """
        used = [r for r in self.routers if r.tokens is not None and int(r.tokens) > 0]
        if not used:
            raise InputError(
                "no router was observed: run the model inside `with routing(model)`, with an "
                "adapter that has several experts in some layer"
            )
        keys = {id(p.module): p.key for p in find_decoder_layers(model).projections}
        modules = dict(model.named_modules())
        loads = [
            RouterLoad(
                module=keys[id(modules[router.module].get_base_layer())],
                layer=router.layer,
                top_k=router.top_k,
                tokens=int(router.tokens),
                counts=router.counts.tolist(),
                entropy=max(0.0, router.entropy),
            )
            for router in used
            if router.tokens is not None and router.counts is not None
        ]
        return RoutingUse(model=describe(model), adapter=self.adapter_name, routers=loads)


@contextmanager
def routing(
    model: Any, adapter_name: str = "default", *, training_only: bool = False
) -> Iterator[RoutingReport]:
    """Observe every router of an adapter while the model runs inside.

    Args:
        model: a PEFT model, or one that transformers has put the adapter in.
        training_only: leave out what runs without gradients. What checkpointing runs twice may be
            counted twice, which changes no share and no mean.
    """
    report = RoutingReport(adapter_name)
    layers = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, LoraMoeLinear) and module.experts.get(adapter_name, 1) > 1
    ]
    try:
        for path, module in layers:
            use = RouterUse(path, module.layer, module.top_k[adapter_name])
            report.routers.append(use)
            module.observers[adapter_name] = use.add_trained if training_only else use.add
        yield report
    finally:
        for _, module in layers:
            module.observers.pop(adapter_name, None)
