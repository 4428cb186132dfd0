"""Mixtures of LoRA experts beside the same mixture as a loop, and beside plain LoRA.

A step is a forward pass from the embeddings through the decoder layers and a backward pass to the
embeddings and to what is trained; the floor is the same with no adapter. The language-model head is
left out: it is the same for all. What a form adds is its step less the floor. All forms stand on
one frozen model, with the same values, and take turns in one process; the least seconds of the
processor of each are compared. The loops are those of moe_loops.py. Peak memory is that of a
process of its own for each form, above what the open model takes.

    OMP_NUM_THREADS=1 python benchmarks/moe.py
    OMP_NUM_THREADS=1 python benchmarks/moe.py --dtype bfloat16 --rows 1 --length 32
    OMP_NUM_THREADS=1 python benchmarks/moe.py --generate 32
    OMP_NUM_THREADS=1 python benchmarks/moe.py --memory --length 256
"""

from __future__ import annotations

import argparse
import copy
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from moe_loops import DenseLoop, DispatchLoop
from peft import LoraConfig, get_peft_model

from layerif.adapters import LoraMoeConfig, LoraMoeLinear
from layerif.model.opening import open_model

LOOPS = {"dense loop": DenseLoop, "dispatch loop": DispatchLoop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--generate", type=int, help="new tokens, in the place of steps")
    parser.add_argument("--memory", action="store_true", help="peak memory of a step alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        peak_of(options)
        return
    print(
        f"{options.model}, {options.experts} experts, top {options.top_k}, rank {options.rank}, "
        f"{options.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{platform.machine()}"
    )
    if options.memory:
        memory(options)
    elif options.generate:
        generation(options)
    else:
        for dropout in options.dropout:
            steps(options, dropout)


def forms(options: argparse.Namespace) -> list[str]:
    return ["floor", "stacked", *LOOPS, *(f"LoRA {r}" for r in ranks(options))]


def ranks(options: argparse.Namespace) -> list[int]:
    """Plain LoRA's: of all experts together, and of those that a token is sent to."""
    return [options.experts * options.rank, options.top_k * options.rank]


def formed(base: Any, name: str, dropout: float, options: argparse.Namespace) -> Any:
    """A model in the given form, on the weights of `base`, and trained in B, A and routers."""
    model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    if name == "floor":
        return model.requires_grad_(False).train()
    torch.manual_seed(0)
    config: Any
    if name.startswith("LoRA"):
        rank = int(name.split()[1])
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules="all-linear"
        )
    else:
        config = LoraMoeConfig(
            num_experts=options.experts,
            top_k=options.top_k,
            r=options.rank,
            lora_alpha=2 * options.rank,
            lora_dropout=dropout,
        )
    model = get_peft_model(model, config)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in key.replace("_moe", ""):
            torch.nn.init.normal_(parameter, std=0.01)
    if name in LOOPS:
        for path, module in list(model.named_modules()):
            if isinstance(module, LoraMoeLinear):
                model.set_submodule(path, LOOPS[name](module))
    return model.train()


def stepper(model: Any, options: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """One step, which gives the last hidden states; the gradients are cleared after it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    width = inner.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    shape = (options.rows, options.length, width)
    embedded, direction = (
        torch.randn(shape, generator=generator).to(inner.dtype) for _ in range(2)
    )

    def step() -> torch.Tensor:
        inputs = embedded.clone().requires_grad_()
        hidden = inner.base_model(inputs_embeds=inputs, use_cache=False)[0]
        hidden.backward(direction)
        model.zero_grad()
        return hidden.detach()

    return step


def steps(options: argparse.Namespace, dropout: float) -> None:
    base, _ = open_model(options.model, dtype=options.dtype)
    calls = {n: stepper(formed(base, n, dropout, options), options) for n in forms(options)}
    first = {name: call() for name, call in calls.items()}  # not counted: first touch
    if not dropout:
        for name in LOOPS:
            off = (first[name] - first["stacked"]).norm() / first["stacked"].norm()
            print(f"{name}: hidden states differ from the stacked form's by {float(off):.1e}")
    least = alternated(calls, options.rounds)
    size = f"{options.rows} x {options.length} tokens"
    print(f"\n{size}, dropout {dropout}; least of {options.rounds}", flush=True)
    bare = least["floor"]
    ours = least["stacked"] - bare
    for name, own in least.items():
        if name == "floor":
            print(f"{name:14} {own:7.3f} s")
            continue
        print(
            f"{name:14} {own:7.3f} s   adds {own - bare:7.3f} s   "
            f"the stacked form adds {ours / (own - bare):5.2f} times that"
        )


def generation(options: argparse.Namespace) -> None:
    base, _ = open_model(options.model, dtype=options.dtype)
    names = [name for name in forms(options) if name not in ("floor", *LOOPS)]
    models = {name: formed(base, name, 0.0, options).eval() for name in names}
    for rows in (1, 8):
        prompt = torch.arange(5, 13).repeat(rows, 1)
        wanted = {
            "input_ids": prompt,
            "attention_mask": torch.ones_like(prompt),
            "max_new_tokens": options.generate,
            "min_new_tokens": options.generate,
            "do_sample": False,
            "pad_token_id": 0,
        }
        calls = {name: partial(model.generate, **wanted) for name, model in models.items()}
        for call in calls.values():
            call()
        least = alternated(calls, options.rounds)
        print(f"\nbatch {rows}, {options.generate} new tokens; least of {options.rounds}")
        for name, own in least.items():
            print(
                f"{name:14} {1e3 * own / options.generate:7.1f} ms a token   "
                f"the stacked form takes {least['stacked'] / own:5.2f} times that"
            )


def alternated(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least seconds of the processor of each, which take turns."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - began)
    return least


def memory(options: argparse.Namespace) -> None:
    for dropout in options.dropout:
        print(f"\n{options.rows} x {options.length} tokens, dropout {dropout}")
        for name in forms(options):
            command = [sys.executable, *sys.argv, "--one", name, "--dropout", str(dropout)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            print(ran.stdout, end="")


def peak_of(options: argparse.Namespace) -> None:
    base, _ = open_model(options.model, dtype=options.dtype)
    step = stepper(formed(base, options.one, options.dropout[0], options), options)
    # Reads every weight, which until then may not be in memory at all.
    sum(float(p.sum()) for p in base.parameters())
    opened = peak_gigabytes()
    step()
    print(f"{options.one:14} peak {peak_gigabytes() - opened:.2f} GB above {opened:.2f} GB")


def peak_gigabytes() -> float:
    """Largest resident size so far (Linux counts in KiB, macOS in bytes)."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main()
