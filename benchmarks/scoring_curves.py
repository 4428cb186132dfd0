"""How the cost of scoring grows: with training samples, rank, length of samples and layers.

Each row is one `layerif.score` of an open model with a run folder, so that gradients go to disk as
on the command line. Samples are pieces of the Python documentation, cut to one number of
tokens, of which the last 16 are the completion.

    python benchmarks/scoring_curves.py
    python benchmarks/scoring_curves.py --curves samples --samples 100 800 3200
"""

from __future__ import annotations

import argparse
import io
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

import layerif
from layerif.artifacts import Fingerprint
from layerif.core.checkpoint import resumable
from layerif.data import Example, load_corpus
from layerif.data.chunks import cut, draw
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model

COMPLETION = 16
VALIDATION = 20
CURVES = ("samples", "rank", "length", "layers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 200, 400, 800, 1600, 3200])
    parser.add_argument("--repeats", type=int, default=1, help="the least of so many is printed")
    options = parser.parse_args()
    model, tokenizer = open_model(options.model)
    print(
        f"{options.model}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{platform.machine()}; {VALIDATION} validation samples"
    )
    layers = find_decoder_layers(model).modules
    cases: dict[str, Iterator[tuple[int, dict[str, int]]]] = {
        "samples": ((n, {"samples": n, "length": 32}) for n in options.samples),
        "rank": ((r, {"samples": 100, "length": 32, "rank": r}) for r in (2, 4, 8, 16, 32, 64)),
        "length": ((t, {"samples": 12800 // t, "length": t}) for t in (32, 64, 128, 256, 512)),
        "layers": (
            (count, {"samples": 100, "length": 32, "layers": count})
            for count in (len(layers) // 6 * part for part in range(1, 7))
        ),
    }
    measure(model, tokenizer, samples=20, length=32)  # not counted: first touch of the weights
    for curve in options.curves:
        print(f"{curve:>8} {'tokens':>8} {'s':>8} {'tokens/s':>9} {'gradients, GB':>14}")
        for value, case in cases[curve]:
            found = [measure(model, tokenizer, **case) for _ in range(options.repeats)]
            seconds, tokens, kept = min(found)
            print(
                f"{value:8} {tokens:8,} {seconds:8.1f} {tokens / seconds:9.0f} {kept / 1e9:14.2f}",
                flush=True,
            )


def measure(
    model: Any,
    tokenizer: Any,
    *,
    samples: int,
    length: int,
    rank: int = 8,
    layers: int | None = None,
) -> tuple[float, int, int]:
    """Seconds of one scoring, its tokens, and the bytes of gradients that it keeps."""
    pieces = examples(tokenizer, samples + VALIDATION, length)
    whole = model.model.layers
    if layers is not None:
        model.model.layers, model.config.num_hidden_layers = whole[:layers], layers
    wanted = Fingerprint(model="", data="", options={})
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            began = time.perf_counter()
            with resumable(Path(folder) / "run", wanted) as steps:
                layerif.score(
                    model,
                    tokenizer,
                    pieces[VALIDATION:],
                    pieces[:VALIDATION],
                    rank=rank,
                    steps=steps,
                )
            seconds = time.perf_counter() - began
        outs = sum(p.out_features for p in find_decoder_layers(model).projections)
    finally:
        model.model.layers, model.config.num_hidden_layers = whole, len(whole)
    return seconds, len(pieces) * length, samples * outs * rank * 4


def examples(tokenizer: Any, count: int, length: int) -> Sequence[Example]:
    """So many samples of about that many tokens each."""
    corpus = load_corpus("python-docs")
    chunks = cut(tokenizer, corpus.text("calibration"), length)
    # What a sample says changes no cost, so the text may serve again.
    found = (draw(chunks, min(count, len(chunks)), seed=0) * (count // len(chunks) + 1))[:count]
    return [
        Example(
            *(
                tokenizer.decode(ids)
                for ids in (c.input_ids[:-COMPLETION], c.input_ids[-COMPLETION:])
            )
        )
        for c in found
    ]


if __name__ == "__main__":
    main()
