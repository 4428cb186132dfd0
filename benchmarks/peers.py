"""layerif beside libraries of influence functions, each in an environment of its own.

All see one model with one LoRA (rank 8 on every projection, B = 0), the same samples, and the same
lambda in every block. What each gives is compared with layerif's, and the seconds are of its own
work alone: opening the model is left out on both sides.

    python -m venv dattri && dattri/bin/pip install torch transformers dattri==0.3.0
    python -m venv pydvl && pydvl/bin/pip install torch transformers "pyDVL[influence]==0.10.0"
    python -m venv kronfluence && kronfluence/bin/pip install torch transformers kronfluence==1.0.1
    kronfluence/bin/pip uninstall torchvision
    python benchmarks/peers.py --environments . --out /tmp/peers
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

import layerif
from layerif.core.choices import BlockGranularity
from layerif.data.tokenizing import encode
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers

RANK, ALPHA = 8, 16.0
# lambda of every block: peers take one number for all. It is near what the rule gives in the mean.
DAMPING = 1e-3
HERE = Path(__file__).parent / "peers"
# Environment, script, and the estimator and block of ours that compute the same.
PEERS: dict[str, tuple[str, str, str, BlockGranularity]] = {
    "dattri DataInf": ("dattri", "dattri_datainf.py", "datainf", "matrix"),
    "pyDVL harmonic mean": ("pydvl", "pydvl_harmonic.py", "datainf", "layer"),
    "kronfluence gradient dot": ("kronfluence", "kronfluence_dot.py", "grad_dot", "matrix"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="agreement")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--train-samples", type=int, default=40)
    parser.add_argument("--validation-samples", type=int, default=10)
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the problem is written")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    task = layerif.load_task(options.task, data_dir=options.data_dir)
    train = task.sample("train", options.train_samples, seed=0)
    validation = task.sample("validation", options.validation_samples, seed=0)
    model, tokenizer = layerif.open_model(options.model)
    write(options.out, model, tokenizer, train, validation)
    print(
        f"{options.model}, {task.name}, {len(train)} + {len(validation)} samples, float32, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    )
    for name in options.peers:
        environment, script, estimator, block = PEERS[name]
        python = options.environments / environment / "bin" / "python"
        ours, theirs = [], []
        for _ in range(options.pairs):
            began = time.perf_counter()
            scores = layerif.score(
                model,
                tokenizer,
                train,
                validation,
                rank=RANK,
                alpha=ALPHA,
                estimator=estimator,
                damping_value=DAMPING,
                block=block,
                keep="memory",
            )
            ours.append(time.perf_counter() - began)
            found = options.out / f"{environment}.safetensors"
            said = subprocess.run(
                [python, HERE / script, options.out, "--out", found],
                capture_output=True,
                text=True,
                check=False,
            )
            if said.returncode:
                break
            theirs.append(json.loads(said.stdout.splitlines()[-1]))
        if not theirs:
            print(f"{name}: it ended with\n{said.stderr[-2000:]}", flush=True)
            continue
        seconds = min(run["seconds"] for run in theirs)
        values = load_file(found)["influence"]
        expected = {
            values.shape: scores.influence.sum(0),
            scores.influence.shape: scores.influence,
            scores.projection_influence.shape: scores.projection_influence,
        }[values.shape]
        gap = np.abs(values - expected).max() / np.abs(expected).max()
        print(
            f"{name:26} {seconds:7.1f} s, {theirs[-1]['peak_gigabytes']:.1f} GB; layerif "
            f"{min(ours):6.1f} s: {seconds / min(ours):5.1f} times as fast; gap {gap:.1e} of the "
            "largest influence",
            flush=True,
        )


def write(
    folder: Path,
    model: Any,
    tokenizer: Any,
    train: Sequence[layerif.Example],
    validation: Sequence[layerif.Example],
) -> None:
    """The problem as files that need no layerif to be read."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "model")
    paths = {module: name for name, module in model.named_modules()}
    lora = FreshLora(RANK, ALPHA)
    projections = find_decoder_layers(model).projections
    downs = {paths[p.module]: lora.down(p) for p in projections}
    save_file(downs, folder / "lora.safetensors")
    sides = {"train": train, "validation": validation}
    tokens = {
        name: [
            (item.input_ids, item.start)
            for item in encode(tokenizer, [(e.prompt, e.completion) for e in side], 512)[0]
        ]
        for name, side in sides.items()
    }
    about = {
        "projections": list(downs),
        "scale": lora.scaling,
        "damping": DAMPING,
        **tokens,
    }
    (folder / "problem.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
