"""Evaluation against its floor: bare forward passes over the same tokens.

The floor has the texts as tokens, sorted by length and padded to batches of the same budget before
the clock starts; it runs the decoder without cache, and the language-model head where a token is
scored, and keeps nothing. Evaluation is all that `layerif evaluate` does with an open model and
a loaded task or text: it tokenises, packs, sums losses, and makes the measurement with its interval
and outcomes. Both are timed in turn, in one process, after one uncounted run of each, by the wall
clock and in seconds of CPU. On a machine that others use, trust the latter, on one thread (threads
that wait for each other count as busy):

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --task hellaswag --data-dir DIR
    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --corpus python-docs
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from layerif.artifacts import Measurement
from layerif.data import load_corpus, load_task
from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.data.tokenizing import encode
from layerif.evaluation.accuracy import task_measurement
from layerif.evaluation.perplexity import evaluation_chunks, perplexity
from layerif.model.opening import open_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="facts")
    parser.add_argument("--corpus", help="measure perplexity on it, instead of a task")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=10_240)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()

    model, tokenizer = open_model(options.model, dtype=options.dtype)
    device = next(model.parameters()).device
    items: list[Encoded]
    if options.corpus:
        text = load_corpus(options.corpus, data_dir=options.data_dir).text("evaluation")
        items = evaluation_chunks(tokenizer, text, options.context_length, options.max_tokens)
        name = f"{options.corpus}, {len(items)} chunks"
    else:
        examples = load_task(options.task, data_dir=options.data_dir).sample(
            "test", options.samples, seed=0
        )
        texts = [pair for example in examples for pair in example.candidates()]
        items, _ = encode(tokenizer, texts, 512)
        name = f"{options.task}, {len(examples)} rows, {len(items)} candidates"
    batches = [collate(group, device=device) for group in pack(items, options.batch_tokens)]

    def evaluate() -> Measurement:
        if options.corpus:
            return perplexity(
                model,
                tokenizer,
                text,
                context_length=options.context_length,
                max_tokens=options.max_tokens,
                batch_tokens=options.batch_tokens,
            )
        return task_measurement(model, tokenizer, examples, batch_tokens=options.batch_tokens)

    tokens = sum(batch.tokens for batch in batches)
    places = sum(batch.predicts.numel() for batch in batches)
    scored = sum(len(batch.targets) for batch in batches)
    print(
        f"{options.model}, {name}, {tokens:,} tokens ({scored:,} scored, padding "
        f"{places / tokens - 1:.1%}), {options.dtype}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    run_bare(model, batches)
    evaluate()
    pairs = [
        (seconds(lambda: run_bare(model, batches)), seconds(evaluate)) for _ in range(options.pairs)
    ]
    for clock in ("wall", "cpu"):
        floors, evaluations = (
            [side[clock] for side in sides] for sides in zip(*pairs, strict=True)
        )
        floor, ours = min(floors), min(evaluations)
        ratios = [b / a for a, b in zip(floors, evaluations, strict=True)]
        print(
            f"{clock:>4}: floor {floor:.2f} s ({tokens / floor:.0f} tokens/s), evaluation "
            f"{ours:.2f} s ({tokens / ours:.0f} tokens/s), ratio of the minima {ours / floor:.2f}; "
            f"pair by pair {min(ratios):.2f} to {max(ratios):.2f}, "
            f"median {statistics.median(ratios):.2f}"
        )


@torch.inference_mode()
def run_bare(model: torch.nn.Module, batches: list[Batch]) -> None:
    """Decoder and head, with logits at the scored positions alone."""
    for batch in batches:
        hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state
        model.lm_head(hidden[batch.predicts])


def seconds(call: Callable[[], object]) -> dict[str, float]:
    """What a call takes by the wall clock, and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    main()
