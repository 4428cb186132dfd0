"""Do layer profiles of influence depend on the task? Two scorings of each task are compared.

    layerif run studies/profiles.yaml
    layerif run studies/profiles.yaml --set seed=1 --out runs/profiles-again
    python benchmarks/profiles.py runs/profiles runs/profiles-again --out profiles.json
    python benchmarks/profiles.py --out profiles.json --picture docs/images/profiles.svg

The seeds differ, and with them the random samples and LoRA matrices. For each aggregation it prints
Spearman's correlation over layers between the two profiles of one task, and between profiles of
different tasks. p is the fraction of all ways to pair the tasks of the two runs whose mean
correlation is at least as high as that of the true pairs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from layerif.artifacts import LayerScores
from layerif.core.choices import Aggregation
from layerif.core.files import read_json, write_json

ORDERS = 100_000
# The paper's.
AGGREGATIONS: tuple[Aggregation, ...] = ("all", "positive", "top")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of the study, by two seeds")
    parser.add_argument("--machine", default="", help="what they were made on")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to add the figures to")
    parser.add_argument("--picture", type=Path, help="draw what the file holds")
    options = parser.parse_args()
    kept = read_json(options.out, "figures") if options.out.is_file() else {}
    if options.runs:
        name, found = compared(options)
        kept = kept | {name: found}
        write_json(options.out, kept)
    if options.picture is not None:
        draw(kept, options.picture)


def compared(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Two runs of the study: the model and the estimator, and their figures."""
    done = [{p.parent.name for p in run.glob("*/scores.json")} for run in options.runs]
    tasks = sorted(done[0] & done[1])
    scores = [[LayerScores.load(run / task) for task in tasks] for run in options.runs]
    first = scores[0][0]
    name = f"{first.model.name}, {first.record.estimator}"
    found = {
        "machine": options.machine,
        "train_samples": first.record.train_samples,
        "validation_samples": first.record.validation_samples,
        "tasks": tasks,
        "profiles": {
            task: {a: rounded(own.aggregate(a)) for a in AGGREGATIONS}
            for task, own in zip(tasks, scores[0], strict=True)
        },
        "reliability": {a: reliability(tasks, scores, a) for a in AGGREGATIONS},
    }
    for aggregation, figures in found["reliability"].items():
        print(
            f"{name}, {aggregation}: the same task {figures['same']:.3f}, others "
            f"{figures['others']:.3f}, p {figures['p']:.2g}"
        )
    return name, found


def reliability(
    tasks: list[str], scores: list[list[LayerScores]], aggregation: Aggregation
) -> dict[str, Any]:
    """How alike two profiles of one task are, and those of different tasks."""
    ranks = [np.array([rankdata(s.aggregate(aggregation)) for s in run]) for run in scores]
    count = len(tasks)
    table = np.corrcoef(np.concatenate(ranks))[:count, count:]  # (first run's tasks, the other's)
    apart = table[~np.eye(count, dtype=bool)]
    return {
        "same": float(np.trace(table)) / count,
        "others": float(apart.mean()),
        "p": by_chance(table),
        "of_tasks": dict(zip(tasks, rounded(np.diag(table)), strict=True)),
    }


def draw(kept: dict[str, Any], path: Path) -> None:
    """For each model and estimator the profiles of all tasks, each from 0 to 1."""
    figure = Figure(figsize=(9, 2.8 * len(kept)), layout="constrained")
    for axes, (name, found) in zip(np.ravel(figure.subplots(len(kept))), kept.items(), strict=True):
        for place, task in enumerate(found["tasks"]):
            profile = np.array(found["profiles"][task]["positive"])
            low, high = profile.min(), profile.max()
            colour = colormaps["tab10"](place % 10)
            axes.plot((profile - low) / (high - low), ".-", label=task, color=colour, linewidth=1)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylabel("positive influence")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("decoder layer")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path)


def by_chance(table: NDArray[np.float64]) -> float:
    """How often pairs drawn at random agree as well as the true ones."""
    generator, places = np.random.default_rng(0), np.arange(len(table))
    orders = generator.permuted(np.tile(places, (ORDERS, 1)), axis=1)
    drawn = table[places, orders].sum(1)
    return float(1 + (drawn >= np.trace(table) - 1e-12).sum()) / (1 + ORDERS)


def rounded(values: NDArray[np.float64]) -> list[float]:
    """To six digits, as data is kept."""
    return [float(f"{value:.6g}") for value in values]


if __name__ == "__main__":
    main()
