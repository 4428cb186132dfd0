"""Every causal language model of the installed transformers, held against independent computations.

Each is made tiny and random, and checked: saved and opened again; its likelihood against a plain
loop; per-sample gradients against autograd's; Wanda's zeros against a ranking by brute force; a
plan searched for; an adapter saved and opened again. What is computed is in
`tests/helpers/architecture_checks.py`.

    python benchmarks/architectures.py                 # all, into docs/data/architectures.json
    python benchmarks/architectures.py mixtral lfm2    # some
    python benchmarks/architectures.py --table         # docs/architectures.md from the data
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
DATA = ROOT / "docs" / "data" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"

INTRODUCTION = """# Architectures

{passed} of the {total} causal language models of transformers {transformers} pass every check: made
tiny and random, four layers each, and held against computations that share no code with layerif
(`benchmarks/architectures.py`, {date}; torch {torch}, PEFT {peft}).

- **opened**: saved, and opened again with the same logits;
- **likelihood**: of samples of three lengths in one batch, against each by itself in a plain loop;
- **gradients**: of each sample at every projection, each expert's too, against autograd's;
- **Wanda**: the share of weights whose zero differs from a ranking of |W| |X| row by row;
- **search**: a plan searched for, with its exact total, and the model as before;
- **adapter**: a LoRA, saved and opened again with the same logits.

Numbers are relative differences, of float64 where the model runs in it. Columns two to four count
projections, those of experts among them, and other weights of two dimensions and more, which are
left as they are.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="model types; all without")
    parser.add_argument("--table", action="store_true", help="only write the page from the data")
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    if DATA.exists():
        rows = json.loads(DATA.read_text())["rows"]
    if not options.table:
        warnings.simplefilter("ignore")
        import transformers

        from helpers.architectures import architectures

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        for name in options.names or architectures():
            rows[name] = checked(name)
            print(name, *rows[name]["checks"].values(), sep=" | ", flush=True)
        libraries = {one: version(one) for one in ("transformers", "torch", "peft")}
        DATA.parent.mkdir(exist_ok=True)
        data = {"date": date.today().isoformat(), **libraries, "rows": dict(sorted(rows.items()))}
        DATA.write_text(json.dumps(data, indent=1) + "\n")
    PAGE.write_text(page(json.loads(DATA.read_text())))


def checked(name: str) -> dict[str, Any]:
    """What each check finds, or the first words of its error; and what the model is made of."""
    from helpers.architecture_checks import CHECKS
    from helpers.architectures import tiny_architecture
    from layerif.errors import LayerifError
    from layerif.model.layers import find_decoder_layers

    found: dict[str, Any] = {"checks": {}, "passed": True}
    try:
        layers = find_decoder_layers(tiny_architecture(name))
        experts = sum(p.fused is not None for p in layers.projections)
        found |= {
            "projections": len(layers.projections),
            "experts": experts,
            "rest": len(layers.rest),
        }
    except LayerifError as error:
        found["refused"] = str(error)
    for check, run in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                found["checks"][check] = run(name, Path(folder))
            except Exception as error:
                words = str(error).replace(folder, "its folder")
                found["checks"][check] = f"{type(error).__name__}: {words}"[:300]
                found["passed"] = False
    return found


def page(data: dict[str, Any]) -> str:
    """The data as a table, what does not pass below it with its reason."""
    rows = data["rows"]
    checks = list(next(iter(rows.values()))["checks"])
    passed = sum(row["passed"] for row in rows.values())
    lines = [INTRODUCTION.format(passed=passed, total=len(rows), **data)]
    lines.append(f"| model type | projections | experts | rest | {' | '.join(checks)} |\n")
    lines.append(f"| --- | --- | --- | --- | {' | '.join('---' for _ in checks)} |\n")
    for name, row in rows.items():
        cells = ["no" if ": " in row["checks"][check] else row["checks"][check] for check in checks]
        counts = [str(row.get(key, "")) for key in ("projections", "experts", "rest")]
        lines.append(f"| {name} | {' | '.join([*counts, *cells])} |\n")
    failed = {name: row for name, row in rows.items() if not row["passed"]}
    if failed:
        lines.append("\n## What does not pass\n\n")
    for name, row in failed.items():
        reasons = {c: reason for c, reason in row["checks"].items() if ": " in reason}
        first = next(iter(reasons.values()))
        lines.append(f"- **{name}** ({', '.join(reasons)}): {first}\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
