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
        module: the projection with its experts.
        top_k: experts that a token is sent to.
        training_only: leave out what runs without gradients.
        sums: (n + 2,) float64: assignments of each expert, entropy of the probabilities before the
            top k in nats, tokens that are no padding. A tensor, so that nothing waits for the
            device; None before anything has run.
    """

    module: LoraMoeLinear
    top_k: int
    training_only: bool = False
    sums: torch.Tensor | None = None

    def add(self, chances: torch.Tensor, chosen: torch.Tensor, state: BatchState) -> None:
        if self.training_only and not torch.is_grad_enabled():
            return
        rows, mask = state.tokens_of(chances.detach())
        sent, _ = state.tokens_of(assigned(chances.detach(), chosen))
        counts = (sent * mask[..., None]).sum((0, 1), dtype=torch.float64)
        entropy = -torch.special.xlogy(rows, rows).sum(-1)
        others = [(each * mask).sum(dtype=torch.float64) for each in (entropy, mask)]
        sums = torch.cat([counts, torch.stack(others)])
        self.sums = sums if self.sums is None else self.sums + sums

    @property
    def counts(self) -> list[int]:
        """Assignments of each expert; empty before anything has run."""
        return [] if self.sums is None else self.sums[:-2].long().tolist()

    @property
    def tokens(self) -> int:
        """Tokens seen that are no padding."""
        return 0 if self.sums is None else int(self.sums[-1])

    @property
    def load(self) -> list[float]:
        """The share of each expert in all assignments."""
        counts = self.counts
        return [count / max(1, sum(counts)) for count in counts]

    @property
    def entropy(self) -> float:
        """Mean entropy of a token's probabilities, in nats: 0 decided, ln n at random."""
        return 0.0 if self.sums is None else float(self.sums[-2]) / max(1, self.tokens)

    @property
    def dead(self) -> list[int]:
        """Experts that no token was sent to."""
        return [expert for expert, count in enumerate(self.counts) if count == 0]


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
            router.sums = None

    def summary(self) -> dict[str, float]:
        """Figures of the whole model: mean entropy, share of dead experts, the largest load."""
        used = [router for router in self.routers if router.sums is not None]
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
        used = [router for router in self.routers if router.tokens > 0]
        if not used:
            raise InputError(
                "no router was observed: run the model inside `with routing(model)`, with an "
                "adapter that has several experts in some layer"
            )
        keys = {p.module: p.key for p in find_decoder_layers(model).linear}
        loads = [
            RouterLoad(
                module=keys[router.module.get_base_layer()],
                layer=router.module.layer,
                top_k=router.top_k,
                tokens=router.tokens,
                counts=router.counts,
                entropy=max(0.0, router.entropy),
            )
            for router in used
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
    for module in model.modules():
        if isinstance(module, LoraMoeLinear) and module.experts.get(adapter_name, 1) > 1:
            router = RouterUse(module, module.top_k[adapter_name], training_only)
            report.routers.append(router)
    try:
        for router in report.routers:
            router.module.observers[adapter_name] = router.add
        yield report
    finally:
        for router in report.routers:
            router.module.observers.pop(adapter_name, None)
