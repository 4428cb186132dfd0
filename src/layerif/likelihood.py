"""The likelihood a model gives to the scored tokens of a batch: the one forward pass of layerif.

Scoring, perplexity and accuracy all start from the same negative log-likelihoods, so they agree on
what is predicted from what.

The logits of a whole batch are never there at once where they are large: 2,048 positions of a
vocabulary of 262,144 tokens take 2.1 GB a copy. They are computed in slices of positions, and each
slice's gradient at once, so that of all logits only the gradient of the hidden states stays.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from layerif.data.batching import Batch, accepted
from layerif.model.modes import replaced_forwards

# Logits of a slice of positions take at most so many bytes; what is made of them takes a few times
# as much. 682 positions of a vocabulary of 49,152 in float32.
SLICE_BYTES = 128 * 2**20
# And those of all rows of a batch, where somebody else's code makes them: five rows of 512
# positions of that vocabulary, or one of 262,144 tokens.
ROWS_BYTES = 512 * 2**20


def token_losses(model: Any, batch: Batch, *, through: Any = None) -> torch.Tensor:
    """(N,) float32 (float64 for a float64 model) negative log-likelihood of each scored token.

    In nats, in the order of `batch.targets`. Logits are computed at the N positions that predict a
    scored token and nowhere else.

    Args:
        through: what is called in the model's place: what it is wrapped in, for training in several
            processes.
    """
    inputs = accepted(model.forward, batch.inputs)
    run = partial(through or model, **inputs, use_cache=False)
    head = model.get_output_embeddings()
    sizes = slice_sizes(model, len(batch.targets))
    if head is not None and len(sizes) > 1:
        begun = _begun(model, head, run, batch.predicts)
        if begun is not None:
            hidden, decoder, output = begun
            again = partial(model, **inputs, use_cache=False)
            logits_of = partial(_logits, head, decoder, output, again)
            return _in_slices(logits_of, head, hidden, batch.targets, sizes)
    seen = _Seen(batch.predicts)
    with nullcontext() if head is None else head.register_forward_pre_hook(seen):
        logits = run().logits
    logits = logits[0] if seen.times else logits[batch.predicts.to(logits.device)]
    return _losses(logits, batch.targets)


def slice_sizes(model: Any, positions: int) -> list[int]:
    """How many scored positions each slice has; one slice where the logits of all are few."""
    count = max(1, min(-(-positions * _position_bytes(model) // SLICE_BYTES), positions))
    return [positions // count + (place < positions % count) for place in range(count)]


def logit_bytes(model: Any, positions: int) -> int:
    """Bytes of the logits of the largest slice that so many scored positions have."""
    return max(slice_sizes(model, positions)) * _position_bytes(model)


def rows_within(model: Any, rows: int, length: int) -> int:
    """How many of `rows` texts of `length` tokens have logits within `ROWS_BYTES`; one at least."""
    return max(1, min(rows, ROWS_BYTES // (length * _position_bytes(model))))


def _position_bytes(model: Any) -> int:
    """Bytes of the logits of one position: float32, or float64 for a float64 model."""
    exact = torch.promote_types(model.get_input_embeddings().weight.dtype, torch.float32)
    return int(model.config.get_text_config(decoder=True).vocab_size * exact.itemsize)


def row_sums(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B,) sums over the scored tokens of each row of `values` (N,)."""
    sums = torch.zeros(len(batch.items), dtype=values.dtype, device=values.device)
    return sums.index_add(0, batch.owners.to(values.device), values)


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(n,) from logits (n, vocabulary)."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    # Where a model is spread over devices, its logits may come from another one than its inputs.
    return functional.cross_entropy(logits, targets.to(logits.device), reduction="none")


class _Seen:
    """Keeps what the head gets at the scored positions, and hands it just the first few of them.

    A hook on the head, and not transformers' `logits_to_keep`, since rows of a batch are scored at
    different positions; whatever the model does to its logits afterwards is done as ever.

    Args:
        positions: (B, T) bool, the N scored ones.
        first: how many of them the head sees; None for all.
    """

    def __init__(self, positions: torch.Tensor, first: int | None = None) -> None:
        self._positions, self._first = positions, first
        self.times = 0  # how often the head was called
        self.hidden = torch.empty(0)  # (N, hidden)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.times += 1
        self.hidden = args[0][self._positions.to(args[0].device)]
        return (self.hidden[: self._first].unsqueeze(0), *args[1:])


def _begun(
    model: Any, head: nn.Module, run: Callable[[], Any], predicts: torch.Tensor
) -> tuple[torch.Tensor, nn.Module, Any] | None:
    """A forward pass up to the head.

    Returns:
        (N, hidden) what the head got at the scored positions, the module that holds the layers, and
        what that returned; None where the model is not one decoder that runs once, and one head.
    """
    seen = _Seen(predicts, 1)
    outputs: list[tuple[nn.Module, Any]] = []
    with ExitStack() as hooks:
        hooks.enter_context(head.register_forward_pre_hook(seen))
        for module in _around_embeddings(model):
            hook = module.register_forward_hook(lambda own, _, out: outputs.append((own, out)))
            hooks.enter_context(hook)
        run()
    if not outputs or seen.times != 1:
        return None
    decoder, output = outputs[-1]  # the outermost ends last
    times = sum(module is decoder for module, _ in outputs)
    return (seen.hidden, decoder, output) if times == 1 else None


def _around_embeddings(model: Any) -> list[nn.Module]:
    """The modules inside the model that hold both its token embeddings and its layers."""
    embeddings = model.get_input_embeddings()
    path = next((name for name, own in model.named_modules() if own is embeddings), "")
    parents = accumulate(path.split(".")[:-1], "{}.{}".format)
    around = [model.get_submodule(parent) for parent in parents]
    return [m for m in around if any(isinstance(own, nn.ModuleList) for own in m.modules())]


def _logits(
    head: nn.Module, decoder: nn.Module, output: Any, run: Callable[[], Any], hidden: torch.Tensor
) -> torch.Tensor:
    """(n, vocabulary) what the model makes of hidden states (n, hidden) that its head gets.

    The model's own forward function runs, in which the decoder returns what it returned before: so
    the logits are capped, scaled or shifted as ever.
    """
    given = hidden.unsqueeze(0)
    with (
        replaced_forwards([decoder], lambda _place, _forward: lambda *_, **__: output),
        head.register_forward_pre_hook(lambda _module, args: (given, *args[1:])),
    ):
        logits: torch.Tensor = run().logits
    return logits[0]


def _in_slices(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    head: nn.Module,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    sizes: list[int],
) -> torch.Tensor:
    """(N,) losses from hidden states (N, hidden), slice by slice."""
    trained = any(parameter.requires_grad for parameter in head.parameters())
    found = []
    for own, wanted in zip(hidden.split(sizes), targets.split(sizes), strict=True):

        def losses_of(states: torch.Tensor, wanted: torch.Tensor = wanted) -> torch.Tensor:
            return _losses(logits_of(states), wanted)

        if not torch.is_grad_enabled() or not (own.requires_grad or trained):
            found.append(losses_of(own))
        elif trained:
            # Its weights' gradient depends on what comes after, so the slice is run again.
            found.append(checkpoint(losses_of, own, use_reentrant=False))
        else:
            found.append(_Losses.apply(own, losses_of))
    return torch.cat(found)


class _Losses(torch.autograd.Function):
    """Losses of positions of which each depends on its own hidden state alone.

    Their gradient is taken at once, so no logits are kept; the backward pass weights it.
    """

    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, losses_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        with torch.enable_grad():
            own = hidden.detach().requires_grad_()
            losses = losses_of(own)
            (gradient,) = torch.autograd.grad(losses.sum(), own)
        context.save_for_backward(gradient)
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(context: Any, weights: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = context.saved_tensors
        weighted = gradient * weights.to(gradient.device)[:, None]
        return weighted.to(gradient.dtype), None
