"""llm-compressor's Wanda, SparseGPT or GPTQ, on the chunks of `problem.json`.

Needs llmcompressor 0.14; nothing here imports layerif.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

MODIFIERS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier, "gptq": GPTQModifier}


def resident_gigabytes() -> float:
    """What is in memory now; the peak may be that of opening the model."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", choices=MODIFIERS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    problem = json.loads((options.folder / "problem.json").read_text())
    rows = problem["chunks"]
    how: dict[str, Any] = {"sparsity": 0.5, "targets": ["Linear"]}
    if options.method == "gptq":
        weights = {**problem["grid"], "type": "int", "strategy": "group"}
        how = {"config_groups": {"all": {"targets": ["Linear"], "weights": weights}}}
    model = AutoModelForCausalLM.from_pretrained(options.folder / "model", dtype=torch.float32)
    sum(float(p.sum()) for p in model.parameters())  # reads every weight
    base = resident_gigabytes()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    began = time.perf_counter()
    oneshot(
        model=model,
        dataset=data,
        recipe=[MODIFIERS[options.method](**how, ignore=["lm_head"])],
        batch_size=problem["batch"],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
        max_seq_length=len(rows[0]),
        pipeline="sequential",
    )
    seconds = time.perf_counter() - began
    peak = peak_gigabytes() - base
    paths = problem["projections"]
    weights = {path: model.get_submodule(path).weight.data.contiguous() for path in paths}
    save_file(weights, options.out)
    print(json.dumps({"seconds": seconds, "peak_gigabytes": peak}))


if __name__ == "__main__":
    main()
