"""Kill commands at random moments; what they leave in the end must be as if nobody had.

Every command that writes runs in a process of its own on a tiny model, and is killed (SIGKILL) at
moments drawn uniformly over an undisturbed run, several times each before one is let through. What
it then leaves is compared with what the undisturbed run left, byte by byte, seconds aside: a file
more, such as a hidden leftover, is a difference. Some commands replace another result with
--overwrite.

The processes are forked from one that has imported everything, so that kills hit the work and not
the imports.

    python benchmarks/kills.py --kills 200
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# One thread: a process with more cannot be forked safely.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # the tiny model

import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import torch
import transformers

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif import cli
from layerif.adapters import LoraMoeConfig  # noqa: F401
from layerif.core.checkpoint import STUDY_FILE
from layerif.workflows import compare_experts, compare_models, pipeline  # noqa: F401

KILLS_A_TRIAL = 3
# What a run writes of its own speed.
OF_SPEED = ("seconds", "per_second", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="words that the names of commands hold, with commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        lines = command_lines(prepared(work))
        if options.only:
            words = options.only.split(",")
            lines = {n: line for n, line in lines.items() if any(word in n for word in words)}
        bench = Bench(work, lines)
        for name in lines:
            bench.undisturbed(name)
        kills = trials = wrong = 0
        while kills < options.kills:
            name = list(lines)[trials % len(lines)]
            landed, fault = bench.trial(name, draw, min(KILLS_A_TRIAL, options.kills - kills))
            kills, trials, wrong = kills + landed, trials + 1, wrong + bool(fault)
            print(f"{name}: killed {landed} times, {fault or 'the same'}", flush=True)
    print(f"{kills} kills in {trials} trials: {wrong} not as if undisturbed")
    sys.exit(wrong > 0)


class Bench:
    """One place that every run writes to, emptied between trials, so that all paths are alike."""

    def __init__(self, work: Path, lines: dict[str, list[list[str]]]) -> None:
        self._work, self._lines = work, lines
        self._place, self._cache, self._before = work / "place", work / "cache", work / "before"
        self._expected: dict[str, dict[str, str]] = {}
        self._seconds: dict[str, float] = {}

    def undisturbed(self, name: str) -> None:
        """Run a command as it is, and remember what it leaves and how long it takes."""
        self._start_over(name)
        began = time.perf_counter()
        fault = self._finish(self._lines[name][-1])
        self._seconds[name] = time.perf_counter() - began
        if fault:
            sys.exit(f"{name} failed undisturbed: {fault}")
        self._expected[name] = self._contents()
        print(f"{name}: undisturbed {self._seconds[name]:.1f} s, {len(self._expected[name])} files")

    def trial(self, name: str, draw: random.Random, kills: int) -> tuple[int, str]:
        """Kill a command, let it through, compare; the kills that landed, and what is wrong."""
        self._start_over(name)
        command = self._lines[name][-1]
        landed = sum(
            self._killed(command, draw.uniform(0, self._seconds[name])) for _ in range(kills)
        )
        if fault := self._finish(command):
            return landed, f"FAILED: {fault}"
        found, expected = self._contents(), self._expected[name]
        other = sorted(path for path, text in found.items() if expected.get(path) != text)
        if other or found.keys() != expected.keys():
            missing = sorted(expected.keys() - found.keys())
            return landed, f"OTHER: {other[:4]}, missing {missing[:4]}"
        return landed, ""

    def _start_over(self, name: str) -> None:
        for path in (self._place, self._cache):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        # What stood there before: made once, and put back for every trial.
        if first := self._lines[name][:-1]:
            kept = self._before / name
            if not kept.exists():
                for command in first:
                    if fault := self._finish(command):
                        sys.exit(f"{name} could not be prepared: {fault}")
                shutil.copytree(self._place, kept)
            else:
                shutil.copytree(kept, self._place, dirs_exist_ok=True)

    def _finish(self, command: list[str]) -> str:
        """Run a command to its end; what it says where it fails."""
        log = self._work / "log"
        _, status = os.waitpid(start(command, self._cache, log), 0)
        return "" if status == 0 else log.read_text(errors="replace")[-600:]

    def _killed(self, command: list[str], seconds: float) -> bool:
        """Start a command and kill it after so long; whether it was still running."""
        process = start(command, self._cache, self._work / "log")
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        return os.WIFSIGNALED(status)

    def _contents(self) -> dict[str, str]:
        """What the place holds and what is half-written in the cache, by path."""
        found = {str(p.relative_to(self._place)): told(p) for p in self._place.rglob("*")}
        for path in self._cache.rglob("*"):
            if path.name.startswith("."):
                found[f"cache/{path.name}"] = "a leftover"
        return found


def told(path: Path) -> str:
    """What a file holds, in few words; of JSON all but the speed."""
    if not path.is_file():
        return "no file"
    if path.name == STUDY_FILE:  # of plans that hold the seconds of their rounds
        return json.dumps(sorted(json.loads(path.read_text(encoding="utf-8"))))
    if path.suffix == ".json":
        return json.dumps(without_speed(json.loads(path.read_text(encoding="utf-8"))))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_speed(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_speed(inner)
            for key, inner in value.items()
            if not any(word in key for word in OF_SPEED)
        }
    return [without_speed(inner) for inner in value] if isinstance(value, list) else value


def start(command: list[str], cache: Path, log: Path) -> int:
    """Fork a process that runs a command line; its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.environ["LAYERIF_CACHE"] = str(cache)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.argv = ["layerif", *command]
        try:
            cli.main()
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def prepared(work: Path) -> Path:
    """A tiny model, a text and a recipe, and what some commands start from."""
    given = work / "given"
    tiny_model().save_pretrained(given / "model")
    tiny_tokenizer().save_pretrained(given / "model")
    lines = (f"Paragraph {i} tells of {i * i} birds that sat on {i} wires." for i in range(90))
    (given / "text.txt").write_text("\n\n".join(lines))
    (given / "recipe.yaml").write_text(
        f"model: {given}/model\nout: {given}/run\n"
        "score: {task: agreement, train_samples: 8, validation_samples: 4}\n"
        "sparsity: {target: 0.5, epsilon: 0.3, beside: [owl, marginal], rounds: 1, "
        "round_tokens: 128}\n"
        "experts: {total: 9}\n"
        f"prune: {{method: wanda, calibration: {given}/text.txt, calibration_samples: 4, "
        "context_length: 32}\n"
        f"evaluate: {{tasks: [agreement, {given}/text.txt], samples: 8, context_length: 32}}\n"
    )
    transformers.logging.set_verbosity_error()
    base = ["--model", f"{given}/model"]
    scores = f"{given}/scores"
    for command in (
        ["score", *base, "--task", "agreement", *sizes(8, 4), "--keep-gradients", "--out", scores],
        [
            "allocate",
            "experts",
            f"{given}/scores",
            "--total",
            "9",
            "--out",
            f"{given}/experts.json",
        ],
        ["prune", *base, *PRUNED, "--calibration", f"{given}/text.txt", "--out", f"{given}/pruned"],
        [
            *["finetune", "--model", f"{given}/pruned", "--task", "agreement", "--rank", "2"],
            *["--train-samples", "8", "--max-steps", "2", "--out", f"{given}/adapter"],
        ],
    ):
        _, status = os.waitpid(start(command, work / "given-cache", work / "log"), 0)
        if status:
            sys.exit(f"{' '.join(command)} failed:\n{(work / 'log').read_text()}")
    return given


PRUNED = ["--sparsity", "0.5", "--calibration-samples", "4", "--context-length", "32"]


def sizes(train: int, validation: int) -> list[str]:
    return ["--train-samples", str(train), "--validation-samples", str(validation)]


def command_lines(given: Path) -> dict[str, list[list[str]]]:
    """The commands by name; before the last of each, those whose results it finds in its way."""
    place = given.parent / "place"
    base, text = ["--model", f"{given}/model"], f"{given}/text.txt"
    task = ["--task", "agreement"]
    calibrated = ["--calibration", text, "--calibration-samples", "4", "--context-length", "32"]
    trained = [*task, "--train-samples", "16", "--rank", "2", "--max-steps", "6"]
    to = ["--out", f"{place}/out"]
    to_file = ["--out", f"{place}/out.json"]
    score = ["score", *base, *task, *sizes(24, 8), "--batch-tokens", "64", *to]
    prune = ["prune", *base, "--sparsity", "0.5", *calibrated, *to]
    marginal = [
        *["search", "sparsity", *base, "--sparsity", "0.5", *calibrated],
        *["--rounds", "2", "--tokens", "128", "--held-out-tokens", "128", *to_file],
    ]
    evaluate = [
        *["evaluate", *base, "--tasks", f"agreement,{text}", "--samples", "24"],
        *["--context-length", "32", "--batch-tokens", "128", *to_file],
    ]
    train = ["finetune", *base, *trained, "--checkpoint-every", "2", *to]
    sparsity = [
        *["compare", "sparsity", *base, "--sparsity", "0.5", "--plans", "dlp,marginal", *to],
        *["--tries", "2", *calibrated, "--held-out-tokens", "64", "--samples", "8"],
        *["--tasks", f"agreement,{text}"],
    ]
    experts = [
        *["compare", "experts", *base, *trained, "--total", "9", "--plans", "lora", *to],
        *["--seeds", "0,1", "--validation-samples", "4", "--samples", "8"],
    ]
    validate = [
        *["validate", *base, "--scores", f"{given}/scores", *calibrated, *to],
    ]
    merge = ["merge", f"{given}/pruned", "--adapter", f"{given}/adapter", *to]
    return {
        "score": [score],
        "score on disk": [[*score, "--keep", "disk"]],
        "score in passes": [[*score, "--keep", "passes"]],
        "score keeping gradients": [[*score, "--keep-gradients"]],
        "solve": [["solve", f"{given}/scores", "--estimator", "exact", *to]],
        "score over another": [[*score, "--seed", "1"], [*score, "--overwrite"]],
        "metric": [["metric", "dlp", *base, *calibrated, *to_file]],
        "allocate": [["allocate", "experts", f"{given}/scores", "--total", "9", *to_file]],
        "marginal": [marginal],
        "prune": [prune],
        "prune over another": [[*prune, "--seed", "1"], [*prune, "--overwrite"]],
        "sparsegpt": [[*prune, "--method", "sparsegpt", "--hidden-states", "disk"]],
        "evaluate": [evaluate],
        "evaluate over another": [[*evaluate, "--seed", "1"], [*evaluate, "--overwrite"]],
        "finetune": [train],
        "finetune by plan": [[*train, "--plan", f"{given}/experts.json"]],
        "finetune over another": [[*train, "--seed", "1"], [*train, "--overwrite"]],
        "merge": [merge],
        "validate": [validate],
        "compare sparsity": [sparsity],
        "compare experts": [experts],
        "run": [["run", f"{given}/recipe.yaml", *to]],
    }


if __name__ == "__main__":
    main()
