"""From a model and samples to influences: layerif beside DataInf's published procedure.

Theirs: a PEFT LoRA on every projection, one sample a batch, full logits, a dictionary of gradients
for each sample, and the averaged engine (benchmarks/published_datainf.py). Ours: `layerif.score` in
memory.
Both see the same LoRA, so they have to come to the same numbers, which is checked; then each is
timed in turn, in one process. The last row is ours in bfloat16 beside theirs in float32.

    python benchmarks/published_end_to_end.py --task mrpc --data-dir DIR
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from published_datainf import averaged, collect

import layerif
from layerif.data import Example
from layerif.data.batching import Encoded
from layerif.data.tokenizing import encode
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers

RANK, ALPHA = 8, 16.0
TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="agreement")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--train-samples", type=int, default=200)
    parser.add_argument("--validation-samples", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    task = layerif.load_task(options.task, data_dir=options.data_dir)
    train = task.sample("train", options.train_samples, seed=0)
    validation = task.sample("validation", options.validation_samples, seed=0)
    precise, tokenizer = layerif.open_model(options.model)
    halved, _ = layerif.open_model(options.model, dtype="bfloat16")
    adapted = with_lora(layerif.open_model(options.model)[0])

    def published() -> np.ndarray:
        sides = [encoded(tokenizer, side) for side in (train, validation)]
        kept = [collect(adapted, side, loss_of) for side in sides]
        return np.stack([column.numpy() for column in averaged(*kept).values()])

    def ours(model: Any) -> np.ndarray:
        scores = layerif.score(
            model, tokenizer, train, validation, rank=RANK, alpha=ALPHA, keep="memory"
        )
        return scores.projection_influence

    print(
        f"{options.model}, {task.name}, {len(train)} + {len(validation)} samples, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    )
    sides = {
        "published, float32": published,
        "layerif, float32": lambda: ours(precise),
        "layerif, bfloat16": lambda: ours(halved),
    }
    best = dict.fromkeys(sides, float("inf"))
    found: dict[str, np.ndarray] = {}
    for _ in range(options.pairs):
        for name, run in sides.items():
            began = time.perf_counter()
            found[name] = run()
            best[name] = min(best[name], time.perf_counter() - began)
    theirs = found["published, float32"]
    for name, seconds in best.items():
        gap = np.abs(found[name] - theirs).max() / np.abs(theirs).max()
        ratio = best["published, float32"] / seconds
        print(f"{name:20} min {seconds:7.1f} s   {ratio:5.2f} times as fast   gap {gap:.1e}")
    gap = np.abs(found["layerif, float32"] - theirs).max() / np.abs(theirs).max()
    if gap > TOLERANCE:
        raise SystemExit(f"the numbers differ by {gap:.1e} of the largest influence")


def with_lora(model: Any) -> Any:
    """The model with a LoRA of which B alone is trained, its A being layerif's."""
    projections = find_decoder_layers(model).projections
    maps = [FreshLora(RANK, ALPHA).down(projection) for projection in projections]
    places = [projection.module for projection in projections]
    names = [name for name, module in model.named_modules() if module in set(places)]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)
    adapted = get_peft_model(model, config).eval()
    layers = [m for m in adapted.modules() if hasattr(m, "lora_A") and "default" in m.lora_A]
    for layer, down in zip(layers, maps, strict=True):
        layer.lora_A["default"].weight.data.copy_(down)
        layer.lora_A["default"].weight.requires_grad_(False)
    return adapted


def encoded(tokenizer: Any, examples: Sequence[Example]) -> Iterator[Encoded]:
    items, _ = encode(tokenizer, [(e.prompt, e.completion) for e in examples], 512)
    return iter(items)


def loss_of(model: Any, item: Encoded) -> torch.Tensor:
    ids = torch.tensor([item.input_ids])
    labels = ids.clone()
    labels[:, : item.start] = -100
    loss: torch.Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
    return loss


if __name__ == "__main__":
    main()
