"""Plans on llama.cpp itself: perplexity beside ours, bytes beside the plan's, tokens a second.

Built by `make engine`. A model is converted and stored in float16; by a plan of bits, quantised as
`layerif export llamacpp` says, and made float again here; and without the layers that a plan of
depth drops, cut by `layerif drop` and by the engine. Each has its perplexity over the second halves
of the first windows of WikiText-2's test text, by the engine and by transformers, and its size; the
rates of generating are taken in turn, one after the other, on one thread.

    python benchmarks/engine.py --data-dir DIR --model smollm2 --bits bits.json --depth depth.json \
        --out docs/results/engine.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from pyarrow.parquet import read_table

from layerif.artifacts import Plan
from layerif.core.files import read_json, write_json
from layerif.export.exporting import export_into, export_plan
from layerif.export.options import GgufOptions
from layerif.model.opening import open_model
from layerif.workflows.dropping import drop_into

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the engine as the tests call it

from helpers.engine import LlamaCpp, own_perplexity  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--bits", type=Path, help="a plan of bits")
    parser.add_argument("--depth", type=Path, help="a plan of depth")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--engine", type=Path, default=ROOT / "build" / "engine")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    parser.add_argument("--out", type=Path, help="JSON file to put the figures into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        rows = measured(options, Path(place))
    for name, row in rows.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    if options.out is not None:
        kept = read_json(options.out, "data") if options.out.is_file() else {}
        kept[options.model] = {
            "date": date.today().isoformat(),
            "machine": options.machine,
            "text": f"wikitext2 test, the second halves of {options.windows} windows of 512 tokens",
            "rows": rows,
        }
        write_json(options.out, kept)


def measured(options: argparse.Namespace, place: Path) -> dict[str, dict[str, Any]]:
    """What each form of the model comes to; its files are in `place`."""
    engine, windows = LlamaCpp(options.engine), options.windows
    text = place / "text.txt"
    lines = read_table(options.data_dir / "wikitext2" / "test.parquet")["text"].to_pylist()
    text.write_text("".join(lines)[: windows * 4000], encoding="utf-8")
    model, tokenizer = open_model(options.model)
    model.save_pretrained(place / "plain")
    tokenizer.save_pretrained(place / "plain")
    whole = engine.converted(place / "plain", place / "whole-f32.gguf")
    files, rows = {}, {}

    def keep(name: str, file: Path, ours: float | None, **more: Any) -> None:
        found = engine.perplexity(file, text, windows)
        bytes_ = sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors)
        rows[name] = {"perplexity": found, "ours": ours, "bytes": bytes_, **more}
        files[name] = file
        print(name, rows[name], flush=True)

    dense = place / "whole-f16.gguf"
    engine.run("llama-quantize", whole, dense, "f16", 1)
    keep("float16", dense, own_perplexity(model, tokenizer, text, windows))
    if options.bits is not None:
        plan, target = Plan.load(options.bits), place / "bits.gguf"
        gguf = GgufOptions(source=str(whole), target=str(target))
        written = export_into(
            place / "types.txt", export_plan("llamacpp", plan, model, options=gguf)
        )
        program, *arguments = written.usage.split()
        engine.run(program, *arguments, 1)
        rounded, own = open_model(str(target))
        ours = own_perplexity(rounded, own, text, windows)
        del rounded
        keep("bits", target, ours, planned=written.bytes)
    if options.depth is not None:
        plan = Plan.load(options.depth)
        drop_into(place / "cut", model, tokenizer, plan)
        cut, _ = open_model(str(place / "cut"))
        ours = own_perplexity(cut, tokenizer, text, windows)
        del cut
        short = engine.converted(place / "cut", place / "cut-f32.gguf")
        file = place / "cut-f16.gguf"
        engine.run("llama-quantize", short, file, "f16", 1)
        dropped = [layer for layer, level in enumerate(plan.allocation) if not level]
        keep("depth", file, ours, dropped=dropped)
        pruned = place / "pruned-f16.gguf"
        numbers = ",".join(map(str, dropped))
        engine.run("llama-quantize", "--prune-layers", numbers, whole, pruned, "f16", 1)
        keep("depth, by the engine", pruned, ours)
    rates: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(options.repetitions):
        for name, file in files.items():
            rates[name] += engine.rate(file, generated=32, repetitions=1)
    for name, found in rates.items():
        rows[name]["tokens_a_second"] = statistics.median(found)
        pairs = [own / base for own, base in zip(found, rates["float16"], strict=True)]
        rows[name]["to_float16"] = statistics.median(pairs)
    return rows


if __name__ == "__main__":
    main()
