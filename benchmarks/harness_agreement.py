"""Our likelihoods beside lm-evaluation-harness's: the same items, candidate by candidate.

Each task's items are drawn from our test split in the style `harness`; lm-eval is given the same
rows, found by their texts in its own task over the same folder. Its requests run on its own Hugging
Face model around the same open model, ours through the likelihoods of `layerif evaluate`. Timed is
what comes after the texts, tokenising and running every candidate, in seconds of the processor:
other work on the machine disturbs them less than those of the clock. The order of the two
alternates from task to task.

    python benchmarks/harness_agreement.py --data-dir DIR
"""

from __future__ import annotations

import argparse
import itertools
import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerif.data import Example, load_task
from layerif.data.catalogue import IN_HARNESS
from layerif.evaluation.accuracy import task_measurement
from layerif.evaluation.harness import load_harness
from layerif.evaluation.harness.model import HarnessModel
from layerif.evaluation.harness.quiet import quiet_harness
from layerif.model.opening import open_model

COLUMNS = "{:<14} {:>6} {:>11} {:>12} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", default=",".join(IN_HARNESS))
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4, help="rows that lm-eval runs at once")
    options = parser.parse_args()

    model, tokenizer = open_model(options.model, dtype=options.dtype)
    with quiet_harness(logging.ERROR):
        theirs = HarnessModel(model, tokenizer, options.batch_size)
    print(
        f"{options.model}, {options.samples} items a task, {options.dtype}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    )
    heads = ("acc", "lm-eval", "by char", "lm-eval", "CPU s", "lm-eval")
    print(COLUMNS.format("task", "items", "candidates", "largest diff", "chosen", *heads))
    for number, name in enumerate(options.tasks.split(",")):
        examples = load_task(name, data_dir=options.data_dir, style="harness").sample(
            "test", options.samples, seed=0
        )
        requests = same_requests(name, options.data_dir, examples)
        pairs = [Example(*pair) for example in examples for pair in example.candidates()]

        def ours(pairs: Sequence[Example] = pairs) -> np.ndarray:
            found = task_measurement(
                model,
                tokenizer,
                pairs,
                max_length=options.max_length,
                batch_tokens=options.batch_tokens,
            ).outcomes
            assert found is not None
            assert found.count == len(pairs)
            return -np.array(found.nats)

        def lm_eval(requests: Sequence[Any] = requests) -> np.ndarray:
            with quiet_harness():
                return np.array([value for value, _ in theirs.loglikelihood(requests)])

        sides = [ours, lm_eval][:: -1 if number % 2 else 1]
        timed = {side.__name__: seconds(side) for side in sides}
        report(name, examples, timed)


def same_requests(name: str, data_dir: Path, examples: Sequence[Example]) -> list[Any]:
    """lm-eval's requests for the rows of our examples, in their order."""
    (task,) = load_harness([name], data_dir=data_dir).tasks.values()
    with quiet_harness():
        task.build_all_requests()
    rows: dict[int, list[Any]] = {}
    for request in task.instances:
        rows.setdefault(request.doc_id, []).append(request)
    by_texts = {tuple(request.args for request in row): row for row in rows.values()}
    return [request for example in examples for request in by_texts[example.candidates()]]


def report(
    name: str, examples: Sequence[Example], timed: dict[str, tuple[float, np.ndarray]]
) -> None:
    """One line of the table."""
    answers = np.array([example.answer for example in examples])
    counts = [len(example.candidates()) for example in examples]
    starts = np.cumsum([0, *counts])
    lengths = np.array(
        [len(text.removeprefix(" ")) for e in examples for _, text in e.candidates()]
    )
    chosen, accuracies = {}, {}
    for side, (_, sums) in timed.items():
        for kind, values in (("sum", sums), ("character", sums / lengths)):
            best = np.array([values[a:b].argmax() for a, b in itertools.pairwise(starts)])
            chosen[side, kind] = best
            accuracies[side, kind] = f"{(best == answers).mean():.3f}"
    difference = np.abs(timed["ours"][1] - timed["lm_eval"][1]).max()
    print(
        COLUMNS.format(
            name,
            len(examples),
            sum(counts),
            f"{difference:.1e}",
            int((chosen["ours", "sum"] != chosen["lm_eval", "sum"]).sum()),
            accuracies["ours", "sum"],
            accuracies["lm_eval", "sum"],
            accuracies["ours", "character"],
            accuracies["lm_eval", "character"],
            f"{timed['ours'][0]:.1f}",
            f"{timed['lm_eval'][0]:.1f}",
        ),
        flush=True,
    )


def seconds(call: Any) -> tuple[float, np.ndarray]:
    began = time.process_time()
    value = call()
    return time.process_time() - began, value


if __name__ == "__main__":
    main()
