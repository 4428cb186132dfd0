"""The command line, end to end on a tiny model: results, refusals, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM

from layerif.artifacts import Allocation, Comparisons, LayerScores, Manifest, Results
from layerif.studies import pipeline
from test_artifacts import make_results
from tiny import LAYERS, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    paragraphs = (f"Paragraph {i} tells of {i * i} birds that sat on {i} wires." for i in range(90))
    path.write_text("\n\n".join(paragraphs))
    return path


def score_options(model, out):
    options = ["--model", model, "--task", "agreement", "--rank", 2]
    return ["score", *options, "--train-samples", 8, "--validation-samples", 4, "--out", out]


def test_another_estimator_with_its_options(layerif, model, tmp_path):
    run = tmp_path / "run"
    estimator = ["--estimator", "cg", "--block", "layer", "--damping-value", 1e-4]
    status, _, err = layerif(*score_options(model, run), *estimator, "--max-iterations", 2)
    assert status == 0
    assert "cg did not reach the residual 1e-08 in 3 of 3 blocks" in err
    record = LayerScores.load(run).record
    assert (record.estimator, record.block, record.damping) == ("cg", "layer", None)
    assert (record.damping_value, record.max_iterations) == (1e-4, 2)
    assert {(b.damping, b.iterations, b.converged) for b in record.blocks.values()} == {
        (1e-4, 2, False)
    }


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
    plan = Allocation.load(run / "sparsity.json")
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
    base = ["evaluate", "--model", model, "--samples", 10, "--context-length", 32]
    both, path = ["--tasks", f"agreement,{text}"], tmp_path / "first.json"
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

    # Other rows: what was measured is shown, and kept, before the comparison is refused.
    kept = tmp_path / "kept.json"
    status, out, err = layerif(*base, *both, "--seed", 1, "--against", path, "--out", kept)
    assert status == 2
    assert "not the same rows" in err
    assert "perplexity" in out
    assert Results.load(kept).measurements[0].count == 10


def test_results_that_cannot_serve_are_refused_before_the_evaluation(layerif, text, tmp_path):
    value = make_results().model_dump(mode="json")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(value))
    base = ["evaluate", "--model", "no/such/model", "--against", path]
    status, _, err = layerif(*base, "--tasks", "agreement")
    assert status == 2
    assert "has results on wikitext2, mrpc, and agreement is to be measured" in err
    value["measurements"][0]["name"] = "agreement"
    path.write_text(json.dumps(value))
    assert "holds no outcomes item by item" in layerif(*base, "--tasks", "agreement")[2]
    path.unlink()
    assert "does not exist" in layerif(*base, "--tasks", "agreement")[2]


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
    assert "all layers count as equally large" in out
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
        "no estimator 'datainv'; choose one of datainf, grad_dot, cosine, exact, cg, lissa, ekfac",
    )
    yield ["score", "--task", "agreement", "--damping-value", 0, *base], "damping value must be"
    yield ["score", "--task", "agreement", "--block", "model", *base], "'layer'"
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
    yield ["prune", "--sparsity", 0.5, "--calibration", "no-corpus", *base], "no corpus is called"
    yield (
        ["evaluate", "--model", model, "--tasks", "agreement,nothing"],
        "no task or corpus is called",
    )
    yield ["run", folder / "absent.yaml"], "no recipe at"


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


def recipe(model, text, folder, **changes):
    value = {
        "model": str(model),
        "out": str(folder / "run"),
        "score": {"task": "agreement", "train_samples": 6, "validation_samples": 3, "rank": 2},
        "sparsity": {"target": 0.5, "epsilon": 0.2},
        "experts": {"total": 9},
        "prune": {"calibration": str(text), "samples": 4, "context_length": 32},
        "evaluate": {"tasks": ["agreement", str(text)], "samples": 8, "context_length": 32},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(value | changes))
    return path


def test_a_recipe_does_it_all_and_is_not_done_twice(layerif, model, text, tmp_path):
    path = recipe(model, text, tmp_path)
    status, out, _ = layerif("run", path)
    assert status == 0
    for word in ("dense", "uniform", "LayerIF", "perplexity", "accuracy"):
        assert word in out
    run = tmp_path / "run"
    found = Comparisons.load(run / "comparison.json").comparisons
    assert {(c.model, c.baseline) for c in found} == {("LayerIF", "uniform")}
    assert [c.metric for c in found] == ["accuracy", "completion_loss", "perplexity"]
    for comparison, words in zip(found, ("accuracy", "answer loss", "perplexity"), strict=True):
        assert f"{comparison.name} {words}: LayerIF " in out
    names = {p.name for p in run.iterdir()}
    pictures = {f"{n}.{s}" for n in ("scores", "sparsity", "experts") for s in ("png", "svg")}
    assert pictures <= names
    assert not [name for name in names if name.endswith(".part")]
    uniform = Manifest.load(run / "uniform-manifest.json")
    planned = Manifest.load(run / "pruned" / "layerif_manifest.json")
    assert uniform.sparsity == pytest.approx(planned.sparsity, abs=1e-3)
    assert uniform.calibration == planned.calibration

    # Cut short after the scores: the rest comes out the same, the scores are not made again.
    reference = Results.load(run / "layerif-results.json")
    stamp = (run / "scores.json").stat().st_mtime_ns
    for name in ("layerif-results.json", "uniform-results.json"):
        (run / name).unlink()
    status, _, err = layerif("run", path)
    assert status == 0
    assert "found in" in err
    assert (run / "scores.json").stat().st_mtime_ns == stamp
    assert Results.load(run / "layerif-results.json") == reference

    status, _, err = layerif("run", recipe(model, text, tmp_path, seed=1))
    assert status == 2
    assert "holds another run: seed was 0 and is 1" in err


def test_a_wrong_recipe_is_refused_before_anything_is_written(layerif, model, text, tmp_path):
    wrong = {
        "asks for 2 experts, fewer than the 3 decoder layers": {"experts": {"total": 2}},
        "sparsity.target: Input should be less than or equal to 1": {"sparsity": {"target": 2}},
        "sparsety: Extra inputs are not permitted": {"sparsety": {}},
        "fewer than the 1000000": {"score": {"task": "agreement", "train_samples": 10**6}},
        "no task or corpus is called 'nothing'": {"evaluate": {"tasks": ["nothing"]}},
    }
    for message, changes in wrong.items():
        status, _, err = layerif("run", recipe(model, text, tmp_path, **changes))
        assert status == 2
        assert message in err
        assert not (tmp_path / "run").exists()


def test_a_recipe_error_points_at_the_line(layerif, tmp_path):
    path = tmp_path / "recipe.yaml"
    status, _, _ = layerif("init", path)
    assert status == 0
    written = path.read_text()
    for old, new, message in (
        ("  rank: 8 ", "  rank: eight ", "line {}: score.rank: Input should be a valid integer"),
        ("datainf ", "datainv ", "line {}: score.estimator: Value error, there is no estimator"),
        ("  rank: 8 ", "  renk: 8 ", "line {}: score.renk: Extra inputs are not permitted"),
        ("sparsity:  ", "sparsity: {}\nsparsety:", "line {}: sparsity.target: Field required"),
        ("[agreement, python-docs]", "[agreement, 7]", "evaluate.tasks.1: Input should be"),
        ("  alpha: 16", "  rank: 16", "line {} gives 'rank' again"),
        ("  alpha: 16", "\talpha: 16", "is not a YAML file"),
    ):
        before, _, after = written.partition(old)
        assert after, old
        path.write_text(before + new + after)
        status, _, err = layerif("run", path)
        assert status == 2
        assert message.format(before.count("\n") + 1) in err


def test_the_commented_recipe_holds_every_option_at_its_default(layerif, tmp_path):
    path = tmp_path / "recipe.yaml"
    layerif("init", path)
    written = pipeline.Recipe.load(path)
    needed = {
        "model": "smollm2",
        "out": "runs/mine",
        "score": {"task": "agreement"},
        "sparsity": {"target": 0.5},
        "experts": {"total": 150},
        "evaluate": {"tasks": ["agreement", "python-docs"]},
    }
    assert written == pipeline.Recipe.model_validate(needed)
    text = path.read_text()
    for line in written.text().splitlines():
        assert line.split(":")[0].strip(" -") in text, line
    status, _, err = layerif("init", path)
    assert status == 2
    assert "already holds" in err
    assert path.read_text() == text


def test_a_folder_with_something_else_is_refused(layerif, model, text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear to somebody")
    status, _, err = layerif("run", recipe(model, text, tmp_path))
    assert status == 2
    assert "already holds something" in err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_result_that_is_not_finite_has_a_status_of_its_own(layerif, text, tmp_path):
    broken = tiny_model()
    broken.get_output_embeddings().weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    status, _, err = layerif(*score_options(tmp_path / "broken", tmp_path / "run"))
    assert status == 3
    assert "loss of validation sample" in err
    assert not (tmp_path / "run").exists()


def test_help_and_version_import_no_torch():
    code = (
        "import sys; from layerif.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_the_version_is_printed(layerif):
    status, out, _ = layerif("--version")
    assert (status, out.split()[0]) == (0, "layerif")


def test_the_stages_of_a_run_share_one_seed(model, text, tmp_path):
    """Dense, uniform and LayerIF are measured on the same rows and calibrated on the same text."""
    followed = pipeline.Recipe.load(recipe(model, text, tmp_path))
    results = pipeline.run_recipe(followed)
    origins = [r.how for r in results.values()]
    assert origins[0] == origins[1] == origins[2]
    assert {r.measurements[0].count for r in results.values()} == {8}
