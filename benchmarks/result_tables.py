"""What comparisons came to, as data, and tables in the docs made from it.

A folder that `layerif compare sparsity`, `bits` or `depth` has written becomes one JSON file; then
each place in a document that names such a file gets its table:

    python benchmarks/result_tables.py runs/bits --out docs/results/bits.json --machine "two cores"
    python benchmarks/result_tables.py --render docs/results/bits-and-depth.md

A place is a line `<!-- table: bits.json -->`, by the path from the document, and all up to
the line `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from layerif.artifacts import Comparisons, Plan, Results
from layerif.core.files import read_json, write_json, write_text
from layerif.workflows.bench import COMPARISON_FILE
from layerif.workflows.compare_models import TUNING_FILE

# Of a recipe, what says where it ran.
PLACES = ("command", "out", "data_dir")
# Of a searched plan, what it cost.
COSTS = ("seconds", "forward_tokens", "backward_tokens", "trials")
RESULTS = "-results.json"
PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--machine", help="what the folder was made on")
    parser.add_argument("--render", type=Path, help="document to fill its tables in")
    options = parser.parse_args()
    if options.folder is not None:
        write_json(options.out, {"machine": options.machine, **figures(options.folder)})
    if options.render is not None:
        write_text(options.render, rendered(options.render))


def figures(folder: Path) -> dict[str, Any]:
    """What a comparison's folder says: the command, each plan's figures, and how they compare."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    tuning = read_json(folder / TUNING_FILE, "tuning") if (folder / TUNING_FILE).is_file() else {}
    order = ["dense", "uniform", *recipe["plans"].split(",")]
    found = [p for name in dict.fromkeys(order) if (p := folder / f"{name}{RESULTS}").is_file()]
    rows: dict[str, dict[str, Any]] = {}
    for path in found:
        name = path.name.removesuffix(RESULTS)
        measured = {
            m.name: {
                "metric": m.metric,
                "value": m.value,
                "low": m.low,
                "high": m.high,
                "count": m.count,
                **{key: m.details[key] for key in ("completion_loss",) if key in m.details},
            }
            for m in Results.load(path).measurements
        }
        rows[name] = {"measured": measured}
        for key in ("bytes", "held_out_loss"):
            if tuning.get(name, {}).get(key) is not None:
                rows[name][key] = tuning[name][key]
        if (folder / f"{name}.json").is_file():
            how = Plan.load(folder / f"{name}.json").how
            rows[name] |= {key: how[key] for key in ("dropped", *COSTS) if key in how}
    said = (f"--{k.replace('_', '-')} {v}" for k, v in recipe.items() if k not in PLACES and v)
    names = ("name", "metric", "model", "baseline", "difference", "low", "high", "test", "p_holm")
    return {
        "command": " ".join(["layerif", recipe["command"], *said]),
        "date": f"{datetime.fromtimestamp(max(p.stat().st_mtime for p in found)):%Y-%m-%d}",
        "torch": torch.__version__,
        "rows": rows,
        "comparisons": [
            {name: getattr(each, name) for name in names}
            for each in Comparisons.load(folder / COMPARISON_FILE).comparisons
        ],
    }


def rendered(document: Path) -> str:
    """The text of a document with each table as its data says."""

    def table(found: re.Match[str]) -> str:
        data = read_json(document.parent / found[2], "results")
        return "\n".join([found[1], *markdown(data), "", found[3]])

    return PLACE.sub(table, document.read_text(encoding="utf-8"))


def markdown(data: dict[str, Any]) -> Iterator[str]:
    """A row for each plan: its figures, and on each text its differences from others in pairs."""
    rows = data["rows"]
    first = next(iter(rows.values()))["measured"]
    counted = {"perplexity": "tokens", "accuracy": "rows"}
    heads = [
        f"{name}, {own['metric']} ({own['count']:,} {counted[own['metric']]}) | difference"
        for name, own in first.items()
    ]
    asked = [key for key in ("dropped", "trials") if any(key in row for row in rows.values())]
    heads = [*asked, *heads]
    yield f"| | {' | '.join(heads)} |"
    yield "|" + " --- |" * (1 + " | ".join(heads).count("|") + 1)
    for plan, row in rows.items():
        of_plan = {
            "dropped": ", ".join(key.removeprefix("layers.") for key in row.get("dropped", ())),
            "trials": f"{row.get('trials') or ''}",
        }
        cells = [plan, *(of_plan[key] for key in asked)]
        for name, own in row["measured"].items():
            cells.append(f"{own['value']:.2f} ± {(own['high'] - own['low']) / 2:.2f}")
            if "completion_loss" in own:
                cells[-1] += f", loss {own['completion_loss']:.3f}"
            pairs = [c for c in data["comparisons"] if (c["model"], c["name"]) == (plan, name)]
            cells.append("; ".join(map(in_words, pairs)))
        yield f"| {' | '.join(cells)} |"


def in_words(pair: dict[str, Any]) -> str:
    """One difference, with its interval and p."""
    shown = ".3f" if pair["metric"] == "completion_loss" else ".2f"
    difference, low, high = (f"{pair[key]:+{shown}}" for key in ("difference", "low", "high"))
    p = "p < 0.001" if pair["p_holm"] < 0.001 else f"p = {pair['p_holm']:.2g}"
    what = "loss " if pair["metric"] == "completion_loss" else ""
    return f"{what}against {pair['baseline']} {difference} [{low}, {high}], {p}"


if __name__ == "__main__":
    main()
