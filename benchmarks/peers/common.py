"""What every peer is given: one model, one LoRA, the same samples. Needs torch and transformers.

`python benchmarks/peers.py --write FOLDER` makes the folder; nothing here imports layerif, so that
each peer runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

IGNORED = -100


class LoraLinear(nn.Module):
    """A frozen linear map with a LoRA beside it, whose B alone is trained."""

    def __init__(self, base: nn.Linear, down: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("down", down)
        self.up = nn.Linear(len(down), base.out_features, bias=False)
        self.scale = scale
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        reduced = nn.functional.linear(inputs, self.down)
        return self.base(inputs) + self.scale * self.up(reduced)


class Problem:
    """The model with its LoRA, and the samples padded on the right to one length.

    Attributes:
        model: every parameter frozen but the B of each projection.
        names: of these parameters, in the order of projections.
        train, validation: (n, T) tokens and (n, T) labels, -100 where there is none.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "problem.json").read_text())
        self.model = AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.model.requires_grad_(False)
        self.model.config.use_cache = False
        downs = load_file(folder / "lora.safetensors")
        self.names = []
        for path in about["projections"]:
            parent = self.model.get_submodule(path.rpartition(".")[0])
            adapted = LoraLinear(self.model.get_submodule(path), downs[path], about["scale"])
            adapted.up.weight.requires_grad_(True)
            setattr(parent, path.rpartition(".")[2], adapted)
            self.names.append(f"{path}.up.weight")
        self.damping = about["damping"]
        length = max(len(ids) for side in ("train", "validation") for ids, _ in about[side])
        self.train, self.validation = (
            _padded(about[side], length) for side in ("train", "validation")
        )

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean completion loss of one sample: (T, V) logits and (T,) labels."""
        nats = nn.functional.cross_entropy(
            logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum"
        )
        return nats / (labels[1:] != IGNORED).sum()


def _padded(samples: list[Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.zeros(len(samples), length, dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORED)
    for row, (ids, start) in enumerate(samples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    return tokens, labels


def run(solve: Callable[[Problem], torch.Tensor]) -> None:
    """Time `solve`, which gives (projections, n) or (n,) influence, and print it as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    problem = Problem(options.folder)
    began = time.perf_counter()
    found = solve(problem)
    seconds = time.perf_counter() - began
    save_file({"influence": found.double().contiguous()}, options.out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "peak_gigabytes": peak}))
