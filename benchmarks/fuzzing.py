"""Damage every kind of file that layerif reads, and count what its readers do about it.

Each mutation is read in a worker process with a time limit, so that a reader that hangs or dies in
a library is counted like one that raises the wrong error. A mutation is its kind and its seed:
`--kind NAME --seed N --mutations 1` shows one again.

    python benchmarks/fuzzing.py --mutations 10000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

PATIENCE = 10.0
# To import torch and write the good files, on a busy machine.
START = 300.0
BAD = ("traceback", "hang", "outside", "changed", "message")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--kind", action="append", help="one of the kinds; all without")
    parser.add_argument("--seed", type=int, default=0, help="of the first mutation of each kind")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        kind, folder, first, last = options.worker
        work(kind, Path(folder), int(first), int(last))
        return
    from helpers.foreign import KINDS

    kinds = options.kind or list(KINDS)
    share = -(-options.mutations // len(kinds))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.workers) as pool:
        counted = pool.map(
            lambda kind: count(kind, Path(folder), options.seed, options.seed + share), kinds
        )
        print(f"{'kind':20} {'mutations':>9} {'opened':>7} {'refused':>8}", end="")
        print("".join(f"{name:>10}" for name in BAD), "  peak GB")
        total: Counter[str] = Counter()
        highest = 0.0
        for kind, (counts, peak, faults) in zip(kinds, counted, strict=True):
            row(kind, counts, peak)
            for fault in faults:
                print(f"    {fault}")
            total += counts
            highest = max(highest, peak)
    row("all", total, highest)
    sys.exit(any(total[name] for name in BAD))


def row(kind: str, counts: Counter[str], peak: float) -> None:
    print(f"{kind:20} {counts.total():9,} {counts['opened']:7,} {counts['refused']:8,}", end="")
    print("".join(f"{counts[name]:10,}" for name in BAD), f"  {peak:7.2f}", flush=True)


def count(kind: str, folder: Path, first: int, last: int) -> tuple[Counter[str], float, list[str]]:
    """Outcomes of the mutations of a kind by seeds from `first` up to `last`, the highest memory
    of a worker in GB, and one example of each fault.
    """
    counts: Counter[str] = Counter()
    peak = 0.0
    faults: dict[tuple[str, ...], str] = {}
    while first < last:
        own = Path(tempfile.mkdtemp(dir=folder))
        words = [sys.executable, __file__, "--worker", kind, str(own), str(first), str(last)]
        # Unbuffered, so that what waits to be read is what the selector sees.
        worker = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        limit = START
        while first < last:
            line = next_line(worker, limit)
            found = json.loads(line) if line else {}
            what = found.get("what", "hang" if line is None else "traceback")
            if what == "ready":
                limit = PATIENCE
                continue
            detail = found.get("detail") or ("" if line is None else "the process died")
            counts[what] += 1
            peak = max(peak, found.get("peak", 0.0))
            if what in BAD:
                key = (what, found.get("file", ""), detail[:40])
                faults.setdefault(key, f"seed {first}: {what} {key[1]}: {detail[:300]}")
            first += 1
            if not found:
                break
        worker.kill()
        worker.wait()
        shutil.rmtree(own, ignore_errors=True)
    return counts, peak, list(faults.values())


def next_line(worker: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """A line of a worker; empty where it has ended, None where it says nothing for so long."""
    assert worker.stdout is not None
    with selectors.DefaultSelector() as waiting:
        waiting.register(worker.stdout, selectors.EVENT_READ)
        return worker.stdout.readline() if waiting.select(seconds) else None


def work(name: str, folder: Path, first: int, last: int) -> None:
    """Read mutations and print what becomes of each; all else that is printed goes nowhere."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")

    import torch

    from helpers.attempts import attempt
    from helpers.foreign import KINDS

    torch.set_num_threads(1)
    kind, good = KINDS[name], folder / "good"
    good.mkdir()
    kind.make(good)
    print(json.dumps({"what": "ready"}), file=results)
    for seed in range(first, last):
        outcome = attempt(kind, good, folder / "sandbox", Random(seed))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({**vars(outcome), "peak": peak}), file=results)


if __name__ == "__main__":
    main()
