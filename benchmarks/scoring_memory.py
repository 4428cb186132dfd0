"""Peak memory of `layerif score` beside the model, for each place where gradients are kept.

Each run is a process of its own, as its peak is of the whole process. What is beside the model is
the peak less what was resident once the model was open.

    python benchmarks/scoring_memory.py --train-samples 200 800 --keep disk memory passes
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from layerif.core.choices import Keep
from layerif.data import load_task
from layerif.influence.options import ScoreOptions
from layerif.model.opening import open_model
from layerif.workflows.stages import score_into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="agreement")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--train-samples", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--validation-samples", type=int, default=50)
    parser.add_argument("--keep", nargs="+", default=["disk", "memory", "passes"])
    parser.add_argument("--estimator", default="datainf")
    parser.add_argument("--block", default="matrix")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measured(options, options.train_samples[0], options.keep[0]))
        return
    print(f"{options.model}, {options.task}, {options.estimator}, {platform.machine()}")
    for keep in options.keep:
        for count in options.train_samples:
            own = [f"--train-samples={count}", f"--keep={keep}", "--one"]
            # Argparse takes the last of an option that is given twice.
            command = [sys.executable, __file__, *sys.argv[1:], *own]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            print(found.stdout.strip(), flush=True)


def measured(options: argparse.Namespace, count: int, keep: Keep) -> str:
    """One run's peak, in words."""
    task = load_task(options.task, data_dir=options.data_dir)
    train = task.sample("train", count, seed=0)
    validation = task.sample("validation", options.validation_samples, seed=0)
    model, tokenizer = open_model(options.model)
    before = psutil.Process().memory_info().rss / 1e9
    private = Peak()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, private:
        score_into(
            Path(folder) / "run",
            model,
            tokenizer,
            task,
            train=train,
            validation=validation,
            options=ScoreOptions(
                keep=keep,
                estimator=options.estimator,
                block=options.block,
                batch_tokens=options.batch_tokens,
            ),
        )
    seconds = time.perf_counter() - began
    return (
        f"{keep:7} n = {count:5}: peak {peak_gigabytes():.2f} GB, the model {before:.2f} GB, "
        f"beside it {peak_gigabytes() - before:.2f} GB ({private.most:.2f} GB without mapped "
        f"files); {seconds:.0f} s"
    )


class Peak:
    """The largest memory of the process's own, mapped files left out, looked at now and then."""

    def __init__(self) -> None:
        self.most = 0.0
        self._first = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.most = max(self.most, self._now() - self._first)

    @staticmethod
    def _now() -> float:
        found = psutil.Process().memory_info()
        return (found.rss - getattr(found, "shared", 0)) / 1e9


def peak_gigabytes() -> float:
    """Largest resident size so far (Linux counts in KiB, macOS in bytes)."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main()
