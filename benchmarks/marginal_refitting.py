"""One move from the uniform plan under SparseGPT, with a weight's return predicted in two ways.

Either as SparseGPT refits the others (what its weights change by between two sparsities), or by
itself, at its original value, in the order of the saliency that SparseGPT begins with. Both moves
are pruned by SparseGPT and judged by the loss of held-out calibration text; test text is not read.

    python benchmarks/marginal_refitting.py --data-dir DIR --sparsity 0.5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from layerif.search.operating_point import OperatingPoint
from layerif.search.order import Band, Prunable, RemovalOrder
from layerif.search.planning import Units, calibration_batches
from layerif.search.refitting import Refitting
from layerif.search.sensitivity import mean_loss, sensitivities
from scipy.stats import spearmanr

from layerif.data import load_corpus
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model
from layerif.search.rounds import BACKWARD_TOKENS, move
from layerif.search.texts import texts_for

DELTA = 0.05
WAYS = ("refitted", "by themselves")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpus", default="wikitext2")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=16, help="chunks of calibration text")
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096, help="of each of two lots, for g")
    parser.add_argument("--held-out-tokens", type=int, default=8192)
    parser.add_argument("--etas", type=float, nargs="+", default=[0.03, 0.06])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    model, tokenizer = open_model(options.model, dtype=options.dtype)
    layers = find_decoder_layers(model)
    units = Units.among(layers, "projection", options.sparsity, below=0.25, above=0.2)
    texts = texts_for(
        model,
        tokenizer,
        load_corpus(options.corpus, data_dir=options.data_dir),
        None,
        samples=options.samples,
        context_length=options.context_length,
        held_out_tokens=options.held_out_tokens,
        seed=options.seed,
    )
    learning = [item for lot in texts.rounds(2, options.tokens) for item in lot]
    bands: dict[str, dict[int, Band]] = {way: {} for way in WAYS}

    def see(row: int, prunable: Prunable) -> None:
        assert isinstance(prunable, Refitting)
        bands["refitted"][row] = prunable.band(options.sparsity, DELTA)
        scale = prunable.factor.upper.diagonal().reciprocal()
        order = RemovalOrder.of(prunable.weight, scale, "wanda")
        bands["by themselves"][row] = order.band(options.sparsity, DELTA)

    batches = calibration_batches(model, texts, 2048)
    with OperatingPoint.held(model, layers, batches, "sparsegpt") as point:
        uniform = units.uniform()
        point.prune(units.spread(uniform), see)
        base = mean_loss(point, texts.held_out, batch_tokens=2048)
        print(f"uniform at {options.sparsity:g}: {base:.4f} nats a token", flush=True)
        found = {}
        for way in WAYS:
            kept = [bands[way][row] for row in range(len(layers.projections))]
            measured = sensitivities(point, kept, learning, batch_tokens=BACKWARD_TOKENS)
            found[way] = measured.per_density(units.of, units.mean_size)
        print(f"rank correlation of the two: {spearmanr(*found.values()).statistic:.2f}")
        names = np.array([p.name for p in layers.projections])
        for name in dict.fromkeys(names):
            means = ", ".join(f"{way} {g[names == name].mean():+.3f}" for way, g in found.items())
            print(f"  {name}: {means}", flush=True)
        for way, g in found.items():
            for eta in options.etas:
                point.prune(units.spread(move(uniform, g, units, eta)))
                change = mean_loss(point, texts.held_out, batch_tokens=2048) - base
                print(f"{way}, step {eta:g}: {change:+.4f}", flush=True)


if __name__ == "__main__":
    main()
