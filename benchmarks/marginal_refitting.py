"""One move from the uniform plan under SparseGPT, with a weight's return predicted in two ways.

Either as SparseGPT refits the others (what its weights change by between two sparsities), or by
itself, at its original value, in the order of the saliency that SparseGPT begins with. Both moves
are pruned by SparseGPT and judged by the loss of held-out calibration text; test text is not read.

    python benchmarks/marginal_refitting.py --data-dir DIR --sparsity 0.5
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from layerif.compress.compressor import Change, Compressible
from layerif.compress.pruning.base import Masked
from layerif.compress.pruning.compressor import PruningCompressor
from layerif.compress.pruning.options import MethodOptions
from layerif.compress.pruning.sparsegpt import Refitting
from layerif.compress.pruning.wanda import wanda_mask
from layerif.data import load_corpus
from layerif.data.batching import collate, pack
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import input_device, open_model
from layerif.search.options import SearchOptions
from layerif.search.rounds import move
from layerif.search.slopes import BACKWARD_TOKENS, mean_loss, slopes
from layerif.search.sparsity import SparsityKind
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
    asked = SearchOptions(
        calibration_samples=options.samples,
        context_length=options.context_length,
        held_out_tokens=options.held_out_tokens,
        seed=options.seed,
    )
    units = SparsityKind.among(layers, options.sparsity, asked)
    corpus = load_corpus(options.corpus, data_dir=options.data_dir)
    texts = texts_for(model, tokenizer, corpus, None, asked, asked.calibration_samples)
    learning = [item for lot in texts.rounds(2, options.tokens) for item in lot]
    uniform = units.start()
    around = replace(units, delta=DELTA).around(uniform)

    def changes(row: int, refitting: Compressible) -> tuple[Change, Change]:
        assert isinstance(refitting, Refitting)
        scale = refitting.factor.upper.diagonal().reciprocal()
        original = refitting.original

        def mask(zeros: int) -> torch.Tensor:
            return wanda_mask(original, scale, zeros / original.numel())

        alone = Masked(original, mask)
        return refitting.change(*around[row]), alone.change(*around[row])

    device = input_device(model)
    groups = pack(texts.calibration, asked.batch_tokens, model)
    batches = [collate(items, device=device).inputs for items in groups]
    with PruningCompressor.held(
        model, layers, batches, MethodOptions(method="sparsegpt")
    ) as compressor:
        made = compressor.at(units.levels(uniform), changes)
        base = mean_loss(model, texts.held_out, batch_tokens=2048)
        print(f"uniform at {options.sparsity:g}: {base:.4f} nats a token", flush=True)
        found = {}
        for way, own in zip(WAYS, zip(*made, strict=True), strict=True):
            products = slopes(model, own, learning, batch_tokens=BACKWARD_TOKENS)
            found[way] = units.worth(products, around)
        print(f"rank correlation of the two: {spearmanr(*found.values()).statistic:.2f}")
        names = np.array([p.name for p in layers.projections])
        for name in dict.fromkeys(names):
            means = ", ".join(f"{way} {g[names == name].mean():+.3f}" for way, g in found.items())
            print(f"  {name}: {means}", flush=True)
        for way, g in found.items():
            for eta in options.etas:
                compressor.at(units.levels(move(uniform, g, units, eta)))
                change = mean_loss(model, texts.held_out, batch_tokens=2048) - base
                print(f"{way}, step {eta:g}: {change:+.4f}", flush=True)


if __name__ == "__main__":
    main()
