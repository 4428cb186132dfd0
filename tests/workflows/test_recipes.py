"""Recipes: checked, followed, replayed; nothing finished is done twice."""

from __future__ import annotations

import json

import pytest

from helpers.recipes import recipe
from helpers.tiny import LAYERS
from layerif.artifacts import Comparisons, Manifest, MetricScores, Plan, Results
from layerif.core.checkpoint import alone
from layerif.core.files import cache_folder
from layerif.errors import InputError
from layerif.workflows import folder as run_folder
from layerif.workflows import pipeline
from layerif.workflows.recipe import ScoreStage


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
    drawn = ("scores", "sparsity", "experts", "ranks")
    pictures = {f"{n}.{s}" for n in drawn for s in ("png", "svg")}
    assert pictures <= names
    assert not [name for name in names if name.endswith(".part")]
    ranks = Plan.load(run / "ranks.json")
    assert (ranks.kind, ranks.total, ranks.how["orientation"]) == ("ranks", 24, "inverse")
    uniform = Manifest.load(run / "pruned-uniform" / "layerif_manifest.json")
    planned = Manifest.load(run / "pruned" / "layerif_manifest.json")
    assert uniform.sparsity == pytest.approx(planned.sparsity, abs=1e-3)
    assert uniform.calibration == planned.calibration

    # Cut short after the scores: the rest comes out the same, the scores are not made again.
    reference = Results.load(run / "layerif-results.json")
    (run / "layerif-results.json").unlink()
    before = made(run)
    status, _, err = layerif("run", path)
    assert status == 0
    assert "nothing is done again" in err
    assert made(run) == before | {"layerif-results.json": made(run)["layerif-results.json"]}
    assert Results.load(run / "layerif-results.json") == reference


def test_other_plans_are_measured_beside(layerif, model, text, tmp_path):
    beside = {"target": 0.5, "beside": ["owl", "marginal", "evolution", "layerif-top"]}
    few = {"rounds": 1, "round_tokens": 64, "evolution_seconds": 0.5}
    path = recipe(model, text, tmp_path, sparsity=beside | few)
    status, out, err = layerif("run", path)
    assert status == 0, err
    run = tmp_path / "run"
    order = ["dense", "uniform", "OWL", "marginal", "evolution", "layerif-top", "LayerIF"]
    assert [
        word for line in out.splitlines() for word in line.split()[:1] if word in order
    ] == order
    found = Comparisons.load(run / "comparison.json").comparisons
    assert {c.model for c in found} == {*order[2:]}
    assert Plan.load(run / "layerif-top.json").how["aggregate"] == "top"
    assert MetricScores.load(run / "outlier_ratio.json").metric == "outlier_ratio"
    how = Plan.load(run / "owl.json").how
    assert (how["map"], how["lam"], how["orientation"]) == ("owl", 0.08, "inverse")
    assert Plan.load(run / "marginal.json").modules
    owl = Manifest.load(run / "pruned-owl" / "layerif_manifest.json")
    assert owl.plan == Plan.load(run / "owl.json")
    status, _, err = layerif("run", path)
    assert status == 0
    assert "is made again" not in err
    edited = json.loads((run / "marginal.json").read_text()) | {"model": None}
    (run / "marginal.json").write_text(json.dumps(edited))
    status, _, err = layerif("run", path)
    assert status == 2
    assert "was edited" in err
    assert json.loads((run / "marginal.json").read_text()) == edited
    wrong = recipe(
        model,
        text,
        tmp_path,
        sparsity=beside,
        out=str(tmp_path / "other"),
        prune={"calibration": "self"},
    )
    status, _, err = layerif("run", wrong)
    assert status == 2
    assert "corpus" in err


RESULTS = {
    "scores.json",
    "pruned/layerif_manifest.json",
    "pruned-uniform/layerif_manifest.json",
    "dense-results.json",
    "uniform-results.json",
    "layerif-results.json",
}


# Of the stages `bits` and `depth`.
SHORT = {"context_length": 32, "held_out_tokens": 64}


def made(run):
    """When each result was written."""
    return {n: (run / n).stat().st_mtime_ns for n in RESULTS if (run / n).exists()}


def likelihoods():
    return set((cache_folder() / "likelihoods").glob("*.safetensors"))


def test_a_changed_option_redoes_just_what_depends_on_it(layerif, model, text, tmp_path):
    run = tmp_path / "run"
    layerif("run", recipe(model, text, tmp_path))
    plans = {"uniform-results.json", "layerif-results.json"}
    measured = {"dense-results.json", *plans}
    layerifs = {"pruned/layerif_manifest.json", "layerif-results.json"}
    pruned = {"pruned/layerif_manifest.json", "pruned-uniform/layerif_manifest.json"}
    evaluation = {"tasks": ["agreement", str(text)], "context_length": 32}
    prune = {"calibration": str(text), "calibration_samples": 3, "context_length": 32}
    for changes, redone, reason in (
        ({"sparsity": {"target": 0.5, "epsilon": 0.3}}, layerifs, "plan was"),
        ({"evaluate": evaluation | {"samples": 9}}, measured, "samples was 8"),
        ({"prune": prune}, pruned | plans, "samples was 4"),
        ({"seed": 1}, RESULTS, "seed was"),
    ):
        layerif("run", recipe(model, text, tmp_path))
        before, kept = made(run), likelihoods()
        status, _, err = layerif("run", recipe(model, text, tmp_path, **changes))
        assert status == 0
        assert reason in err
        assert {name for name, stamp in made(run).items() if stamp != before[name]} == redone
        if reason.startswith("samples was 8"):
            # Other rows of the task for three models; the text is measured already.
            assert len(likelihoods() - kept) == 3


def test_a_plan_that_somebody_edited_is_not_lost(layerif, model, text, tmp_path):
    layerif("run", recipe(model, text, tmp_path))
    path = tmp_path / "run" / "sparsity.json"
    edited = json.loads(path.read_text()) | {"allocation": [0.5] * LAYERS, "total": None}
    path.write_text(json.dumps(edited))
    status, _, err = layerif("run", recipe(model, text, tmp_path))
    assert status == 2
    assert "it was edited" in err
    assert Plan.load(path).allocation == [0.5] * LAYERS


def test_killed_between_a_plan_and_the_note_of_it_the_run_goes_on(tmp_path):
    folder = run_folder.RunFolder(tmp_path / "run")
    first, second = (
        Plan(kind="sparsity", allocation=[share] * 3, layer_sizes=[1, 1, 1]) for share in (0.4, 0.6)
    )
    with folder.claimed("recipe"):
        folder.keep_plan("plan", first)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_folder, "write_text", lambda *_: (_ for _ in ()).throw(SystemExit))
            with pytest.raises(SystemExit):
                folder.keep_plan("plan", second)
        folder.keep_plan("plan", second)
        folder.keep_plan("plan", first)
    assert Plan.load(tmp_path / "run" / "plan.json") == first


def test_stopped_before_its_first_result_a_run_leaves_no_folder(tmp_path):
    folder = run_folder.RunFolder(tmp_path / "run")
    with pytest.raises(InputError), folder.claimed("recipe"):
        raise InputError("refused")
    assert not folder.path.exists()


def test_one_process_at_a_time_follows_a_recipe(layerif, model, text, tmp_path):
    run = tmp_path / "run"
    with alone(run / run_folder.LOCK_FILE, run):
        status, _, err = layerif("run", recipe(model, text, tmp_path))
    assert status == 2
    assert "another process is writing" in err


def test_a_wrong_recipe_is_refused_before_anything_is_written(layerif, model, text, tmp_path):
    wrong = {
        "2 experts, fewer than the 3": {"experts": {"total": 2}},
        "1 ranks, fewer than the 3": {"ranks": {"total": 1}},
        "sparsity.target: ": {"sparsity": {"target": 2}},
        "did you mean sparsity": {"sparsety": {}},
        "1000000": {"score": {"task": "agreement", "train_samples": 10**6}},
        "give its folder": {"score": {"task": "agreement", "subspace": "adapter"}},
        "no adapter 'default'": {
            "score": {"task": "agreement", "subspace": "adapter", "adapter": str(tmp_path)}
        },
        "'nothing'": {"evaluate": {"tasks": ["nothing"]}},
        "cannot be dropped": {"depth": SHORT | {"drop": 3}},
        "leave it out, or the unit": {
            "depth": SHORT | {"drop": 1, "unit": "sublayer", "plans": ["last"]}
        },
        "the lowest level": {"bits": SHORT | {"bits": 2, "levels": [3, 4]}},
        "longer than": {"bits": SHORT | {"bits": 3, "context_length": 10**6}},
        "chunks of 32 tokens": {"depth": SHORT | {"drop": 1, "held_out_tokens": 10**6}},
    }
    for message, changes in wrong.items():
        status, _, err = layerif("run", recipe(model, text, tmp_path, **changes))
        assert status == 2
        assert message in err
        assert not (tmp_path / "run").exists()


def test_a_preset_in_a_recipe_is_under_what_the_recipe_says():
    stage = ScoreStage(task="agreement", preset="paper", train_samples=7)
    assert (stage.train_samples, stage.validation_samples) == (7, 96)
    assert (stage.subspace, stage.warmup_steps, stage.max_length) == ("adapter", 84, 256)
    stage.check(stage.adapter)
    assert ScoreStage.model_validate(stage.model_dump()) == stage
    with_own = ScoreStage(task="agreement", preset="paper", adapter="runs/lora")
    assert (with_own.subspace, with_own.warmup_steps) == ("adapter", 0)
    with_own.check(with_own.adapter)
    with pytest.raises(InputError, match="preset"):
        ScoreStage(task="agreement", preset="papers")


def test_a_recipe_error_points_at_the_line(layerif, tmp_path):
    path = tmp_path / "recipe.yaml"
    status, _, _ = layerif("init", path)
    assert status == 0
    written = path.read_text()
    for old, new, message in (
        ("  rank: 8 ", "  rank: eight ", "line {}: score.rank: "),
        ("estimator: datainf", "estimator: datainv", "line {}: score.estimator: "),
        (
            "  rank: 8 ",
            "  renk: 8 ",
            "line {}: score.renk: ",
        ),
        ("sparsity:  ", "sparsity: {}\nsparsety:  ", "line {}: sparsity.target: "),
        ("[agreement, python-docs]", "[agreement, 7]", "evaluate.tasks.1: "),
        ("  alpha: 16", "  rank: 16", "line {}: the key 'rank'"),
        ("  alpha: 16", "\talpha: 16", "line {}: "),
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
    assert "already exists" in err
    assert path.read_text() == text


def test_a_folder_with_something_else_is_refused(layerif, model, text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear to somebody")
    status, _, err = layerif("run", recipe(model, text, tmp_path))
    assert status == 2
    assert "already holds other files" in err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_the_stages_of_a_run_share_one_seed(model, text, tmp_path):
    """Dense, uniform and LayerIF are measured on the same rows and calibrated on the same text."""
    followed = pipeline.Recipe.load(recipe(model, text, tmp_path))
    results = pipeline.run_recipe(followed).pruned
    origins = [r.how for r in results.values()]
    assert origins[0] == origins[1] == origins[2]
    assert {r.measurements[0].count for r in results.values()} == {8}
