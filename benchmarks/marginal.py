"""Perplexity of plans by influence at the operating point against the uniform plan.

One model, one corpus, Wanda. Plans are calibrated on the corpus' calibration text, a part of which
is held out to judge rounds by, and measured on its evaluation text, which nothing else reads. Every
round that was not taken back is a plan; its seconds and tokens are those of all rounds up to it:
forward for calibration (every layer runs its tokens twice) and for judging, forward and backward
for gradients. Seconds are given in passes of the dense model forward and backward over 8,192 tokens
too, timed before and after. With --evolution-seconds an evolutionary search has so long.

    python benchmarks/marginal.py --data-dir DIR --corpus wikitext2 --max-tokens 65536
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from layerif.artifacts import Plan, Results
from layerif.compress.compressor import put_back
from layerif.compress.pruning.runner import prune
from layerif.core.checkpoint import Steps
from layerif.core.files import write_json
from layerif.data import Corpus, load_corpus
from layerif.data.batching import collate, pack
from layerif.data.chunks import cut, draw
from layerif.evaluation.comparison import compare
from layerif.evaluation.evaluate import evaluate
from layerif.likelihood import token_losses
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import input_device, open_model
from layerif.search.options import SearchOptions
from layerif.search.rounds import Round
from layerif.search.searching import search_plan
from layerif.search.slopes import BACKWARD_TOKENS
from layerif.search.sparsity import SparsityKind


class Recorder(Steps):
    """Keeps every round of one run."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        self.rounds.append(Round.of(tensors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpus", default="wikitext2")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.6])
    parser.add_argument("--rounds", type=int, default=5, help="plans of 1 to so many rounds")
    parser.add_argument("--granularity", nargs="+", default=["projection"])
    parser.add_argument("--below", type=float, default=0.25, help="of a projection's band")
    parser.add_argument("--above", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=4096, help="of each round's gradient")
    parser.add_argument("--held-out-tokens", type=int, default=8192)
    parser.add_argument("--max-tokens", type=int, default=65_536, help="of evaluation text")
    parser.add_argument("--samples", type=int, default=16, help="chunks of calibration text")
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evolution-seconds", type=float)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()

    model, tokenizer = open_model(options.model, dtype=options.dtype)
    corpus = load_corpus(options.corpus, data_dir=options.data_dir)
    print(
        f"{options.model} ({options.dtype}, {next(model.parameters()).device}), {options.corpus}, "
        f"{options.max_tokens:,} tokens of evaluation text; {torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    )
    common = {
        "tokenizer": tokenizer,
        "calibration": corpus,
        "calibration_samples": options.samples,
        "context_length": options.context_length,
        "seed": options.seed,
        "batch_tokens": options.batch_tokens,
    }
    measure = measurer(model, tokenizer, corpus, common, options)
    figures = []
    for sparsity in options.sparsities:
        print(f"\nsparsity {sparsity:g}", flush=True)
        uniform = measure(sparsity)
        value = uniform.measurements[0].value
        print(f"  uniform: perplexity {value:.2f}", flush=True)
        figures.append({"sparsity": sparsity, "plan": "uniform", "perplexity": value})
        for name, plan, cost in plans(model, sparsity, common, options):
            (found,) = compare({"uniform": uniform, name: measure(plan)}, "uniform")
            low, high = (found.low or math.nan), (found.high or math.nan)
            passes = f" ({cost['passes']:.1f} passes)" if "passes" in cost else ""
            print(
                f"  {name}: perplexity {found.value:.2f}, {found.difference:+.2f} "
                f"[{low:+.2f}, {high:+.2f}]; {cost['seconds']:.0f} s{passes}, "
                f"{cost['forward_tokens']:,} tokens forward, "
                f"{cost.get('gradient_tokens', 0):,} forward and backward",
                flush=True,
            )
            figure = {"sparsity": sparsity, "plan": name, "perplexity": found.value, **cost}
            figure |= {"difference": found.difference, "interval": [found.low, found.high]}
            figures.append(figure)
        if options.out:
            write_json(options.out, figures)


def plans(
    model: Any, sparsity: float, common: dict[str, Any], options: argparse.Namespace
) -> Iterator[tuple[str, Plan, dict[str, Any]]]:
    """The name of each plan, the plan, and what it took."""
    layers = find_decoder_layers(model)
    for granularity in options.granularity:
        recorder = Recorder()
        before = seconds_of_a_pass(model, common)
        asked = SearchOptions(
            granularity=granularity,
            rounds=options.rounds,
            tokens=options.tokens,
            held_out_tokens=options.held_out_tokens,
            below=options.below,
            above=options.above,
        )
        search_plan(model, sparsity, steps=recorder, options=asked, **common)
        one_pass = min(before, seconds_of_a_pass(model, common))
        print(f"  one pass forward and backward of 8,192 tokens: {one_pass:.1f} s", flush=True)
        kind = SparsityKind.among(layers, sparsity, asked)
        best = recorder.rounds[0]
        for number, each in enumerate(recorder.rounds[1:], start=1):
            name = f"marginal by {granularity}, round {number}"
            if each.held_out_loss >= best.held_out_loss:
                print(f"  {name}: taken back, held-out loss {each.held_out_loss:.4f}", flush=True)
                continue
            best = each
            plan = kind.plan(model, each.state, {"map": name})
            seconds = sum(r.seconds for r in recorder.rounds[: number + 1])
            yield (
                name,
                plan,
                {
                    "held_out_loss": each.held_out_loss,
                    "seconds": seconds,
                    "passes": seconds / one_pass,
                    "forward_tokens": (number + 1)
                    * (2 * options.samples * options.context_length + options.held_out_tokens),
                    "gradient_tokens": number * options.tokens,
                },
            )
    if options.evolution_seconds:
        asked = SearchOptions(strategy="evolution", seconds=options.evolution_seconds)
        found = search_plan(model, sparsity, options=asked, **common)
        trace = found.how["trace"]
        yield (
            f"evolution, {options.evolution_seconds:g} s",
            found,
            {
                "seconds": trace[-1]["seconds"],
                "evaluations": trace[-1]["evaluations"],
                "forward_tokens": trace[-1]["tokens"],
                "trace": [[entry["seconds"], entry["loss"]] for entry in trace],
            },
        )


def seconds_of_a_pass(model: Any, common: dict[str, Any]) -> float:
    """The dense model forward and backward over 8,192 tokens, with the gradients of all weights."""
    text = common["calibration"].text("calibration")
    chunks = cut(common["tokenizer"], text, common["context_length"])
    few = draw(chunks, 8192 // common["context_length"], common["seed"])
    batches = [collate(items, device=input_device(model)) for items in pack(few, BACKWARD_TOKENS)]
    began = time.perf_counter()
    with torch.enable_grad():
        for weight in model.parameters():
            weight.requires_grad_(True)
        for batch in batches:
            token_losses(model, batch).sum().backward()
            model.zero_grad()
        for weight in model.parameters():
            weight.requires_grad_(False)
    return time.perf_counter() - began


def measurer(
    model: Any,
    tokenizer: Any,
    corpus: Corpus,
    common: dict[str, Any],
    options: argparse.Namespace,
) -> Callable[[Plan | float], Results]:
    """A function that prunes the model by a plan, measures it, and gives it back as it was."""

    def measure(plan: Plan | float) -> Results:
        with put_back(find_decoder_layers(model).projections):
            prune(model, plan, **common)
            return evaluate(
                model,
                tokenizer,
                [corpus],
                context_length=options.context_length,
                max_tokens=options.max_tokens,
                batch_tokens=options.batch_tokens,
            )

    return measure


if __name__ == "__main__":
    main()
