"""What evaluation, scoring, marginal allocation and fine-tuning take beside a model's weights.

On random models of small bodies whose vocabularies differ. Each run is a process of its own, as its
peak is of the whole process; what was resident before the model was opened, and its weights, are
taken off. `--slice-bytes` compares losses in slices with those of whole batches (a large number).

    python benchmarks/slices.py --vocabularies 49152 262144 --slice-bytes 134217728 100000000000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from scoring_memory import peak_gigabytes
from transformers import AutoModelForCausalLM, LlamaConfig

from layerif import likelihood
from layerif.data.batching import Encoded, collate, pack
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.subspaces.full import FullWeights
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers

LENGTH = 512
KINDS = ("evaluate", "score", "marginal", "finetune")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49152, 262144])
    parser.add_argument("--slice-bytes", type=int, nargs="+", default=[likelihood.SLICE_BYTES])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1, help="of each run, alternating")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        made(int(Path(options.make).name)).save_pretrained(options.make)
        return
    if options.one:
        print(json.dumps(one(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in options.vocabularies:
            path = Path(folder) / str(vocabulary)
            # In a process of its own: Linux counts a parent's peak as its children's.
            subprocess.run([sys.executable, __file__, f"--make={path}"], check=True)
            for kind in options.kinds:
                report(options, path, kind)


def report(options: argparse.Namespace, path: Path, kind: str) -> None:
    """Run one kind of work with each size of a slice, in turns, and print what each took."""
    found: dict[int, list[dict[str, float]]] = {size: [] for size in options.slice_bytes}
    for _ in range(options.repeats):
        for size, runs in found.items():
            own = [f"--one={path}", f"--slice-bytes={size}", f"--kinds={kind}"]
            command = [sys.executable, __file__, *sys.argv[1:], *own]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    for size, runs in found.items():
        seconds = np.median([run["seconds"] for run in runs])
        beside = max(run["beside"] for run in runs)
        print(
            f"{path.name:>7} {kind:9} slices of {size / 2**20:9,.0f} MiB: {beside:5.2f} GB beside "
            f"{runs[0]['weights']:.2f} GB of weights; {seconds:6.2f} s a batch",
            flush=True,
        )


def made(vocabulary: int) -> Any:
    """A random model of a small body."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=10,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config)


def one(options: argparse.Namespace) -> dict[str, float]:
    """GB and seconds of one kind of work, in this process."""
    likelihood.SLICE_BYTES = options.slice_bytes[0]
    before = psutil.Process().memory_info().rss / 1e9
    model = AutoModelForCausalLM.from_pretrained(options.one).eval()
    weights = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    draw = np.random.default_rng(0)
    rows = options.batches * options.batch_tokens // LENGTH
    drawn = draw.integers(0, model.config.vocab_size, (rows, LENGTH)).tolist()
    items = [Encoded(row, ids, 1) for row, ids in enumerate(drawn)]
    batches = [collate(g, device=torch.device("cpu")) for g in pack(items, options.batch_tokens)]
    began = time.perf_counter()
    WORK[options.kinds[0]](model, batches)
    seconds = (time.perf_counter() - began) / len(batches)
    beside = peak_gigabytes() - before - weights
    return {"seconds": seconds, "beside": beside, "weights": weights}


@torch.inference_mode()
def evaluated(model: Any, batches: list[Any]) -> None:
    for batch in batches:
        likelihood.token_losses(model, batch)


def scored(model: Any, batches: list[Any]) -> None:
    projections = find_decoder_layers(model).projections
    matrices = FreshLora(8, 16.0, 0).matrices(projections)
    with frozen(model), PerSampleGradients(model, projections, matrices) as per_sample:
        for batch in batches:
            per_sample(batch)


def sensed(model: Any, batches: list[Any]) -> None:
    projections = find_decoder_layers(model).projections
    matrices = FullWeights().matrices(projections)
    weights = [projection.weight.detach().flatten() for projection in projections]
    with frozen(model), PerSampleGradients(model, projections, matrices) as per_sample:
        for batch in batches:
            per_sample.visit(batch, lambda row, gradients: gradients.times(weights[row]))


def trained(model: Any, batches: list[Any]) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")).train()
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad])
    for batch in batches:
        likelihood.token_losses(model, batch, through=wrapped).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


WORK = dict(zip(KINDS, (evaluated, scored, sensed, trained), strict=True))

if __name__ == "__main__":
    main()
