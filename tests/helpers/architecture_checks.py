"""What layerif computes of a tiny architecture, held against computations that share no code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import layerif
from helpers.architectures import tiny_architecture
from helpers.multimodal import MULTIMODAL, tiny_multimodal
from helpers.tiny import tiny_tokenizer
from layerif.adapters import lora_config_for
from layerif.artifacts import Plan
from layerif.calibration.text import drawn_chunks
from layerif.compress.pruning.options import PruneOptions
from layerif.data import Corpus
from layerif.data.batching import Encoded, collate
from layerif.influence.doctor import literal_gradients
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.subspaces.full import FullWeights
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model

# Architectures that compute some of it in float32 whatever the model's precision.
LOOSE = 1e-5
LENGTHS = (24, 17, 11)
TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it does so. " * 40


class Mismatch(AssertionError):
    """Two ways to the same number differ."""


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return (tiny_multimodal if name in MULTIMODAL else tiny_architecture)(name, dtype)


def samples() -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    return [
        Encoded(index, torch.randint(3, 260, (length,), generator=generator).tolist(), 5)
        for index, length in enumerate(LENGTHS)
    ]


def precise(name: str) -> Any:
    """The model in float64 where it runs there, else in float32."""
    model = tiny(name, torch.float64)
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(3, 27)[None], use_cache=False)
    except RuntimeError:
        return tiny(name)
    return model


def opened(name: str, folder: Path) -> str:
    """Saved, and opened again with the same logits."""
    model = tiny(name)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    again, _ = open_model(folder, device="cpu")
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        one, other = (m(input_ids=ids, use_cache=False).logits for m in (model, again))
    return _near(_distance(one, other), 1e-6)


def likelihood(name: str, _folder: Path) -> str:
    """The loss of samples in one batch, against each by itself in a plain loop."""
    model = precise(name)
    batch = collate(samples(), device="cpu")
    with torch.no_grad():
        found = row_sums(token_losses(model, batch), batch) / batch.counts
        expected = torch.stack([_loss(model, item) for item in samples()])
    return _near(_distance(found, expected), LOOSE)


def gradients(name: str, _folder: Path) -> str:
    """Per-sample gradients of a batch at every projection, against autograd's of each sample."""
    model = precise(name)
    projections = find_decoder_layers(model).projections
    matrices = FullWeights().matrices(projections)
    with frozen(model), PerSampleGradients(model, projections, matrices) as per_sample:
        _, found = per_sample(collate(samples(), device="cpu"))
    worst = 0.0
    single = next(model.parameters()).dtype == torch.float32
    for row, item in enumerate(samples()):
        for index, expected in literal_gradients(model, projections, item):
            worst = max(worst, _distance(found[index][row], expected))
    return _near(worst, 1e-3 if single else LOOSE)


def pruned(name: str, _folder: Path) -> str:
    """The zeros that Wanda leaves at 50 %, against |W| |X| ranked row by row."""
    model, judge = tiny(name), tiny(name)
    tokenizer = tiny_tokenizer()
    options = PruneOptions(method="wanda", calibration_samples=8, context_length=32)
    layerif.prune(model, 0.5, options=options, tokenizer=tokenizer, calibration=TEXT)
    chunks = _calibration(tokenizer)
    worst = 0.0
    for layer in range(len(find_decoder_layers(judge))):
        own = find_decoder_layers(judge).of(layer)
        with input_sums(judge, own) as seen, torch.no_grad():
            for chunk in chunks:
                judge(input_ids=chunk[None], use_cache=False)
        for projection, after in zip(own, find_decoder_layers(model).of(layer), strict=True):
            weight, sums = projection.weight, seen(projection)
            scores = weight.abs().double() * sums.sqrt()
            zeros = weight.shape[1] // 2
            lowest = scores.argsort(dim=1, stable=True)[:, :zeros]
            mask = torch.ones_like(weight, dtype=torch.bool).scatter_(1, lowest, value=False)
            differ = (mask != (after.weight != 0)).double().mean().item()
            worst = max(worst, differ)
            weight.copy_(after.weight)
    # Where two scores are within rounding of each other, either may go.
    return _near(worst, 0.01)


def short_search(model: Any) -> Plan:
    """A plan of 50 % zeros, searched for in one round."""
    return layerif.search_plan(
        model,
        0.5,
        tokenizer=tiny_tokenizer(),
        calibration=Corpus("text", [TEXT], [TEXT], "\n\n"),
        calibration_samples=4,
        context_length=32,
        held_out_tokens=256,
        tokens=128,
        rounds=1,
    )


def searched(name: str, _folder: Path) -> str:
    """A plan searched for at the operating point: its total exact, the model as before."""
    model = tiny(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = short_search(model)
    assert plan.modules is not None
    layers = find_decoder_layers(model)
    if [module.module for module in plan.modules] != [p.key for p in layers.projections]:
        raise Mismatch("the plan names other projections")
    zeros = sum(module.sparsity * module.numel for module in plan.modules)
    size = sum(module.numel for module in plan.modules)
    if abs(zeros - 0.5 * size) > 1e-6 * size:
        raise Mismatch(f"{zeros} zeros of {size} weights")
    if not all(torch.equal(before[key], value) for key, value in model.state_dict().items()):
        raise Mismatch("the model was changed")
    return "exact"


def adapted(name: str, folder: Path) -> str:
    """A LoRA of every kind of projection that PEFT can take, saved, and opened again."""
    model = tiny(name)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    model, _ = open_model(folder, device="cpu")
    plan = Plan(kind="ranks", allocation=[2] * len(find_decoder_layers(model)))
    wrapped = get_peft_model(model, lora_config_for(plan, model)).eval()
    with torch.no_grad():
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        found = wrapped(input_ids=ids, use_cache=False).logits
    wrapped.save_pretrained(folder / "adapter")
    again, _ = open_model(folder, device="cpu", adapter=folder / "adapter")
    with torch.no_grad():
        other = again(input_ids=ids, use_cache=False).logits
    return _near(_distance(found, other), 1e-6)


CHECKS: dict[str, Callable[[str, Path], str]] = {
    "opened": opened,
    "likelihood": likelihood,
    "gradients": gradients,
    "Wanda": pruned,
    "search": searched,
    "adapter": adapted,
}


@contextmanager
def input_sums(model: Any, projections: Any) -> Iterator[Callable[[Any], torch.Tensor]]:
    """Inside, the squares of what every weight is multiplied with are summed."""
    with input_products(model, projections) as seen:
        yield lambda projection: seen(projection)[0].diagonal()


@contextmanager
def input_products(
    model: Any, projections: Any
) -> Iterator[Callable[[Any], tuple[torch.Tensor, int]]]:
    """Inside, x x^T of what every weight is multiplied with is summed, by its memory, and counted.

    An expert that is given fewer tokens than it has inputs counts what all its siblings are given.
    """
    weights = {p.parameter.untyped_storage().data_ptr() for p in projections}
    sums: dict[tuple[int, int], torch.Tensor] = {}
    tokens: dict[tuple[int, int], int] = {}

    def place(weight: torch.Tensor) -> tuple[int, int]:
        return weight.untyped_storage().data_ptr(), weight.storage_offset()

    def add(weight: torch.Tensor, inputs: torch.Tensor) -> None:
        if weight.untyped_storage().data_ptr() not in weights:
            return
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).double()
        sums[place(weight)] = sums.get(place(weight), 0) + flat.T @ flat
        tokens[place(weight)] = tokens.get(place(weight), 0) + len(flat)

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func in (functional.linear, torch.addmm, torch.matmul, torch.Tensor.matmul):
                tensors = [a for a in args if isinstance(a, torch.Tensor)]
                weight = tensors[2] if func is torch.addmm else tensors[1]
                if weight.ndim == 2:
                    add(weight, tensors[1] if func is torch.addmm else tensors[0])
            elif func in (torch.Tensor.__matmul__,) and args[1].ndim == 2:
                add(args[1], args[0])
            elif func is torch.bmm and args[1].ndim == 3:
                for expert, own in enumerate(args[0]):
                    add(args[1][expert], own)
            return func(*args, **(kwargs or {}))

    def of(projection: Any) -> tuple[torch.Tensor, int]:
        own = [place(projection.weight)]
        if projection.fused is not None and tokens.get(own[0], 0) < projection.in_features:
            experts = [place(p.weight) for p in projections if p.fused == projection.fused]
            own = [one for one in experts if one in sums]
        return sum(sums[one] for one in own), sum(tokens[one] for one in own)

    chosen = getattr(model.config, "_experts_implementation", None)
    if chosen is not None:
        model.set_experts_implementation("eager")
    with Watch():
        yield of
    if chosen is not None:
        model.set_experts_implementation(chosen)


def _calibration(tokenizer: Any) -> list[torch.Tensor]:
    return [torch.tensor(c.input_ids) for c in drawn_chunks(tokenizer, TEXT, 8, 32, 0)[0]]


def _loss(model: Any, item: Encoded) -> torch.Tensor:
    ids = torch.tensor([item.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, item.start - 1 : -1]
    return functional.cross_entropy(logits.double(), ids[0, item.start :])


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.double(), other.double()
    scale = max(one.norm().item(), other.norm().item())
    return (one - other).norm().item() / scale if scale else 0.0


def _near(distance: float, allowed: float) -> str:
    if not distance <= allowed:
        raise Mismatch(f"{distance:.1g} apart, allowed {allowed:g}")
    return f"{distance:.0e}"
