"""Pruning and quantising against their floor, two bare passes through the layers; and kernels.

The floor runs every calibration chunk through every decoder layer twice, as pruning layer by layer
must: once for the layer's statistics and once for what the layer hands on. Each method is timed in
turn with it, in one process, from the dense model to the changed one; the least of several runs is
compared. Peak memory is that of a process of its own for each (`--memory`), above what the open
model takes. The kernels choose half of the weights of each shape, and are held against a stable
sort of the same saliencies.

    python benchmarks/pruning.py --chunks 32 --pairs 3
    python benchmarks/pruning.py --chunks 32 --methods rtn gptq --bits 4 --group-size 32
    python benchmarks/pruning.py --kernels
    python benchmarks/pruning.py --chunks 32 --memory
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.selection import group_mask, smallest, smallest_by_row
from layerif.compress.pruning.targets import Pattern
from layerif.compress.quantization.runner import quantize
from layerif.data import load_calibration
from layerif.data.batching import accepted, collate, pack
from layerif.data.chunks import cut, draw
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import input_device, open_model

SHAPES = [(192, 576), (576, 576), (1536, 576), (576, 1536), (4096, 4096)]
METHODS = ["magnitude", "wanda", "sparsegpt"]
QUANTIZERS = ["rtn", "gptq"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--calibration", default="python-docs")
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--nm", help="a pattern such as 2:4, in the place of 50 %% unstructured")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *QUANTIZERS], default=METHODS)
    parser.add_argument("--bits", type=int, default=4, help="of rtn and gptq")
    parser.add_argument("--group-size", type=int, default=32, help="of rtn and gptq")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--kernels", action="store_true", help="the mask kernels alone")
    parser.add_argument("--memory", action="store_true", help="peak memory alone")
    parser.add_argument("--one", choices=["floor", *METHODS, *QUANTIZERS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kernels:
        kernels()
    elif options.one:
        peak_of(options)
    elif options.memory:
        for name in ("floor", *options.methods):
            command = [sys.executable, *sys.argv, "--one", name]
            print(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout, end=""
            )
    else:
        times(options)


def times(options: argparse.Namespace) -> None:
    model, tokenizer = open_model(options.model, dtype=options.dtype)
    dense = [p.weight.clone() for p in find_decoder_layers(model).projections]
    tokens = options.chunks * options.context_length
    floors: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in options.methods}
    errors: dict[str, float] = {}
    floor(model, tokenizer, options)  # not counted: first touch of the weights
    for _ in range(options.pairs):
        for name in options.methods:
            if name != "magnitude":
                floors.append(seconds(lambda: floor(model, tokenizer, options)))
            began = time.perf_counter()
            manifest = run(model, tokenizer, name, options)
            found[name].append(time.perf_counter() - began)
            known = [m.error for m in manifest.modules if m.error is not None]
            if known:
                errors[name] = statistics.median(known)
            for projection, weight in zip(
                find_decoder_layers(model).projections, dense, strict=True
            ):
                projection.weight.copy_(weight)
    print(
        f"{options.model}, {options.chunks} chunks of {options.context_length} tokens, "
        f"{options.nm or '50 %'} or {options.bits} bits, {options.dtype}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    )
    bare = min(floors)
    print(f"two passes  min {bare:7.2f} s   {2 * tokens / bare:6.0f} tokens/s")
    for name, own in found.items():
        error = f"   median error {errors[name]:.4f}" if name in errors else ""
        print(f"{name:10}  min {min(own):7.2f} s   ratio {min(own) / bare:.2f}{error}")


@torch.no_grad()
def floor(model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    """Every chunk through every decoder layer twice, with nothing watching."""
    text = load_calibration(options.calibration).text("calibration")
    chunks = draw(cut(tokenizer, text, options.context_length), options.chunks, 0)
    batches = [
        collate(items, device=input_device(model)).inputs
        for items in pack(chunks, options.batch_tokens)
    ]
    decoder = model.base_model
    for _ in range(2):
        for inputs in batches:
            decoder(**accepted(decoder.forward, inputs), use_cache=False)


def run(model: Any, tokenizer: Any, name: str, options: argparse.Namespace) -> Any:
    if name in QUANTIZERS:
        return quantize(
            model,
            options.bits,
            tokenizer=tokenizer,
            calibration=load_calibration(options.calibration),
            method=name,
            group_size=options.group_size,
            calibration_samples=options.chunks,
            context_length=options.context_length,
            batch_tokens=options.batch_tokens,
        )
    return prune(
        model,
        None if options.nm else 0.5,
        tokenizer=tokenizer,
        calibration=load_calibration(options.calibration),
        method=name,
        nm=options.nm,
        calibration_samples=options.chunks,
        context_length=options.context_length,
        batch_tokens=options.batch_tokens,
    )


def peak_of(options: argparse.Namespace) -> None:
    model, tokenizer = open_model(options.model, dtype=options.dtype)
    # Reads every weight, which until then may not be in memory at all.
    sum(float(p.sum()) for p in model.parameters())
    base = peak_gigabytes()
    if options.one == "floor":
        floor(model, tokenizer, options)
    else:
        run(model, tokenizer, options.one, options)
    print(f"{options.one:10}  peak {peak_gigabytes() - base:.2f} GB above {base:.2f} GB")


def kernels() -> None:
    """Milliseconds for one matrix: half of all weights, half of each row, two of each four."""
    generator = torch.Generator().manual_seed(0)
    print(f"{torch.get_num_threads()} threads; kernel, sort, ratio")
    for rows, columns in SHAPES:
        values = torch.randn(rows, columns, generator=generator).abs()
        half = values.numel() // 2
        compared("all", values, partial(smallest, values, half), values.view(1, -1))
        compared("by row", values, partial(smallest_by_row, values, half), values)
        compared("2:4", values, partial(group_mask, values, Pattern(2, 4)), values.view(-1, 4))


def compared(
    name: str, values: torch.Tensor, kernel: Callable[[], torch.Tensor], rows: torch.Tensor
) -> None:
    """One line: a kernel against the sort of `rows` that gives the same mask."""
    by_sort = partial(sorted_mask, rows, values.numel() // 2)
    assert torch.equal(kernel().view(-1), by_sort().view(-1))
    ours = 1e3 * min(seconds(kernel) for _ in range(10))
    theirs = 1e3 * min(seconds(by_sort) for _ in range(5))
    shape = f"{values.shape[0]:5} x {values.shape[1]:5}"
    print(f"{shape}  {name:7} {ours:8.2f} ms {theirs:8.2f} ms {theirs / ours:6.1f}")


def sorted_mask(values: torch.Tensor, count: int) -> torch.Tensor:
    """The same choice by a stable sort of every row, of a count that the rows share evenly."""
    order = values.argsort(dim=1, stable=True)
    mask = torch.zeros_like(values, dtype=torch.bool)
    return mask.scatter_(1, order[:, : count // len(values)], True)


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_gigabytes() -> float:
    """Largest resident size so far (Linux counts in KiB, macOS in bytes)."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main()
