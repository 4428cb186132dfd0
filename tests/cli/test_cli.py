"""The command line, end to end on a tiny model: results, refusals, exit statuses."""

from __future__ import annotations

import ast
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from helpers.adapters import adapted
from helpers.artifact_samples import make_results
from helpers.tiny import LAYERS, tiny_model, tiny_tokenizer
from layerif.artifacts import GRADIENTS, LayerScores, Manifest, MetricScores, Plan, Results
from layerif.metrics.measuring import metric_scores
from layerif.model.opening import open_model


def score_options(model, out, *subspace):
    options = ["--model", model, "--task", "agreement", *(subspace or ["--rank", 2])]
    return ["score", *options, "--train-samples", 8, "--validation-samples", 4, "--out", out]


def test_another_estimator_with_its_options(layerif, model, tmp_path):
    run = tmp_path / "run"
    estimator = ["--estimator", "cg", "--block", "layer", "--damping-value", 1e-4]
    status, _, err = layerif(*score_options(model, run), *estimator, "--max-iterations", 2)
    assert status == 0
    assert "3 of 3 blocks" in err
    record = LayerScores.load(run).record
    assert (record.estimator, record.block, record.damping) == ("cg", "layer", None)
    assert (record.damping_value, record.max_iterations) == (1e-4, 2)
    assert {(b.damping, b.iterations, b.converged) for b in record.blocks.values()} == {
        (1e-4, 2, False)
    }


def test_a_sweep_over_dampings_is_reported_and_replayed(layerif, model, tmp_path):
    run = tmp_path / "run"
    status, out, err = layerif(*score_options(model, run), "--damping-sweep", "0.01,1,100")
    assert status == 0, err
    assert "between dampings 0.01, 0.1, 1, 100: " in out
    assert LayerScores.load(run).damping_sweep.dampings == [0.01, 0.1, 1.0, 100.0]
    status, _, err = layerif("run", run / "recipe.yaml")
    assert status == 0
    assert "nothing is done again" in err


def test_subspaces_and_where_gradients_are_kept(layerif, model, tmp_path):
    few = ["--warmup-steps", 3]
    for number, (options, subspace) in enumerate(
        [
            (["--subspace", "two_sided", "--size", 4, "--block", "projection"], "two_sided"),
            (["--subspace", "full", "--block", "layer"], "full"),
            (["--subspace", "adapter", "--rank", 2, *few, "--keep", "passes"], "adapter"),
            (
                ["--rank", 2, "--memory", 2, "--keep", "memory", "--gradient-checkpointing"],
                "fresh_lora",
            ),
        ]
    ):
        run = tmp_path / f"run{number}"
        status, _, err = layerif(*score_options(model, run, *options))
        assert status == 0, err
        scores = LayerScores.load(run)
        assert scores.record.subspace == subspace
        assert np.isfinite(scores.influence).all()
    # Where gradients are kept is no part of what a result depends on.
    status, _, err = layerif(*score_options(model, run), "--keep", "disk")
    assert status == 0
    assert "nothing is done again" in err


def test_an_adapter_of_a_folder_is_scored(layerif, model, tmp_path):
    wrapped = adapted()
    for parameter in wrapped.parameters():
        parameter.data = parameter.data.float()
    wrapped.save_pretrained(tmp_path / "lora")
    base = score_options(model, tmp_path / "run", "--subspace", "adapter")
    status, out, err = layerif(*base, "--adapter", tmp_path / "lora")
    assert status == 0, err
    assert out.count("positive") == 2
    scores = LayerScores.load(tmp_path / "run")
    assert scores.record.subspace_options["rank"] == 3
    assert scores.model.architecture == "LlamaForCausalLM"
    # Another adapter is another model.
    wrapped.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight.data += 1
    wrapped.save_pretrained(tmp_path / "lora")
    status, _, err = layerif(*base, "--adapter", tmp_path / "lora")
    assert status == 2
    assert "the model" in err


def test_what_is_given_wins_over_the_preset(layerif, model, tmp_path):
    few = ["--train-samples", 6, "--validation-samples", 3, "--warmup-steps", 2]
    command = ["score", "--model", model, "--task", "agreement", "--preset", "paper"]
    status, _, err = layerif(*command, *few, "--out", tmp_path / "run")
    assert status == 0, err
    record = LayerScores.load(tmp_path / "run").record
    assert (record.train_samples, record.validation_samples) == (6, 3)
    assert (record.subspace, record.max_length) == ("adapter", 128)  # all the positions there are
    options = record.subspace_options
    assert (options["rank"], options["alpha"], options["warmup"]["steps"]) == (8, 16, 2)
    # The recipe says every option, and replays it.
    status, _, err = layerif("run", tmp_path / "run" / "recipe.yaml", "--out", tmp_path / "again")
    assert status == 0, err
    again = LayerScores.load(tmp_path / "again")
    assert np.array_equal(again.influence, LayerScores.load(tmp_path / "run").influence)


def test_the_whole_way(layerif, model, text, tmp_path):
    run = tmp_path / "run"
    status, out, _ = layerif(*score_options(model, run))
    assert status == 0
    assert "Influence per decoder layer" in out
    scores = LayerScores.load(run)
    assert scores.influence.shape == (LAYERS, 8)
    assert scores.record.task["name"] == "agreement"

    status, out, _ = layerif(
        *["allocate", "sparsity", run, "--sparsity", 0.5, "--epsilon", 0.2, "--no-smooth"],
        *["--aggregate", "top", "--orientation", "inverse", "--out", run / "sparsity.json"],
    )
    assert status == 0
    plan = Plan.load(run / "sparsity.json")
    assert plan.realised_total == pytest.approx(0.5, abs=1e-12)
    assert plan.how["aggregate"] == "top"

    status, out, _ = layerif("allocate", "experts", run, "--total", 12, "--json")
    assert status == 0
    printed = json.loads(out)
    assert sum(printed["allocation"]) == 12
    assert len(printed["allocation"]) == LAYERS

    status, out, _ = layerif(
        *["prune", "--model", model, "--plan", run / "sparsity.json", "--method", "wanda"],
        *["--calibration", text, "--calibration-samples", 4, "--context-length", 32],
        *["--out", run / "pruned"],
    )
    assert status == 0
    assert "zeros" in out
    AutoModelForCausalLM.from_pretrained(run / "pruned")
    manifest = Manifest.load(run / "pruned" / "layerif_manifest.json")
    assert manifest.plan == plan

    status, out, _ = layerif(
        *["evaluate", "--model", run / "pruned", "--tasks", f"agreement,{text}", "--samples", 10],
        *["--context-length", 32, "--out", run / "results.json", "--json"],
    )
    assert status == 0
    results = Results.load(run / "results.json")
    assert json.loads(out) == results.model_dump(mode="json")
    assert [m.metric for m in results.measurements] == ["accuracy", "perplexity"]
    assert results.sparsity == pytest.approx(0.5, abs=1e-3)


def test_results_are_compared_with_those_in_a_file(layerif, model, text, tmp_path):
    base = ["evaluate", "--model", model, "--samples", 10]
    both = ["--tasks", f"agreement,{text}", "--context-length", 32]
    path = tmp_path / "first.json"
    assert layerif(*base, *both, "--out", path)[0] == 0
    status, out, _ = layerif(*base, *both, "--against", path)
    assert status == 0
    same = [line for line in out.splitlines() if line.endswith("p = 1: inside the noise")]
    assert len(same) == 3  # accuracy, answer loss, perplexity
    assert all(f"against {path}" in line for line in same)

    status, out, _ = layerif(*base, "--tasks", "agreement", "--against", path, "--json")
    printed = json.loads(out)
    assert status == 0
    assert Results.model_validate(printed["results"]).measurements[0].count == 10
    assert [c["metric"] for c in printed["comparisons"]] == ["accuracy", "completion_loss"]

    # Other rows or chunks are found before anything is measured.
    for other in (["--seed", 1], ["--samples", 9], ["--max-tokens", 64]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("layerif.model.opening.open_model", None)
            status, out, err = layerif(*base, *both, *other, "--against", path)
        assert (status, out) == (2, "")
        assert "not the same" in err


def test_results_that_cannot_serve_are_refused_before_the_evaluation(layerif, text, tmp_path):
    value = make_results().model_dump(mode="json")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(value))
    base = ["evaluate", "--model", "no/such/model", "--against", path]
    status, _, err = layerif(*base, "--tasks", "agreement")
    assert status == 2
    assert "wikitext2, mrpc, and agreement" in err
    value["measurements"][0]["name"] = "agreement"
    path.write_text(json.dumps(value))
    assert "item by item" in layerif(*base, "--tasks", "agreement")[2]
    path.unlink()
    assert "does not exist" in layerif(*base, "--tasks", "agreement")[2]


def test_a_metric_that_needs_no_weights_opens_none(layerif, model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "model.safetensors").unlink()
    opened, _ = open_model(model)
    for name, options in (("uniform", {}), ("random", {}), ("shuffled", {"of": "random"})):
        out = tmp_path / f"{name}.json"
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        command = ["metric", name, *words, "--model", bare, "--out", out]
        assert layerif(*command)[0] == 0
        expected = metric_scores(opened, name, seed=0, **options)
        scores = MetricScores.load(out)
        assert (scores.scores, scores.projections) == (expected.scores, expected.projections)
        assert "nothing is done again" in layerif(*command)[2]
    assert layerif("metric", "pl_alpha", "--model", bare, "--out", tmp_path / "x.json")[0] == 2


@pytest.mark.parametrize("suffix", ["json", "csv", "npy"])
def test_any_metric_can_be_brought_in(layerif, tmp_path, suffix):
    path = tmp_path / f"scores.{suffix}"
    values = [0.1, 0.9, 0.4]
    if suffix == "json":
        path.write_text(json.dumps(values))
    elif suffix == "csv":
        path.write_text("layer,score\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values)))
    else:
        np.save(path, values)
    status, out, _ = layerif("allocate", "sparsity", path, "--sparsity", 0.6)
    assert status == 0
    assert "equally large" in out
    status, out, _ = layerif("allocate", "experts", path, "--total", 9, "--map", "mola", "--json")
    assert json.loads(out)["allocation"] == [2, 3, 4]


def test_layer_sizes_of_a_named_model_count(layerif, model, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("[1, 2, 3]")
    status, out, _ = layerif("allocate", "sparsity", path, "--sparsity", 0.5, "--model", model)
    assert status == 0
    assert "equally large" not in out
    path.write_text("[1, 2, 3, 4]")
    status, _, err = layerif("allocate", "sparsity", path, "--sparsity", 0.5, "--model", model)
    assert status == 2
    assert "there are 4 scores" in err


def refusals(model, text, folder):
    """Every kind of bad input: what was asked, and what the error must say."""
    base = ["--model", model, "--out", folder / "new"]
    full = folder / "full"
    full.mkdir()
    (full / "scores.json").write_text("{}")
    plan = folder / "plan.json"
    plan.write_text('{"kind": "sparsity", "allocation": [0.5, 0.5]}')
    columns = folder / "columns.csv"
    columns.write_text("question,reply\na,b\n")
    long = folder / "long.jsonl"
    row = {"completion": "z" * 700}
    long.write_text("".join(json.dumps({"prompt": f"p{i}", **row}) + "\n" for i in range(30)))
    few = ["--train-samples", 3, "--validation-samples", 2]
    vector = folder / "vector.json"
    vector.write_text("[1, 2, 3]")
    constant = folder / "constant.json"
    constant.write_text("[2, 2, 2]")
    yield (
        ["score", "--task", "agreement", "--model", "no/such/model", "--out", folder / "new"],
        ("no model folder at no/such/model"),
    )
    yield ["score", "--task", "agrement", *base], "did you mean agreement"
    yield ["score", "--task", columns, *base], "columns"
    yield (
        ["score", "--task", "agreement", "--train-samples", 10**6, *base],
        "fewer than the 1000000",
    )
    yield ["score", "--task", long, *few, *base], "none of the 3 training samples"
    yield ["score", "--task", "agreement", "--model", model, "--out", full], "already holds"
    yield ["score", "--task", "agreement", "--dtype", "int3", *base], "int3"
    yield (
        ["score", "--task", "agreement", "--estimator", "datainv", *base],
        "no estimator 'datainv'; did you mean datainf",
    )
    yield ["score", "--task", "agreement", "--damping-value", 0, *base], "damping-value"
    yield ["score", "--task", "agreement", "--block", "model", *base], "'layer'"
    for options, message in {
        ("--subspace", "lora"): "two_sided",
        ("--subspace", "two_sided", "--size", 0): "size 0: expected a number of at least 1",
        ("--subspace", "adapter"): "needs one adapter",
        ("--preset", "paper", "--adapter", full, "--warmup-steps", 3): "needs one adapter",
        ("--subspace", "adapter", "--warmup-steps", -1): "--warmup-steps -1",
        ("--subspace", "adapter", "--adapter", full): "no adapter 'default' in",
        ("--memory", 0): "--memory 0",
        ("--keep", "ram"): "'passes'",
        ("--keep", "passes", "--estimator", "cg"): "more often than passes",
        ("--subspace", "full", "--keep", "disk"): "never formed",
        ("--subspace", "full", "--estimator", "exact"): "the estimator exact has them kept",
        ("--preset", "papers"): "'papers'",
        ("--damping-sweep", "0.1;1"): "takes numbers with commas between them",
        ("--damping-sweep", "0.1,0"): "--damping-sweep 0",
        ("--damping-sweep", "1", "--estimator", "cosine"): "--damping-sweep has no effect",
    }.items():
        yield ["score", "--task", "agreement", *base, *options], message
    yield ["allocate", "experts", vector, "--total", 2], "total of 2 is too few for 3 layers"
    yield ["allocate", "sparsity", constant, "--sparsity", 0.5], "do not tell the layers apart"
    yield ["allocate", "sparsity", vector, "--sparsity", 1.5], "sparsity is 1.5"
    yield ["allocate", "sparsity", folder / "none", "--sparsity", 0.5], "no run folder"
    yield ["prune", "--plan", plan, "--calibration", text, *base], "has 2 layers"
    yield ["prune", "--calibration", text, *base], "either --plan FILE or --sparsity"
    yield (
        ["prune", "--sparsity", 0.5, "--calibration", text, "--model", model, "--out", full],
        ("already holds"),
    )
    yield (
        ["prune", "--sparsity", 0.5, "--calibration", "no-corpus", *base],
        "no calibration text is called",
    )
    yield (
        ["evaluate", "--model", model, "--tasks", "agreement,nothing"],
        "no task or corpus is called",
    )
    yield ["run", folder / "absent.yaml"], "absent.yaml does not exist"


def test_bad_input_is_one_paragraph_and_leaves_nothing(layerif, model, text, tmp_path):
    cases = list(refusals(model, text, tmp_path))
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases:
        status, out, err = layerif(*arguments)
        assert status == 2, arguments
        assert message in err, (arguments, err)
        assert "Traceback" not in err
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before, arguments


def test_a_result_that_is_not_finite_has_a_status_of_its_own(layerif, text, tmp_path):
    broken = tiny_model()
    # The tokens that opening tries, 1 to 3, are well.
    broken.get_input_embeddings().weight.data[4:] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    status, _, err = layerif(*score_options(tmp_path / "broken", tmp_path / "run"))
    assert status == 3
    assert "loss of validation sample" in err
    assert not (tmp_path / "run").exists()


def imported_by(*command):
    """What a command prints, and which slow packages it imports."""
    code = (
        "import sys; from layerif.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    argv = [sys.executable, "-c", code, *map(str, command)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    return printed + done.stderr, ast.literal_eval(last)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_slow(option):
    assert imported_by(option)[1] == []


def test_init_and_clean_import_no_torch(tmp_path):
    assert imported_by("init", tmp_path / "recipe.yaml")[1] == ["pydantic"]
    assert (tmp_path / "recipe.yaml").is_file()
    gradients = tmp_path / "run" / "gradients"
    gradients.mkdir(parents=True)
    for name in (GRADIENTS.mark, *GRADIENTS.names):
        (gradients / name).write_text('{"format": "layerif.gradients/1"}')
    printed, packages = imported_by("clean", tmp_path / "run")
    assert "removed" in printed
    assert packages == ["pydantic"]
    assert not gradients.exists()


@pytest.mark.parametrize(
    "command",
    ["score", "metric", "validate", "finetune", "allocate sparsity", "compare experts", "run"],
)
def test_help_fills_its_lines_and_shows_no_empty_default(layerif, monkeypatch, command):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    status, out, err = layerif(*command.split(), "--help")
    assert status == 0, err
    assert "default: ()" not in out
    # What a docstring breaks into lines is broken again for the terminal: no line ends early.
    above = out[out.index("Usage:") :].partition("╭")[0].splitlines()
    for line, below in itertools.pairwise(above):
        if line.strip() and below.strip():
            assert len(line.strip()) + 1 + len(below.split()[0]) > 75, line


def test_the_version_is_printed(layerif):
    status, out, _ = layerif("--version")
    assert (status, out.split()[0]) == (0, "layerif")
