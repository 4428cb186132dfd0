"""What comparisons came to, as data: one JSON file a table, and the table itself.

Reads folders that `layerif compare sparsity`, `bits` or `depth` has written, and puts each into a
file under the words that made it, in place of what was there under the same words:

    python benchmarks/tables.py runs/bits-rtn runs/bits-gptq --data docs/data/bits.json \
        --machine "two shared x86 cores, CPU" --date 2026-11-28
    python benchmarks/tables.py --data docs/data/bits.json

The second prints what the file holds, as tables in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from layerif.artifacts import Comparisons, Plan, Results
from layerif.core.files import read_json, write_json
from layerif.workflows.bench import COMPARISON_FILE
from layerif.workflows.compare_models import TUNING_FILE

# Of a recipe, what is not worth a place among the words.
PLACES = ("out", "data_dir")
# Of a searched plan, what it cost.
COSTS = ("seconds", "forward_tokens", "backward_tokens", "trials", "tokens")
RESULTS = "-results.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--machine", help="what the folders were made on")
    parser.add_argument("--date", help="when they were made, as 2026-11-28")
    options = parser.parse_args()
    kept = read_json(options.data, "data") if options.data.is_file() else {}
    for folder in options.folders:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        kept[words(recipe)] = {
            "date": options.date,
            "machine": options.machine,
            "torch": torch.__version__,
            **found(folder),
        }
    if options.folders:
        write_json(options.data, kept)
    for command, value in kept.items():
        print(f"\n    {command}\n", *markdown(value), sep="\n")


def words(recipe: dict[str, Any]) -> str:
    """The command of a recipe, without what depends on where it ran."""
    flags = {name: value for name, value in recipe.items() if name not in ("command", *PLACES)}
    said = [
        f"--{name.replace('_', '-')} {value}" for name, value in flags.items() if value is not None
    ]
    return " ".join(["layerif", recipe["command"], *said])


def found(folder: Path) -> dict[str, Any]:
    """Figures of each plan, and how they compare."""
    tuning = read_json(folder / TUNING_FILE, "tuning") if (folder / TUNING_FILE).is_file() else {}
    rows = {}
    for path in sorted(folder.glob(f"*{RESULTS}"), key=lambda each: each.stat().st_mtime):
        name = path.name.removesuffix(RESULTS)
        rows[name] = {
            m.name: {
                "value": m.value,
                "low": m.low,
                "high": m.high,
                "count": m.count,
                **{key: m.details[key] for key in ("completion_loss",) if key in m.details},
            }
            for m in Results.load(path).measurements
        }
        rows[name] |= {key: tuning.get(name, {}).get(key) for key in ("bytes", "held_out_loss")}
        if (folder / f"{name}.json").is_file():
            how = Plan.load(folder / f"{name}.json").how
            rows[name] |= {key: how[key] for key in ("dropped", *COSTS) if key in how}
        rows[name] = {key: value for key, value in rows[name].items() if value is not None}
    compared = Comparisons.load(folder / COMPARISON_FILE).comparisons
    names = ("name", "metric", "model", "baseline", "difference", "low", "high", "test", "p_holm")
    return {
        "rows": rows,
        "comparisons": [{name: getattr(c, name) for name in names} for c in compared],
    }


def markdown(value: dict[str, Any]) -> Iterator[str]:
    """A table of one comparison: each plan's figures, and its differences in pairs."""
    rows, compared = value["rows"], value["comparisons"]
    sources = [name for name, own in next(iter(rows.values())).items() if isinstance(own, dict)]
    counts = [f"{name}, {next(iter(rows.values()))[name]['count']:,}" for name in sources]
    yield f"| | {' | '.join(counts)} | difference in pairs |"
    yield "|" + " --- |" * (len(sources) + 2)
    for name, row in rows.items():
        figures = [
            f"{own['value']:.2f} [{own['low']:.2f}, {own['high']:.2f}]"
            + (f", loss {own['completion_loss']:.3f}" if "completion_loss" in own else "")
            for own in (row[source] for source in sources)
        ]
        pairs = [
            f"{c['name']} {c['metric']} against {c['baseline']} {c['difference']:+.3g} "
            f"[{c['low']:+.3g}, {c['high']:+.3g}], p = {c['p_holm']:.2g}"
            for c in compared
            if c["model"] == name
        ]
        yield f"| {name} | {' | '.join(figures)} | {'; '.join(pairs)} |"


if __name__ == "__main__":
    main()
