"""Wanda, SparseGPT and GPTQ beside llm-compressor's: the same chunks, in processes of their own.

Seconds are of compressing alone, from the dense model in memory to the compressed one; memory is
the peak of the process above the opened model. Both run 2,048 tokens at once. Said are the loss of
held-out chunks under either, and of pruning the weights that one makes zero and the other does not.
GPTQ rounds to 3 bits with zero points, in groups of 32 columns, in the order of the diagonal; the
ranges of groups are each package's own.

    python -m venv llmc && llmc/bin/pip install torch "llmcompressor==0.14.*"
    python benchmarks/llm_compressor.py --environment llmc --out /tmp/llmc --chunks 128
    python benchmarks/llm_compressor.py --environment llmc --out /tmp/llmc --methods gptq
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from layerif.calibration.text import drawn_chunks
from layerif.compress.pruning.runner import prune
from layerif.compress.quantization.runner import quantize
from layerif.data import load_corpus
from layerif.data.chunks import cut, draw
from layerif.evaluation.summed import summed_nats
from layerif.model.layers import find_decoder_layers
from layerif.model.modes import evaluation_mode
from layerif.model.opening import open_model

BATCH_TOKENS = 2048
HELD_OUT = 16
GRID = {"num_bits": 3, "group_size": 32, "symmetric": False}
PEER = Path(__file__).parent / "peers" / "llmcompressor_run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpus", default="python-docs")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--chunks", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--environment", type=Path, help="that llmcompressor is installed in")
    parser.add_argument("--out", type=Path, required=True, help="where model and weights are kept")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        ours(options)
        return
    model, tokenizer = open_model(options.model)
    corpus = load_corpus(options.corpus, data_dir=options.data_dir)
    layers = find_decoder_layers(model)
    chunks, _ = drawn_chunks(tokenizer, corpus, options.chunks, options.context_length, 0)
    paths = {module: name for name, module in model.named_modules()}
    model.save_pretrained(options.out / "model")
    tokenizer.save_pretrained(options.out / "model")
    problem = {
        "chunks": [chunk.input_ids for chunk in chunks],
        "batch": BATCH_TOKENS // options.context_length,
        "projections": [paths[p.module] for p in layers.projections],
        "grid": GRID,
    }
    (options.out / "problem.json").write_text(json.dumps(problem))
    print(
        f"{options.model}, {options.chunks} chunks of {options.context_length} tokens of "
        f"{options.corpus}, 50 % or 3 bits, float32, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    cold = draw(
        cut(tokenizer, corpus.text("calibration"), options.context_length),
        options.chunks + HELD_OUT,
        0,
    )[options.chunks :]
    for method in options.methods:
        commands = {
            "layerif": [sys.executable, *sys.argv, "--one", method],
            "llm-compressor": [
                *[options.environment / "bin" / "python", PEER, options.out],
                *[
                    "--method",
                    method,
                    "--out",
                    options.out / f"llm-compressor-{method}.safetensors",
                ],
            ],
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(options.pairs):
            for name, command in commands.items():
                said = subprocess.run(command, capture_output=True, text=True, check=False)
                if said.returncode:
                    raise SystemExit(f"{name}, {method}: {said.stderr[-3000:]}")
                runs[name].append(json.loads(said.stdout.splitlines()[-1]))
        for name, found in runs.items():
            loss = loss_of(model, layers, options.out / f"{name}-{method}.safetensors", cold, paths)
            print(
                f"{method:10} {name:15} {min(r['seconds'] for r in found):7.1f} s, peak "
                f"{max(r['peak_gigabytes'] for r in found):5.2f} GB above the model, held-out "
                f"loss {loss:.4f}",
                flush=True,
            )
        if method != "gptq":
            compare(*(load_file(options.out / f"{name}-{method}.safetensors") for name in commands))


def loss_of(model: Any, layers: Any, path: Path, chunks: list[Any], paths: dict[Any, str]) -> float:
    """Nats a token under the weights of a file."""
    weights = load_file(path)
    with torch.no_grad():
        for projection in layers.projections:
            projection.weight.copy_(weights[paths[projection.module]])
    with evaluation_mode(model):
        nats = summed_nats(
            model, chunks, batch_tokens=BATCH_TOKENS, doing="held-out text", name_of=str
        )
    return float(nats.sum()) / sum(chunk.scored for chunk in chunks)


def compare(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """How many zeros either has, and how far they are the same."""
    total = sum(weight.numel() for weight in first.values())
    zeros = [
        sum(int((w == 0).sum()) for w in weights.values()) / total for weights in (first, second)
    ]
    apart = [float(((first[k] == 0) != (second[k] == 0)).double().mean()) for k in first]
    print(
        f"           zeros {zeros[0]:.4%} and {zeros[1]:.4%}; zero in one alone: first projection "
        f"{apart[0]:.4%}, most in one {max(apart):.4%}, of all "
        f"{sum(a * first[k].numel() for a, k in zip(apart, first, strict=True)) / total:.4%}",
        flush=True,
    )


def ours(options: argparse.Namespace) -> None:
    """One run of layerif's, in this process."""
    model, tokenizer = open_model(str(options.out / "model"))
    corpus = load_corpus(options.corpus, data_dir=options.data_dir)
    sum(float(p.sum()) for p in model.parameters())  # reads every weight
    base = resident_gigabytes()
    began = time.perf_counter()
    text = {
        "tokenizer": tokenizer,
        "calibration": corpus,
        "calibration_samples": options.chunks,
        "context_length": options.context_length,
        "batch_tokens": BATCH_TOKENS,
    }
    if options.one == "gptq":
        grid = {"group_size": GRID["group_size"], "symmetric": GRID["symmetric"]}
        quantize(model, GRID["num_bits"], **grid, **text)
    else:
        prune(model, 0.5, method=options.one, **text)
    seconds = time.perf_counter() - began
    peak = peak_gigabytes() - base
    paths = {module: name for name, module in model.named_modules()}
    weights = {
        paths[p.module]: p.weight.contiguous() for p in find_decoder_layers(model).projections
    }
    save_file(weights, options.out / f"layerif-{options.one}.safetensors")
    print(json.dumps({"seconds": seconds, "peak_gigabytes": peak}))


def resident_gigabytes() -> float:
    """What is in memory now; the peak may be that of opening the model."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
