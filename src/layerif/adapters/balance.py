"""The load-balancing loss of a router, and how its gradient gets into the backward pass.

Of each sequence n sum_e f_e P_e: f the shares of the experts in its assignments (token and slot), P
their mean probability before the top k; both over tokens that are no padding. It is averaged over
sequences, so that it does not depend on how a batch is divided, and is least, 1, where all experts
get the same. Only P has a gradient.

The loss is not added to the model's: its gradient is injected where the layer's output has one.
Checkpointing runs a layer twice and keeps nothing of the first run, so a sum kept beside the model
would lose it; this way the second run brings it, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from layerif.adapters.routing import assigned


@dataclass(eq=False)
class BatchState:
    """What the routers of a model know of the batch that it runs.

    Attributes:
        mask: (B, T) true at tokens that are no padding; None where all are.
        scale: factor of the coefficient: with a loss that is divided by so many batches before its
            backward pass, 1 over their number, and times the factor of a scaled loss.
        hook: by which the model tells of its batches; None while no adapter is in it.
    """

    mask: torch.Tensor | None = None
    scale: float = 1.0
    hook: RemovableHandle | None = None

    def attach(self, model: nn.Module) -> None:
        """Hear of every batch before `model` runs it; a second time changes nothing."""
        if self.hook is None:
            self.hook = model.register_forward_pre_hook(self._tell, with_kwargs=True)

    def _tell(self, _model: nn.Module, _args: Any, kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        self.mask = mask.bool() if mask is not None and mask.ndim == 2 else None

    def detach(self) -> None:
        """Leave the model as it was, without the hook."""
        if self.hook is not None:
            self.hook.remove()
        self.hook = self.mask = None

    def tokens_of(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, n) values of any form (..., n), and (B, T) 1 at tokens and 0 at padding."""
        mask = self.mask
        if mask is None:
            rows = values if values.ndim == 3 else values.reshape(1, -1, values.shape[-1])
            return rows, torch.ones(rows.shape[:-1], dtype=rows.dtype, device=rows.device)
        # Some architectures flatten rows and positions before their MLP.
        rows = values.reshape(mask.shape[0], -1, values.shape[-1])
        own = mask[:, mask.shape[1] - rows.shape[1] :]
        return rows, own.to(rows.device, rows.dtype)


def balance_loss(
    chances: torch.Tensor, chosen: torch.Tensor, state: BatchState, top_k: int
) -> torch.Tensor:
    """The mean over sequences of n sum_e f_e P_e.

    Args:
        chances: (..., n) probabilities of the experts, before the top k.
        chosen: (..., k) the experts that a token is sent to.
        state: which tokens count.
        top_k: experts of a token.
    """
    rows, mask = state.tokens_of(chances)
    sent, _ = state.tokens_of(assigned(chances.detach(), chosen))
    counts = mask.sum(1).clamp(min=1)[:, None]
    shares = (sent * mask[..., None]).sum(1) / (counts * top_k)
    means = (rows * mask[..., None]).sum(1) / counts
    return rows.shape[-1] * (shares * means).sum(-1).mean()


def injected(output: torch.Tensor, loss: torch.Tensor, factor: float) -> torch.Tensor:
    """The output as it is; when its gradient comes, the loss gets `factor` as its own."""
    result: torch.Tensor = _Injected.apply(output, loss, factor)
    return result


class _Injected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, loss: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor, ctx.like = factor, (loss.dtype, loss.device)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        dtype, device = ctx.like
        return gradients[0], torch.full((), ctx.factor, dtype=dtype, device=device), None
