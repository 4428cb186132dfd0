"""Every kind of file that layerif reads: a good one, and the reader that a mutation of it meets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.artifact_samples import (
    MODEL,
    SETTING,
    make_manifest,
    make_plan,
    make_results,
    make_scores,
)
from helpers.attempts import Kind
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.tiny_gguf import write_tiny_gguf
from layerif.artifacts import (
    MANIFEST_FILE,
    Comparison,
    Comparisons,
    Fingerprint,
    LayerScores,
    Manifest,
    MetricScores,
    Plan,
    Results,
    RouterLoad,
    RoutingUse,
)
from layerif.core.caching import remembered
from layerif.core.checkpoint import resumable
from layerif.data import SPLITS, Corpus, load_corpus, load_sources, load_task
from layerif.plans.score_files import read_scores

FINGERPRINT = Fingerprint(model="m", data="d", options={"rank": 8})
ROWS = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}", "n": i} for i in range(12)]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _make_metric(folder: Path) -> None:
    sizes = [(layer, MODEL.layer_sizes[layer]) for layer in range(MODEL.layers)]
    MetricScores(
        metric="owl",
        options={"multiple": 5},
        scores=[0.5, 0.25, 1.0, 2.0, 0.125],
        projections=[
            {"module": f"layers.{layer}.mlp.up_proj", "score": 1.0, "numel": size}
            for layer, size in sizes
        ],
        model=MODEL,
        calibration={"samples": 8},
        seconds=1.5,
        setting=SETTING,
        fingerprint=FINGERPRINT,
    ).save(folder / "metric.json")


def _make_routing(folder: Path) -> None:
    load = RouterLoad(
        module="layers.1.mlp.up_proj", layer=1, top_k=1, tokens=6, counts=[2, 4], entropy=0.5
    )
    RoutingUse(model=MODEL, adapter="default", routers=[load]).save(folder / "routing.json")


def _make_comparisons(folder: Path) -> None:
    numbers = {"value": 0.5, "baseline_value": 0.25, "difference": 0.25, "low": None, "high": None}
    one = Comparison(
        **{"name": "mrpc", "metric": "accuracy", "model": "a", "baseline": "b", "count": 8},
        **{"test": "mcnemar", "p": 0.5, "p_holm": 0.5, "inside_noise": True},
        **numbers,
    )
    Comparisons(comparisons=[one]).save(folder / "comparison.json")


RECIPE = """# A recipe
model: tiny
out: runs/x
score:
  task: agreement
  train_samples: 6
  estimator: datainf
  damping: 0.1
  damping_sweep: [0.01, 1, 100]
sparsity: {target: 0.5, beside: [owl]}
experts: &counts
  total: 9
ranks: *counts
evaluate:
  tasks: [agreement, python-docs]
  samples: 8
"""
REPLAY = """command: allocate sparsity
scores: scores.json
sparsity: 0.5
epsilon: 0.2
smooth: true
"""


def _read_recipe(folder: Path) -> None:
    from layerif.workflows.recipe import Recipe

    recipe = Recipe.load(folder / "recipe.yaml")
    recipe.score.check(recipe.score.adapter)
    recipe.text()


def _make_replay(folder: Path) -> None:
    (folder / "replay.yaml").write_text(REPLAY)
    _write_json(folder / "scores.json", [0.5, 0.25, 1.0, 2.0, 0.125])


def _read_replay(folder: Path) -> None:
    from layerif import cli

    os.chdir(folder)
    words = sys.argv
    sys.argv = ["layerif", "run", "replay.yaml"]
    try:
        cli.main()
    finally:
        sys.argv = words


def _make_rows(suffix: str, rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import csv

        import pyarrow
        import pyarrow.parquet

        path = folder / f"rows{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)

    return make


def _read_task(suffix: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        task = load_task(folder / f"rows{suffix}")
        for split in SPLITS:
            for row in task.splits[split]:
                (row.prompt + row.completion).encode()

    return read


def _read_text(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        (source,) = load_sources([folder / name])
        corpus = source if isinstance(source, Corpus) else load_corpus(folder / name)
        (corpus.text("calibration") + corpus.text("evaluation")).encode()

    return read


TEXTS = [{"text": f"Paragraph {i} tells of {i * i} birds."} for i in range(20)]


def _make_scores(folder: Path) -> None:
    make_scores().save(folder)


def _read_scores(folder: Path) -> None:
    scores = LayerScores.load(folder)
    scores.aggregate()
    scores.aggregate_projections()


def _read_plan(folder: Path) -> None:
    plan = Plan.load(folder / "plan.json")
    assert np.isfinite(plan.realised_total)
    plan.save(folder.parent / "again.json")
    (folder.parent / "again.json").unlink()


def _read_manifest(folder: Path) -> None:
    manifest = Manifest.of_folder(folder)
    assert np.isfinite([manifest.planned_sparsity, manifest.asked_sparsity]).all()


def _read_vector(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from layerif.plans.allocate import allocate_sparsity

        allocate_sparsity(read_scores(folder / name), 0.5)

    return read


def _make_model(folder: Path) -> None:
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder)


def _make_bin_model(folder: Path) -> None:
    model = tiny_model()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tiny_tokenizer().save_pretrained(folder)


def _read_model(folder: Path) -> None:
    from layerif.model.opening import describe, open_model

    model, tokenizer = open_model(folder, device="cpu")
    describe(model)
    model(**tokenizer("A text.", return_tensors="pt"))


def _make_adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LoraConfig(
            r=2,
            init_lora_weights=False,
            target_modules=r".*\.(q|v)_proj",
            rank_pattern={"layers.1.self_attn.q_proj": 3},
        )
        get_peft_model(tiny_model(), config).save_pretrained(folder)


def _read_adapter(folder: Path) -> None:
    from layerif.model.opening import describe
    from layerif.model.peft_adapters import with_adapter

    model = with_adapter(tiny_model(), folder)
    describe(model)
    model(torch.tensor([[3, 4]]))


def _make_experts(folder: Path) -> None:
    from helpers.moe_models import adapted

    with torch.random.fork_rng():
        adapted().save_pretrained(folder)


def _make_gguf(folder: Path) -> None:
    write_tiny_gguf(folder / "tiny.gguf")


def _read_gguf(folder: Path) -> None:
    from layerif.model.opening import open_model

    open_model(folder / "tiny.gguf", device="cpu")


def _computed(*_: Any) -> dict[str, torch.Tensor]:
    return {"nats": torch.arange(8.0), "counts": torch.arange(8)}


def _make_steps(folder: Path) -> None:
    with_steps = resumable(folder / "result", FINGERPRINT)
    try:
        with with_steps as steps:
            steps.save("batch-0", _computed())
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def _read_steps(folder: Path) -> None:
    with resumable(folder / "result", FINGERPRINT, restart=True) as steps:
        found = steps.load("batch-0")
        assert found is None or all(torch.is_tensor(value) for value in found.values())


def _make_cache(folder: Path) -> None:
    remembered(folder, FINGERPRINT, _computed)


def _read_cache(folder: Path) -> None:
    found = remembered(folder, FINGERPRINT, _computed)
    assert found.keys() >= set()


KINDS: dict[str, Kind] = {
    "plan": Kind(lambda f: make_plan().save(f / "plan.json"), _read_plan),
    "scores": Kind(_make_scores, _read_scores),
    "metric scores": Kind(_make_metric, _read_vector("metric.json")),
    "results": Kind(
        lambda f: make_results().save(f / "results.json"),
        lambda f: Results.load(f / "results.json"),
    ),
    "comparisons": Kind(_make_comparisons, lambda f: Comparisons.load(f / "comparison.json")),
    "manifest": Kind(lambda f: make_manifest().save(f / MANIFEST_FILE), _read_manifest),
    "routing": Kind(
        _make_routing, lambda f: [r.load for r in RoutingUse.load(f / "routing.json").routers]
    ),
    "recipe": Kind(lambda f: (f / "recipe.yaml").write_text(RECIPE), _read_recipe),
    "replay": Kind(_make_replay, _read_replay),
    "task .jsonl": Kind(_make_rows(".jsonl", ROWS), _read_task(".jsonl")),
    "task .csv": Kind(_make_rows(".csv", ROWS), _read_task(".csv")),
    "task .parquet": Kind(_make_rows(".parquet", ROWS), _read_task(".parquet")),
    "text .txt": Kind(
        lambda f: (f / "a.txt").write_text("\n\n".join(row["text"] for row in TEXTS)),
        _read_text("a.txt"),
    ),
    "text .jsonl": Kind(_make_rows(".jsonl", TEXTS), _read_text("rows.jsonl")),
    "text .parquet": Kind(_make_rows(".parquet", TEXTS), _read_text("rows.parquet")),
    "vector .npy": Kind(lambda f: np.save(f / "a.npy", np.arange(5.0)), _read_vector("a.npy")),
    "vector .csv": Kind(
        lambda f: (f / "a.csv").write_text("layer,score\n0,0.5\n1,0.25\n2,2\n"),
        _read_vector("a.csv"),
    ),
    "vector .json": Kind(
        lambda f: (f / "a.json").write_text("[0.5, 0.25, 2, -1]"), _read_vector("a.json")
    ),
    "steps": Kind(_make_steps, _read_steps, writes=True),
    "likelihoods": Kind(_make_cache, _read_cache, writes=True),
    "adapter": Kind(_make_adapter, _read_adapter, heavy=True),
    "adapter of experts": Kind(_make_experts, _read_adapter, heavy=True),
    "model": Kind(_make_model, _read_model, heavy=True),
    "model .bin": Kind(_make_bin_model, _read_model, heavy=True),
    "gguf": Kind(_make_gguf, _read_gguf, heavy=True, writes=True),
}
