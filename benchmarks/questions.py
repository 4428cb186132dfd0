"""What each part of the quadratic question is worth: criteria, labels, units.

Each variant is a plan of the same total from one pass on the model as it is, and is judged by the
loss of 8,192 tokens of validation text that nothing else reads. The labels are those of the text,
or drawn from the model at each position (the true Fisher information). Other powers of the
predicted losses weigh large ones more, or less. Test text is not read.

    python benchmarks/questions.py --data-dir DIR --model smollm2 --kind bits
    python benchmarks/questions.py --data-dir DIR --model gemma3-270m --kind sparsity
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.compress.registry import COMPRESSORS
from layerif.core.files import read_json, write_json
from layerif.data import load_corpus
from layerif.data.batching import Batch, collate, pack
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import input_device, open_model
from layerif.search.quadratic import Expansion, expansion
from layerif.search.registry import KINDS, options_of
from layerif.search.slopes import BACKWARD_TOKENS, mean_loss
from layerif.search.texts import texts_for, up_to

TOTALS = {"bits": 3.0, "sparsity": 0.5}
METHODS = {
    "bits": {"method": "rtn", "group_size": 32, "offset": "minimum"},
    "sparsity": {"method": "wanda"},
}
UNITS = {"bits": ("fused", "layer"), "sparsity": ("layer",)}
POWERS = (0.8, 1.25)
TOKENS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--kind", choices=TOTALS, default="bits")
    parser.add_argument("--corpus", default="wikitext2")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, help="JSON file to put the figures into")
    options = parser.parse_args()
    kept = read_json(options.out, "figures") if options.out and options.out.is_file() else {}
    found = kept[f"{options.model}, {options.kind}"] = {}
    for name, loss in judged(options):
        found[name] = loss
        change = 100 * (math.exp(loss - found["uniform"]) - 1)
        print(f"{loss:8.4f} {change:+7.1f} %  {name}", flush=True)
        if options.out:
            write_json(options.out, kept)


def judged(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """The loss of each variant's plan, in nats a token; first the uniform and the dense one."""
    kind, total = options.kind, TOTALS[options.kind]
    model, tokenizer = open_model(options.model, dtype=options.dtype)
    layers = find_decoder_layers(model)
    search = options_of(kind)(**METHODS[kind])
    corpus = load_corpus(options.corpus, data_dir=options.data_dir)
    texts = texts_for(model, tokenizer, corpus, None, search, search.calibration_samples)
    device = input_device(model)
    batches = [collate(own, device=device).inputs for own in pack(texts.calibration, 2048, model)]
    units = KINDS.find(kind)(layers, total, search)
    items = up_to(texts.pool, TOKENS)
    with COMPRESSORS.find(kind)(model, layers, batches, search) as compressor:

        def loss(state: Any, of: Any = units) -> float:
            compressor.at(of.levels(state))
            return mean_loss(model, texts.held_out, batch_tokens=2048)

        def asked(batched: Any) -> Expansion:
            untouched, levels = units.untouched(), units.asked()
            changes = compressor.at(
                untouched,
                lambda row, unit: [unit.change(untouched[row], level) for level in levels[row]],
            )
            return expansion(model, changes, items, batch_tokens=BACKWARD_TOKENS, batched=batched)

        yield "uniform", loss(units.start())
        compressor.at(units.untouched())
        yield "dense", mean_loss(model, texts.held_out, batch_tokens=2048)
        given = asked(collate)
        for name, q in variants(given):
            yield name, loss(units.solved(q))
        for name in UNITS[kind]:
            of = KINDS.find(kind)(layers, total, search.but(granularity=name))
            yield f"diagonal, by {name}", loss(of.solved(given.diagonal), of)
        drawn = asked(Drawn(model))
        for name in ("diagonal", "token"):
            yield f"{name}, labels drawn", loss(units.solved(getattr(drawn, name)))


def variants(of: Expansion) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """(projections, levels) predicted losses, by what they are."""
    yield from ((name, getattr(of, name)) for name in ("diagonal", "token", "local", "first"))
    yield "first and diagonal", of.first + of.diagonal
    yield from ((f"diagonal to the power {power:g}", of.diagonal**power) for power in POWERS)


class Drawn:
    """Batches of texts whose labels are drawn from the model, each given the text before it."""

    def __init__(self, model: Any) -> None:
        self.model, self.generator = model, torch.Generator().manual_seed(0)

    @torch.no_grad()
    def __call__(self, items: Any, *, device: torch.device) -> Batch:
        batch = collate(items, device=device)
        logits = self.model(**batch.inputs).logits[batch.predicts].float().cpu()
        labels = torch.multinomial(logits.softmax(-1), 1, generator=self.generator)[:, 0]
        return replace(batch, targets=labels.to(batch.targets))


if __name__ == "__main__":
    main()
