"""Kill commands at random moments; what they leave in the end must be as if nobody had.

`layerif score`, `prune` and `evaluate` run as processes of their own, as a user starts them, and
are killed (SIGKILL) at moments drawn uniformly over an undisturbed run, several times each before
one is let through. The finished result is compared with the undisturbed one: scores and likelihoods
to the bit, and the weights of the pruned model byte by byte.

    python benchmarks/kills.py --kills 50
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from layerif.artifacts import LayerScores, Results
from layerif.files import cache_folder

LAYERIF = Path(sys.executable).with_name("layerif")
KILLS_A_TRIAL = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    commands = command_lines(options.model)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        undisturbed = {}
        for name, command in commands.items():
            began = time.perf_counter()
            reference = work / f"{name}-reference"
            finish(command(reference), work / "cache-reference")
            undisturbed[name] = (contents(reference), time.perf_counter() - began)
            print(f"{name}: undisturbed {undisturbed[name][1]:.1f} s", flush=True)
        kills = trials = 0
        while kills < options.kills:
            name = list(commands)[trials % len(commands)]
            expected, seconds = undisturbed[name]
            out, cache = work / f"{name}-{trials}", work / f"cache-{trials}"
            planned = min(KILLS_A_TRIAL, options.kills - kills)
            landed = sum(
                killed(commands[name](out), cache, draw.uniform(0, seconds)) for _ in range(planned)
            )
            finish(commands[name](out), cache)
            same = contents(out) == expected
            hidden = [p.name for p in work.iterdir() if p.name.startswith(f".{out.name}")]
            print(f"{name} {trials}: killed {landed} times, {'the same' if same else 'OTHER'}")
            if not same or hidden:
                sys.exit(f"{out} is not as if nobody had killed it; left beside it: {hidden}")
            kills += landed
            trials += 1
            for path in (out, cache):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    print(f"{kills} kills in {trials} trials: every result as if undisturbed, nothing left over")


def command_lines(model: str) -> dict[str, Callable[[Path], list[str]]]:
    """The three commands, each a function of where it writes; small, and of many steps."""

    def line(*words: str) -> Callable[[Path], list[str]]:
        return lambda out: [str(LAYERIF), *words, "--model", model, "--out", str(out)]

    return {
        "score": line(
            *["score", "--task", "agreement", "--train-samples", "24"],
            *["--validation-samples", "8", "--batch-tokens", "64"],
        ),
        "prune": line(
            *["prune", "--sparsity", "0.5", "--calibration-samples", "4"],
            *["--context-length", "64"],
        ),
        "evaluate": line(
            *["evaluate", "--tasks", "agreement,python-docs", "--samples", "24"],
            *["--context-length", "64", "--max-tokens", "512", "--batch-tokens", "128"],
        ),
    }


def environment(cache: Path) -> dict[str, str]:
    """A cache of the trial's own; the converted model alone is shared."""
    cache.mkdir(exist_ok=True)
    if not (cache / "gguf").exists():
        (cache / "gguf").symlink_to(cache_folder() / "gguf", target_is_directory=True)
    return {**os.environ, "LAYERIF_CACHE": str(cache)}


def finish(command: list[str], cache: Path) -> None:
    done = subprocess.run(
        command, env=environment(cache), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")


def killed(command: list[str], cache: Path, seconds: float) -> bool:
    """Start the command and kill it after so long; whether it was still at work."""
    process = subprocess.Popen(
        command, env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def contents(out: Path) -> object:
    """What a result holds, the seconds it took and its own name aside."""
    if out.is_file():
        return Results.load(out)
    if (out / "scores.json").exists():
        scores = LayerScores.load(out)
        return scores.influence.tobytes(), scores.record.fingerprint
    return (out / "model.safetensors").read_bytes()


if __name__ == "__main__":
    main()
