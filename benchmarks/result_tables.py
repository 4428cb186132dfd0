"""What comparisons came to, as data, and tables in the docs made from it.

A folder that `layerif compare sparsity`, `bits` or `depth` has written becomes one JSON file; then
each place in a document that names such a file gets its table:

    python benchmarks/result_tables.py runs/bits --out docs/results/bits.json --machine "two cores"
    python benchmarks/result_tables.py --render docs/results/bits-and-depth.md

Results of `layerif evaluate` are data too, each with a title, compared with the first:

    python benchmarks/result_tables.py --results cut=cut-results.json healed=healed-results.json \
        --out docs/results/healing.json

A place is a line `<!-- table: bits.json -->`, by the path from the document, and all up to
the line `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from layerif.artifacts import Comparisons, Plan, Results
from layerif.core.files import read_json, write_json, write_text
from layerif.evaluation.comparison import compare
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
    parser.add_argument("--results", nargs="+", metavar="TITLE=FILE", help="in place of a folder")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--machine", help="what the folder was made on")
    parser.add_argument("--render", type=Path, help="document to fill its tables in")
    options = parser.parse_args()
    if options.folder is not None:
        write_json(options.out, {"machine": options.machine, **figures(options.folder)})
    if options.results:
        files = dict(each.split("=", 1) for each in options.results)
        write_json(options.out, {"machine": options.machine, **evaluated(files)})
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
        rows[name] = {"measured": measured(Results.load(path))}
        for key in ("bytes", "held_out_loss"):
            if tuning.get(name, {}).get(key) is not None:
                rows[name][key] = tuning[name][key]
        if (folder / f"{name}.json").is_file():
            how = Plan.load(folder / f"{name}.json").how
            rows[name] |= {key: how[key] for key in ("dropped", *COSTS) if key in how}
    return {
        "command": said(recipe),
        **made(found),
        "rows": rows,
        "comparisons": pairs(Comparisons.load(folder / COMPARISON_FILE).comparisons),
    }


def evaluated(files: dict[str, str]) -> dict[str, Any]:
    """What files of results say, by title, and how each compares with the first in pairs."""
    results = {title: Results.load(Path(file)) for title, file in files.items()}
    last = Path([*files.values()][-1])
    recipe = yaml.safe_load(last.with_suffix("").with_suffix(".recipe.yaml").read_text())
    return {
        "command": said(recipe),
        **made([Path(file) for file in files.values()]),
        "rows": {title: {"measured": measured(own)} for title, own in results.items()},
        "comparisons": pairs(compare(results, next(iter(results)))),
    }


def measured(results: Results) -> dict[str, dict[str, Any]]:
    """The figures of each task and corpus."""
    return {
        m.name: {
            "metric": m.metric,
            "value": m.value,
            "low": m.low,
            "high": m.high,
            "count": m.count,
            **{key: m.details[key] for key in ("completion_loss",) if key in m.details},
        }
        for m in results.measurements
    }


def pairs(comparisons: Iterable[Any]) -> list[dict[str, Any]]:
    """Differences as data."""
    names = ("name", "metric", "model", "baseline", "difference", "low", "high", "test", "p_holm")
    return [{name: getattr(each, name) for name in names} for each in comparisons]


def said(recipe: dict[str, Any]) -> str:
    """The command of a recipe, without its places."""
    options = (f"--{k.replace('_', '-')} {v}" for k, v in recipe.items() if k not in PLACES and v)
    return " ".join(["layerif", recipe["command"], *options])


def made(files: Sequence[Path]) -> dict[str, str]:
    """When files were written, and by what."""
    last = datetime.fromtimestamp(max(path.stat().st_mtime for path in files))
    return {"date": f"{last:%Y-%m-%d}", "torch": torch.__version__}


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
            half = (own["high"] - own["low"]) / 2
            if own["metric"] == "accuracy":
                cells.append(f"{100 * own['value']:.1f} % ± {100 * half:.1f}")
            else:
                cells.append(f"{own['value']:.2f} ± {half:.2f}")
            if "completion_loss" in own:
                cells[-1] += f", loss {own['completion_loss']:.3f}"
            pairs = [c for c in data["comparisons"] if (c["model"], c["name"]) == (plan, name)]
            cells.append("; ".join(map(in_words, pairs)))
        yield f"| {' | '.join(cells)} |"


def in_words(pair: dict[str, Any]) -> str:
    """One difference, with its interval and p."""
    shown, scale, unit = {
        "completion_loss": (".3f", 1, ""),
        "accuracy": (".1f", 100, " points"),
    }.get(pair["metric"], (".2f", 1, ""))
    difference, low, high = (
        f"{scale * pair[key]:+{shown}}" for key in ("difference", "low", "high")
    )
    p = "p < 0.001" if pair["p_holm"] < 0.001 else f"p = {pair['p_holm']:.2g}"
    what = "loss " if pair["metric"] == "completion_loss" else ""
    return f"{what}against {pair['baseline']} {difference}{unit} [{low}, {high}], {p}"


if __name__ == "__main__":
    main()
