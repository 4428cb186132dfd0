"""DataInf as it was published, beside layerif's: the solve alone, on random gradients.

The published procedure (arXiv 2310.00902, algorithm 1 and its code) keeps one dictionary of
gradients for each sample, taken from batches of one, and loops over samples and weights in Python.
It has two engines: `averaged` for the mean validation gradient, which layerif computes too, and
`per_validation_sample`, the one for language models, which solves anew for each validation sample.
Both are written here from the procedure, step by step and with nothing left out or added, in the
dtype of the gradients; only the sign is layerif's (positive: the sample helps).

    python benchmarks/published_datainf.py --layers 30 --validation-samples 50
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from layerif.influence.estimators.block import Block
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.options import SolveOptions

# For each sample, by its number, the gradient of each trainable weight by its name.
Gradients = Mapping[int, Mapping[str, torch.Tensor]]

# lambda = mean(g^2) / 10 in each weight, which is 0.1 mean(|g|^2) / d.
DAMPING_DIVISOR = 10

# Rows of LoRA's B on the projections of one decoder layer of SmolLM2-135M.
OUT_FEATURES = {"q": 576, "k": 192, "v": 192, "o": 576, "gate": 1536, "up": 1536, "down": 576}
RANK = 8


def collect(
    model: Any, batches: Iterable[Any], loss_of: Callable[[Any, Any], torch.Tensor]
) -> Gradients:
    """Gradients of the model's trainable weights, from a forward and a backward pass a sample.

    Args:
        model: with `requires_grad` on the weights that are wanted.
        batches: of one sample each.
        loss_of: the loss of a batch, from the model and the batch.
    """
    found = {}
    for number, batch in enumerate(batches):
        model.zero_grad()
        loss_of(model, batch).backward()
        found[number] = {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
    return found


def averaged(train: Gradients, validation: Gradients) -> dict[str, torch.Tensor]:
    """(n,) influence through each weight on the mean validation loss."""
    means = {}
    for weight in validation[0]:
        mean = torch.zeros_like(validation[0][weight])
        for number in validation:
            mean += validation[number][weight] / len(validation)
        means[weight] = mean
    return products(train, inverse_products(train, means))


def per_validation_sample(train: Gradients, validation: Gradients) -> dict[str, torch.Tensor]:
    """(n, m) influence through each weight on the loss of each of m validation samples."""
    columns = [
        products(train, inverse_products(train, validation[number])) for number in validation
    ]
    return {weight: torch.stack([c[weight] for c in columns], 1) for weight in columns[0]}


def identity(train: Gradients, means: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """(n,) influence through each weight with the identity for the inverse Hessian."""
    return products(train, means)


def inverse_products(
    train: Gradients, validation: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """DataInf's H^-1 v of each weight: damping first, then one rank-one inverse a sample."""
    found = {}
    for weight, v in validation.items():
        squares = torch.zeros(len(train))
        for number in train:
            squares[number] = torch.mean(train[number][weight] ** 2)
        damping = torch.mean(squares) / DAMPING_DIVISOR
        product = torch.zeros_like(v)
        for number in train:
            g = train[number][weight]
            share = torch.sum(v * g) / (damping + torch.sum(g**2))
            product += (v - share * g) / (len(train) * damping)
        found[weight] = product
    return found


def products(train: Gradients, vectors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """(n,) scalar products of each sample's gradient with `vectors`, weight by weight."""
    found = {weight: torch.zeros(len(train)) for weight in vectors}
    for number in train:
        for weight, vector in vectors.items():
            found[weight][number] = torch.sum(vector * train[number][weight])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--layers", type=int, default=30, help="for layerif and the averaged engine"
    )
    parser.add_argument("--layers-per-sample", type=int, default=1, help="for the other engine")
    parser.add_argument("--train-samples", type=int, default=200)
    parser.add_argument("--validation-samples", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    sizes = {
        f"layers.{layer}.{name}": rows * RANK
        for layer in range(options.layers)
        for name, rows in OUT_FEATURES.items()
    }
    matrices, validation = (
        {name: torch.randn(samples, size, generator=generator) for name, size in sizes.items()}
        for samples in (options.train_samples, options.validation_samples)
    )
    train = by_sample(matrices)
    few = list(sizes)[: options.layers_per_sample * len(OUT_FEATURES)]
    means = {name: rows.double().mean(0) for name, rows in validation.items()}
    chosen = SolveOptions()
    solutions = ESTIMATORS.find("datainf").solutions

    def ours(names: Iterable[str]) -> dict[str, torch.Tensor]:
        found = {}
        for name in names:
            block = Block.of(name, matrices[name], means[name])
            found[name] = solutions(block, chosen.dampings, chosen)[0].influence
        return found

    engines = {
        "averaged": (averaged, list(sizes), options.pairs),
        "per validation sample": (per_validation_sample, few, 2),
    }
    print(
        f"n = {options.train_samples}, m = {options.validation_samples}, float32 gradients, "
        f"one thread, CPU seconds, torch {torch.__version__}, {platform.machine()}"
    )
    for label, (engine, names, pairs) in engines.items():
        numbered = {i: {name: row[name] for name in names} for i, row in train.items()}
        targets = by_sample({name: validation[name] for name in names})
        published, found = [], []
        for _ in range(pairs):
            seconds, expected = timed(engine, numbered, targets)
            published.append(seconds)
            seconds, influence = timed(ours, names)
            found.append(seconds)
        ratios = sorted(theirs / ours for theirs, ours in zip(published, found, strict=True))
        gap = max(difference(expected[name], influence[name]) for name in names)
        print(
            f"{label}, {len(names)} blocks: published {min(published):.2f} s, layerif "
            f"{min(found):.3f} s, ratio of the minima {min(published) / min(found):.1f}, pair by "
            f"pair {ratios[0]:.1f} to {ratios[-1]:.1f} (largest relative difference of the results "
            f"{gap:.1e})"
        )


def by_sample(matrices: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """Gradients as the published code keeps them, from one matrix (samples, d) a weight."""
    samples = len(next(iter(matrices.values())))
    return {i: {name: rows[i] for name, rows in matrices.items()} for i in range(samples)}


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """CPU seconds, and the result: on one thread what an idle machine would take by the clock."""
    began = time.process_time()
    result = call(*arguments)
    return time.process_time() - began, result


def difference(published: torch.Tensor, ours: torch.Tensor) -> float:
    """Largest difference beside the largest influence; validation samples are averaged."""
    mean = published.double() if published.ndim == 1 else published.double().mean(1)
    return float((mean - ours).abs().max() / ours.abs().max())


if __name__ == "__main__":
    main()
