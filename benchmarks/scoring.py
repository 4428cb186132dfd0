"""Scoring against its floor: the bare forward and backward passes over the same batches.

The floor runs each batch forward and back from the loss to the input embeddings, with the same
dtype, threads and logits only where there is a label, and keeps nothing. Scoring is all that
`layerif score` does with an open model: it hashes the weights, makes the per-sample gradients of
every projection, keeps each batch on disk, solves, and saves. Both are timed in turn, in one
process; the least of several pairs is compared.

    python benchmarks/scoring.py --task mrpc --data-dir DIR --dtype bfloat16
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from layerif.data import load_task
from layerif.data.batching import collate, pack
from layerif.data.tokenizing import encode
from layerif.influence.gradients import frozen
from layerif.influence.options import ScoreOptions
from layerif.likelihood import row_sums, token_losses
from layerif.model.opening import open_model
from layerif.workflows.stages import score_into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="agreement")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--train-samples", type=int, default=200)
    parser.add_argument("--validation-samples", type=int, default=50)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where runs are written, instead of /tmp")
    options = parser.parse_args()

    task = load_task(options.task, data_dir=options.data_dir)
    train = task.sample("train", options.train_samples, seed=0)
    validation = task.sample("validation", options.validation_samples, seed=0)
    model, tokenizer = open_model(options.model, dtype=options.dtype)
    device = next(model.parameters()).device
    groups = [
        batch
        for examples in (validation, train)
        for batch in pack(
            encode(tokenizer, [(e.prompt, e.completion) for e in examples], 512)[0],
            options.batch_tokens,
        )
    ]
    tokens = sum(len(item.input_ids) for group in groups for item in group)

    def floor() -> None:
        with frozen(model):
            for group in groups:
                batch = collate(group, device=device)
                losses = row_sums(token_losses(model, batch), batch) / batch.counts
                losses.sum().backward()

    def scoring() -> None:
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            score_into(
                Path(folder) / "run",
                model,
                tokenizer,
                task,
                train=train,
                validation=validation,
                options=ScoreOptions(batch_tokens=options.batch_tokens),
            )

    floor()  # not counted: first touch of the weights and of the allocator
    base = peak_gigabytes()
    floors, scorings = [], []
    for _ in range(options.pairs):
        floors.append(seconds(floor))
        scorings.append(seconds(scoring))
    ratios = [ours / bare for ours, bare in zip(scorings, floors, strict=True)]
    print(
        f"{options.model}, {task.name}, {len(train)} + {len(validation)} samples, "
        f"{tokens:,} tokens, {options.dtype}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    print(f"floor    min {min(floors):7.2f} s   {tokens / min(floors):6.0f} tokens/s")
    print(f"scoring  min {min(scorings):7.2f} s   {tokens / min(scorings):6.0f} tokens/s")
    print(
        f"ratio of the minima {min(scorings) / min(floors):.2f}; pair by pair "
        f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}"
    )
    print(
        f"peak memory of the process: floor {base:.2f} GB, with scoring {peak_gigabytes():.2f} GB"
    )


def seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_gigabytes() -> float:
    """Largest resident size so far (Linux counts in KiB, macOS in bytes)."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main()
