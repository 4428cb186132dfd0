"""Does scoring work on this model? A few samples in every way there is, before a long run.

What the hooks give is compared with autograd of the weights themselves, one sample at a time and
with none of the code that scoring shares; a batch is compared with its samples one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from layerif.core.options import takes
from layerif.data.base import Example
from layerif.data.batching import Encoded, accepted, collate, pack
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import NumericalError
from layerif.influence.estimating import Estimate, estimate
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.options import ProbeOptions
from layerif.influence.preparing import dtype_of
from layerif.influence.subspaces.base import Matrix
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.checks import check_tokens
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers, unwrapped
from layerif.model.modes import as_found, evaluation_mode
from layerif.model.opening import Tokenizer

# Relative distance of two ways to one gradient of one run. float64 allows for attention that takes
# its softmax in float32. SmolLM2 has 1e-4 in float32 and 0.005 in bfloat16.
TOLERANCES = {"float64": 1e-5, "float32": 5e-3, "float16": 0.03, "bfloat16": 0.1}
# Of a gradient in a batch and alone, whose forward passes round otherwise: there 1e-4 and 0.08.
BATCH_TOLERANCES = {"float64": 1e-5, "float32": 1e-2, "float16": 0.1, "bfloat16": 0.3}
# Of outputs in a batch and alone, which no backward pass has gone through.
FORWARD_TOLERANCES = {"float64": 1e-5, "float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
# Gradients of weights that are held at once.
GROUP_BYTES = 1_000_000_000
SAMPLES = 3


@dataclass(frozen=True)
class Check:
    """One question about the model.

    Attributes:
        name: the question.
        ok: the answer; None where an earlier failure leaves nothing to ask.
        detail: the figure behind it, or what fails and where.
    """

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks, and what a full run would take."""

    checks: tuple[Check, ...]
    estimate: Estimate | None

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


QUESTIONS = (
    "losses and gradients are finite",
    "gradients reach the projections",
    "hooks give what autograd gives",
    "a batch gives what its samples give alone",
)


@takes(ProbeOptions)
def examine(
    model: Any,
    tokenizer: Tokenizer,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    options: ProbeOptions,
) -> Diagnosis:
    """Check the gradients that scoring would take, on three of the training samples.

    Args:
        model, tokenizer: to score with; the model is left as before.
        train, validation: the samples of the run that is planned.
        options: of that run.

    Raises:
        InputError: the model or the samples cannot be scored at all.
    """
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    length = usable_length(model, options.max_length)
    items, _ = encode_samples(tokenizer, train, length, "training")
    others, _ = encode_samples(tokenizer, validation, length, "validation")
    check_tokens(model, (item.input_ids for item in (*items, *others)))
    # Of one side of what the model's positions may have a border at, so that they share a batch.
    alike = max(pack(items, sys.maxsize, model), key=len)
    by_length = sorted(alike, key=lambda item: len(item.input_ids))
    few = [by_length[i] for i in sorted({0, len(alike) // 2, len(alike) - 1})][:SAMPLES]
    lora = FreshLora(options.rank, options.alpha, options.seed)
    matrices = lora.matrices(layers.projections)
    dtype = str(dtype_of(model)).removeprefix("torch.")
    with frozen(model), PerSampleGradients(model, layers.projections, matrices) as per_sample:
        try:
            # First, as memory that is still held by other work would hide the peak.
            found = estimate(model, per_sample, matrices, items, others, options.batch_tokens)
            together = per_sample(_batch(model, few))[1]
            uses = per_sample.uses
            alone = [per_sample(_batch(model, [item]))[1] for item in few]
        except NumericalError as error:
            return _stopped(error)
    checks = (
        Check(QUESTIONS[0], True, f"{len(few)} samples, {_made_of(layers)}"),
        _reached(layers.projections, together, uses),
        _against_autograd(model, layers.projections, matrices, few, alone, TOLERANCES[dtype]),
        _against_the_batch(model, layers, few, matrices, together, alone, dtype),
    )
    return Diagnosis(checks, found)


def _made_of(layers: DecoderLayers) -> str:
    """The weights of the decoder layers by their kinds."""
    experts = sum(p.fused is not None for p in layers.projections)
    words = f"{len(layers.projections)} projections"
    if experts:
        words += f" ({experts} of experts)"
    if layers.rest:
        words += f"; left as they are: {_listed(layers.kinds_of_rest)}"
    return words


def _reached(
    projections: Sequence[Projection], gradients: Sequence[torch.Tensor], uses: Sequence[int]
) -> Check:
    """Whether a gradient is zero although its projection takes part in the loss."""
    rows = list(zip(projections, gradients, uses, strict=True))
    # Llama 4 runs every expert on every token, those that are not chosen on zeros.
    alone = [(p, gradient) for p, gradient, used in rows if used and p.fused is None]
    silent = [p.key for p, gradient in alone if not gradient.any()]
    idle = [p.key for p, _, used in rows if not used and p.fused is None]
    unrouted = sum(p.fused is not None and not gradient.any() for p, gradient, _ in rows)
    if silent:
        return Check(QUESTIONS[1], False, f"the gradient is zero at {_listed(silent)}")
    words = "no gradient is zero throughout"
    if unrouted:
        words += f"; {unrouted} of experts were given no token"
    if idle:
        words += f"; idle, as the loss does not depend on them: {_listed(idle)}"
    return Check(QUESTIONS[1], True, words)


def _stopped(error: NumericalError) -> Diagnosis:
    """What is known after a pass that failed."""
    answers = [(False, str(error)), *[(None, "not asked")] * (len(QUESTIONS) - 1)]
    checks = (Check(q, *answer) for q, answer in zip(QUESTIONS, answers, strict=True))
    return Diagnosis(tuple(checks), None)


def _against_autograd(
    model: Any,
    projections: Sequence[Projection],
    matrices: Sequence[Matrix],
    few: Sequence[Encoded],
    alone: Sequence[Sequence[torch.Tensor]],
    tolerance: float,
) -> Check:
    worst: dict[str, float] = {}
    for item, hooked in zip(few, alone, strict=True):
        for row, gradient in literal_gradients(model, projections, item):
            matrix = matrices[row]
            assert matrix.right is not None
            expected = matrix.scale * (gradient @ matrix.right.to(gradient).T)
            error = _distance(hooked[row][0], expected)
            worst[matrix.key] = max(error, worst.get(matrix.key, 0.0))
    if not worst:
        return Check(QUESTIONS[2], True, "every weight is quantised: there is nothing to compare")
    failing = [key for key, error in worst.items() if not error <= tolerance]
    key = max(worst, key=worst.__getitem__)
    detail = f"largest difference {worst[key]:.1g} of the gradient, at {key}, allowed {tolerance:g}"
    if failing:
        detail = f"they differ at {_listed(failing)}; {detail}"
    elif left_out := len(matrices) - len(worst):
        detail += f"; {left_out} quantised left out"
    return Check(QUESTIONS[2], not failing, detail)


def literal_gradients(
    model: Any, projections: Sequence[Projection], item: Encoded
) -> Iterator[tuple[int, torch.Tensor]]:
    """(out, in) the gradient of every weight that can have one, of one sample run by itself.

    By autograd, from the logits of all that is scored at once; a group of projections at a time,
    so that memory holds the gradients of some of the weights alone.

    Yields:
        The row of a projection, and its gradient in float32 at least.
    """
    ids = torch.tensor([item.input_ids], device=model.get_input_embeddings().weight.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    last = len(item.input_ids) - item.start + 1
    if "logits_to_keep" in signature(model.forward).parameters:
        inputs["logits_to_keep"] = last
    with as_found(model), evaluation_mode(model), torch.enable_grad():
        model.requires_grad_(False)
        for group in _groups(projections):
            weights = list(
                {id(w): w for w in (projections[row].parameter for row in group)}.values()
            )
            for weight in weights:
                weight.requires_grad_(True)
            logits = model(**inputs, use_cache=False).logits[0, -last:-1]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = functional.cross_entropy(logits, ids[0, item.start :])
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            gradients = dict(zip(map(id, weights), found, strict=True))
            for weight in weights:
                weight.requires_grad_(False)
            for row in group:
                projection = projections[row]
                gradient = gradients[id(projection.parameter)]
                own = projection.part(
                    torch.zeros_like(projection.parameter) if gradient is None else gradient
                )
                yield row, own.to(torch.promote_types(own.dtype, torch.float32))


def _groups(projections: Sequence[Projection]) -> Iterator[list[int]]:
    """Rows of the projections that are not quantised, as many together as may be held at once."""
    group: list[int] = []
    size = 0
    for row, projection in enumerate(projections):
        if not projection.packed:
            if group and size + projection.weight.nbytes > GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append(row)
            size += projection.weight.nbytes
    if group:
        yield group


def _against_the_batch(
    model: Any,
    layers: DecoderLayers,
    few: Sequence[Encoded],
    matrices: Sequence[Matrix],
    together: Sequence[torch.Tensor],
    alone: Sequence[Sequence[torch.Tensor]],
    dtype: str,
) -> Check:
    leak = _first_that_differs(model, layers, few, FORWARD_TOLERANCES[dtype])
    if leak is not None:
        return Check(QUESTIONS[3], False, f"outputs differ from {leak} on: samples meet there")
    tolerance = BATCH_TOLERANCES[dtype]
    worst = [
        max(_distance(batched[i], single[row][0]) for i, single in enumerate(alone))
        for row, batched in enumerate(together)
    ]
    failing = [m.key for m, error in zip(matrices, worst, strict=True) if not error <= tolerance]
    row = max(range(len(worst)), key=worst.__getitem__)
    detail = f"largest difference {worst[row]:.1g} of the gradient, at {matrices[row].key}"
    # Backward passes go down, so the cause lies at the uppermost.
    detail = (
        f"gradients differ from {failing[-1]} down; {detail}"
        if failing
        else f"{detail}, allowed {tolerance:g}"
    )
    return Check(QUESTIONS[3], not failing, detail)


def _first_that_differs(
    model: Any, layers: DecoderLayers, few: Sequence[Encoded], tolerance: float
) -> str | None:
    """The module whose output is the first to depend on the batch; the innermost, as it ends first.

    Of each output its norm and its sum at every position are compared.
    """
    batched = _outputs(model, layers, few)
    for row, item in enumerate(few):
        single = _outputs(model, layers, [item])
        length = len(item.input_ids)
        for name, (norms, sums, width) in batched.items():
            if name not in single or len(single[name][0]) != 1:
                continue
            norm, total, _ = single[name]
            scale = norm[0].clamp(min=1e-30)
            gap = ((norms[row, :length] - norm[0]) / scale).abs().max()
            # A sum of `width` numbers is at most sqrt(width) norms.
            drift = ((sums[row, :length] - total[0]) / (scale * width**0.5)).abs().max()
            if not max(gap, drift) <= tolerance:
                return name
    return None


def _outputs(
    model: Any, layers: DecoderLayers, items: Sequence[Encoded]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, int]]:
    """For each module of the decoder layers (B, T) norms and sums of its outputs, as they end."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}
    batch = _batch(model, items)
    shape = batch.predicts.shape

    def watch(name: str) -> Callable[..., None]:
        def observe(_module: nn.Module, _args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if isinstance(first, torch.Tensor) and first.shape[:2] == shape and first.ndim > 2:
                flat = first.detach().flatten(2).double()
                found.setdefault(name, (flat.norm(dim=2), flat.sum(2), flat.shape[2]))

        return observe

    with ExitStack() as stack:
        for index, layer in enumerate(layers.modules):
            for name, module in layer.named_modules():
                path = f"layers.{index}.{name}".rstrip(".")
                stack.callback(module.register_forward_hook(watch(path)).remove)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        model(**accepted(model.forward, batch.inputs), use_cache=False)
    return found


def _batch(model: Any, items: Sequence[Encoded]) -> Any:
    return collate(items, device=model.get_input_embeddings().weight.device)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in the Frobenius norm; 0 where both are zero."""
    found, expected = found.double().cpu(), expected.double().cpu()
    scale = max(found.norm().item(), expected.norm().item())
    return (found - expected).norm().item() / scale if scale else 0.0


def _listed(keys: Sequence[str], most: int = 3) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
