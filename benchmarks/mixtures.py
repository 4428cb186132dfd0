"""A mixture of experts and a hybrid, each beside a dense model of as many active weights.

Random models with a small vocabulary and a token for each byte: a mixture of 1B weights (16 layers
of 32 experts, four of them for a token), a hybrid of 0.5B (three layers of linear attention to one
of full attention), and Llamas of the same width and depth whose MLP has what the others use for a
token. Each kind of work on each model is a process of its own, with its seconds, wall clock and
processor, and the peak of its memory above the opened model. Ratios are to the dense model.

    OMP_NUM_THREADS=1 python benchmarks/mixtures.py --out docs/data/mixtures.json
    OMP_NUM_THREADS=1 python benchmarks/mixtures.py --models mixture --work score --profile 40
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from scoring_memory import peak_gigabytes

from layerif.compress.pruning.runner import prune
from layerif.data import load_calibration, load_task
from layerif.influence.doctor import examine
from layerif.influence.options import ScoreOptions
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model
from layerif.search.searching import search_plan
from layerif.workflows.stages import score_into

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
TWINS = {"mixture": "dense to the mixture", "hybrid": "dense to the hybrid"}
MODELS = [name for pair in TWINS.items() for name in pair]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--work", nargs="+", default=list(WORK))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, help="of each model, instead of 16 and 24")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--train-samples", type=int, default=16)
    parser.add_argument("--validation-samples", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=16, help="of 256 tokens, for pruning")
    parser.add_argument("--repeats", type=int, default=1, help="of each run; the least is taken")
    parser.add_argument("--folder", type=Path, help="where models are made and kept")
    parser.add_argument("--machine", default="", help="what to say of the machine")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--profile", type=int, help="so many functions by their own seconds")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(Path(options.make), options)
    elif options.one:
        print(json.dumps(one(Path(options.one), options)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            everything(options, options.folder or Path(folder))


def everything(options: argparse.Namespace, folder: Path) -> None:
    """Each kind of work on each model, models in turn; figures are written as they come."""
    rows: dict[str, dict[str, Any]] = {}
    for work in options.work:
        for name in options.models:
            path = folder / f"{name.replace(' ', '-')}-{options.layers}-{options.experts}"
            if not path.exists():
                # In a process of its own: Linux counts a parent's peak as its children's.
                called(f"--make={path}")
            runs = []
            for _ in range(options.repeats):
                printed = called(f"--one={path}", f"--work={work}")
                *before, last = printed.splitlines()
                print(*before, sep="\n", end="\n" if before else "")
                runs.append(json.loads(last))
            least = {key: min(run[key] for run in runs) for key in runs[0]}
            rows.setdefault(name, {})[work] = least
            print(name, work, *(f"{k} {v:.2f}" for k, v in least.items()), sep="  ", flush=True)
            if options.out is not None:
                write(options, rows)
    print(table(rows), end="")


def write(options: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> None:
    """The figures of this command into the file, beside those of other commands."""
    runs = json.loads(options.out.read_text()) if options.out.exists() else {}
    command = " ".join(["python", "benchmarks/mixtures.py", *sys.argv[1:]])
    runs[command] = {
        "date": date.today().isoformat(),
        "machine": options.machine,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[1],
        "torch": torch.__version__,
        "rows": rows,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(runs, indent=1) + "\n")


def called(*own: str) -> str:
    """What this script prints in a process of its own."""
    # Argparse takes the last of an option that is given twice.
    command = [sys.executable, __file__, *sys.argv[1:], *own]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Wall-clock and processor seconds and gigabytes, and what they are of the dense model's."""
    lines = ["| | model | seconds | of the processor | times | memory | times |\n"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |\n")
    for name, dense in TWINS.items():
        for work, its in rows.get(name, {}).items():
            for each, own in ((name, its), (dense, rows.get(dense, {}).get(work))):
                if own is None:
                    continue
                times, memory = "", ""
                if each == name and (other := rows.get(dense, {}).get(work)):
                    times = f"**{own['cpu'] / other['cpu']:.2f}**"
                    memory = f"{own['memory'] / other['memory']:.2f}"
                lines.append(
                    f"| {work} | {each} | {own['seconds']:.1f} | {own['cpu']:.1f} | {times} | "
                    f"{own['memory']:.2f} GB | {memory} |\n"
                )
    return "".join(lines)


def make(path: Path, options: argparse.Namespace) -> None:
    """A random model and its tokenizer in a folder."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3_5TextConfig, Qwen3MoeConfig

    from helpers.tiny import tiny_tokenizer

    torch.manual_seed(0)
    name = next(n for n in MODELS if path.name.startswith(n.replace(" ", "-") + "-"))
    layers = options.layers or (16 if "mixture" in name else 24)
    shape = {
        "vocab_size": 260,
        "hidden_size": 1024,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    linear = {"linear_num_value_heads": 16, "linear_num_key_heads": 16}
    configs: dict[str, Callable[[], Any]] = {
        "mixture": lambda: Qwen3MoeConfig(
            **shape,
            num_experts=options.experts,
            num_experts_per_tok=4,
            moe_intermediate_size=640,
            norm_topk_prob=True,
        ),
        TWINS["mixture"]: lambda: LlamaConfig(**shape, intermediate_size=4 * 640),
        "hybrid": lambda: Qwen3_5TextConfig(**shape, **linear, intermediate_size=3584),
        # Its attention is smaller than linear attention, and its MLP larger by as much.
        TWINS["hybrid"]: lambda: LlamaConfig(**shape, intermediate_size=5632),
    }
    torch.set_default_dtype(getattr(torch, options.dtype))
    model = AutoModelForCausalLM.from_config(configs[name]())
    path.mkdir(parents=True)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    used = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name}: {used / 1e6:.0f}M weights", file=sys.stderr)


def one(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds and GB of one kind of work, in this process."""
    model, tokenizer = open_model(path, dtype=options.dtype)
    # Reads every weight, which until then may not be in memory at all.
    sum(float(p.detach().sum()) for p in model.parameters())
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 8, dtype=torch.int64))
    base = peak_gigabytes()
    profile = cProfile.Profile() if options.profile else None
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    if profile:
        profile.enable()
    WORK[options.work[0]](model, tokenizer, options)
    if profile:
        profile.disable()
    after = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "seconds": time.perf_counter() - began,
        "cpu": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "memory": peak_gigabytes() - base,
        "weights": sum(p.numel() for p in model.parameters()) / 1e9,
        "projections": len(find_decoder_layers(model).projections),
    }
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(options.profile)
    return found


def samples(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    task = load_task("agreement")
    train = task.sample("train", options.train_samples, seed=0)
    return task, train, task.sample("validation", options.validation_samples, seed=0)


def examined(model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    _, train, validation = samples(options)
    found = examine(model, tokenizer, train, validation)
    if not found.ok:
        print(*(check.detail for check in found.checks if check.ok is False), file=sys.stderr)


def scored(model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    task, train, validation = samples(options)
    with tempfile.TemporaryDirectory() as folder:
        score_into(
            Path(folder) / "run",
            model,
            tokenizer,
            task,
            train=train,
            validation=validation,
            options=ScoreOptions(),
        )


def text(tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What is calibrated on."""
    return {
        "tokenizer": tokenizer,
        "calibration": load_calibration("python-docs"),
        "calibration_samples": options.chunks,
        "context_length": 256,
    }


def pruned(method: str) -> Callable[[Any, Any, argparse.Namespace], None]:
    def run(model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
        prune(model, 0.5, method=method, **text(tokenizer, options))

    return run


def searched(model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    few = {"rounds": 1, "tokens": 2048, "held_out_tokens": 2048}
    search_plan(model, 0.5, **few, **text(tokenizer, options))


WORK: dict[str, Callable[[Any, Any, argparse.Namespace], None]] = {
    "doctor": examined,
    "score": scored,
    "magnitude": pruned("magnitude"),
    "wanda": pruned("wanda"),
    "sparsegpt": pruned("sparsegpt"),
    "search": searched,
}

if __name__ == "__main__":
    main()
