"""One move from the uniform plan, in directions that are made in different ways.

What g is taken from differs: how many tokens, projections or whole layers, each text weighted by
its influence on held-out text, divided by a second-order term. Every direction is followed to
several distances and judged by the loss of other validation text, so that only the direction
counts. Wanda's order of the weights is that at the uniform plan throughout; test text is not read.

    python benchmarks/marginal_moves.py --data-dir DIR --sparsity 0.6
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerif.compress.pruning.compressor import PruningCompressor
from layerif.compress.pruning.options import MethodOptions
from layerif.core.files import write_json
from layerif.core.progress import progress
from layerif.data import load_corpus
from layerif.data.batching import collate, pack
from layerif.data.chunks import cut, draw
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import input_device, open_model
from layerif.search.base import State
from layerif.search.options import SearchOptions
from layerif.search.rounds import standardised
from layerif.search.slopes import BACKWARD_TOKENS, mean_loss, slopes
from layerif.search.sparsity import SparsityKind

DELTA = 0.05
# Mean absolute change of a unit's sparsity.
DISTANCES = (0.01, 0.02, 0.04, 0.06, 0.08)
TOKENS = (1024, 2048, 4096, 8192, 16384)
Vector = NDArray[np.float64]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpus", default="wikitext2")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--samples", type=int, default=16, help="chunks of calibration text")
    parser.add_argument("--judging", type=int, default=16, help="chunks of text that judge")
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    model, tokenizer = open_model(options.model, dtype=options.dtype)
    layers = find_decoder_layers(model)
    units = SparsityKind.among(layers, options.sparsity, SearchOptions(below=1.0, above=1.0))
    owners = np.array([p.layer for p in layers.projections])
    text = load_corpus(options.corpus, data_dir=options.data_dir).text("calibration")
    chunks = cut(tokenizer, text, options.context_length)
    gradients = TOKENS[-1] // options.context_length
    held_out = gradients // 2
    counts = (options.samples, gradients, held_out, options.judging)
    drawn = draw(chunks, sum(counts), options.seed)
    calibrating, learning, weighing, judging = (
        drawn[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))
    )
    device = input_device(model)
    batches = [collate(items, device=device).inputs for items in pack(calibrating, 2048, model)]
    figures = []
    with PruningCompressor.held(
        model, layers, batches, MethodOptions(method="wanda")
    ) as compressor:
        uniform = units.start()
        orders = compressor.at(units.levels(uniform), lambda _row, order: order)
        around = replace(units, delta=DELTA).around(uniform)
        changes = [order.change(*edges) for order, edges in zip(orders, around, strict=True)]
        widths = np.array([more - fewer for more, fewer in around])

        def products(items: list) -> Vector:
            """(texts, projections) <dL/dW, W * R> of each text."""
            with progress("gradients", len(items)) as advance:
                found = []
                for item in items:
                    found.append(slopes(model, changes, [item], batch_tokens=BACKWARD_TOKENS))
                    advance()
            return np.stack(found)

        ways = directions(products(learning), products(weighing), widths, units, owners, options)

        def judged(sparsities: State) -> float:
            for row, zeros in enumerate(units.levels(sparsities)):
                compressor.set(row, orders[row].at(zeros))
            return mean_loss(model, judging, batch_tokens=2048)

        base = judged(uniform)
        print(f"sparsity {options.sparsity:g}, {options.dtype}: uniform {base:.4f} nats a token")
        print("distance " + "".join(f"{distance:10.2f}" for distance in DISTANCES))
        for name, way in ways.items():
            losses = []
            for distance in DISTANCES:
                moved = uniform + distance * way / np.abs(way).mean()
                losses.append(judged(units.projected(moved)) - base)
            cells = "".join(f"{loss:+10.4f}" for loss in losses)
            print(f"{cells}   {name}", flush=True)
            figures.append({"way": name, "distances": DISTANCES, "change": losses})
    if options.out:
        write_json(options.out, {"sparsity": options.sparsity, "uniform": base, "ways": figures})


def directions(
    learned: Vector,
    weighing: Vector,
    widths: NDArray[np.int64],
    units: SparsityKind,
    owners: NDArray[np.int64],
    options: argparse.Namespace,
) -> dict[str, Vector]:
    """(projections,) the moves of sparsity to be compared, up to their length."""
    each = learned / widths  # (texts, projections), of a weight
    ways = {}
    for tokens in TOKENS:
        count = tokens // options.context_length
        ways[f"projections, {tokens:,} tokens"] = standardised(each[:count].mean(0), units)
    most = max(TOKENS) // options.context_length // 2
    own = each[:most]  # 8,192 tokens, as the rows below
    mean = own.mean(0)
    by_layer = np.bincount(owners, weights=learned[:most].mean(0)) / np.bincount(
        owners, weights=widths
    )
    ways["layers"] = standardised(by_layer[owners], units)
    ways["ranks of projections"] = standardised(np.argsort(np.argsort(mean)).astype(float), units)
    # A text counts by what its own best move does for held-out text, to first order.
    outside = standardised((weighing / widths).mean(0), units)
    worth = np.array([float(standardised(row, units) @ outside) for row in own])
    ways["texts weighted by influence"] = standardised((own * worth[:, None]).mean(0), units)
    ways["the same, positive alone"] = standardised((own * worth.clip(0)[:, None]).mean(0), units)
    # The curvature is that of the texts' own gradients: weights are worth less as more return.
    for damping in (0.1, 1.0, 10.0):
        curvature = own.var(0) + damping * own.var(0).mean()
        ways[f"second order, damping {damping:g}"] = newton(mean, curvature, units)
    generator = np.random.default_rng(options.seed)
    ways["at random"] = standardised(generator.normal(size=len(mean)), units)
    return ways


def newton(gradient: Vector, curvature: Vector, units: SparsityKind) -> Vector:
    """Changes of sparsity x / size, x weights of each unit that g x + c x^2 / 2 is least for."""
    level = np.average(gradient, weights=1 / curvature)
    return standardised((gradient - level) / curvature / units.sizes, units)


if __name__ == "__main__":
    main()
