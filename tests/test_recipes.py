"""Recipes: checked, followed, replayed; nothing finished is done twice."""

from __future__ import annotations

import json

import pytest
import yaml

from layerif.artifacts import (
    Allocation,
    Comparisons,
    LayerScores,
    Manifest,
    MetricScores,
    Results,
)
from layerif.checkpoint import alone
from layerif.finetuning import FinetuneOptions
from layerif.runs import cache_folder
from layerif.studies import folder as run_folder
from layerif.studies import pipeline
from layerif.studies.recipe import FinetuneStage, ScoreStage
from tiny import LAYERS


def recipe(model, text, folder, **changes):
    value = {
        "model": str(model),
        "out": str(folder / "run"),
        "score": {"task": "agreement", "train_samples": 6, "validation_samples": 3, "rank": 2},
        "sparsity": {"target": 0.5, "epsilon": 0.2},
        "experts": {"total": 9},
        "ranks": {"total": 24, "orientation": "inverse"},
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
    drawn = ("scores", "sparsity", "experts", "ranks")
    pictures = {f"{n}.{s}" for n in drawn for s in ("png", "svg")}
    assert pictures <= names
    assert not [name for name in names if name.endswith(".part")]
    ranks = Allocation.load(run / "ranks.json")
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
    beside = {"target": 0.5, "beside": ["owl", "marginal"], "rounds": 1, "round_tokens": 64}
    path = recipe(model, text, tmp_path, sparsity=beside)
    status, out, err = layerif("run", path)
    assert status == 0, err
    run = tmp_path / "run"
    order = ["dense", "uniform", "OWL", "marginal", "LayerIF"]
    assert [
        word for line in out.splitlines() for word in line.split()[:1] if word in order
    ] == order
    found = Comparisons.load(run / "comparison.json").comparisons
    assert {c.model for c in found} == {"OWL", "marginal", "LayerIF"}
    assert MetricScores.load(run / "outlier_ratio.json").metric == "outlier_ratio"
    how = Allocation.load(run / "owl.json").how
    assert (how["map"], how["lam"], how["orientation"]) == ("owl", 0.08, "inverse")
    assert Allocation.load(run / "marginal.json").modules
    owl = Manifest.load(run / "pruned-owl" / "layerif_manifest.json")
    assert owl.plan == Allocation.load(run / "owl.json")
    status, _, err = layerif("run", path)
    assert status == 0
    assert "is made anew" not in err
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
    assert "read a corpus or a text file" in err


RESULTS = {
    "scores.json",
    "pruned/layerif_manifest.json",
    "pruned-uniform/layerif_manifest.json",
    "dense-results.json",
    "uniform-results.json",
    "layerif-results.json",
}


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
    prune = {"calibration": str(text), "samples": 3, "context_length": 32}
    for changes, redone, reason in (
        ({"sparsity": {"target": 0.5, "epsilon": 0.3}}, layerifs, "plan was"),
        ({"evaluate": evaluation | {"samples": 9}}, measured, "samples was 8 and is 9"),
        ({"prune": prune}, pruned | plans, "samples was 4 and is 3"),
        ({"seed": 1}, RESULTS, "seed was 0 and is 1"),
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
    assert Allocation.load(path).allocation == [0.5] * LAYERS


def test_killed_between_a_plan_and_the_note_of_it_the_run_goes_on(tmp_path):
    folder = run_folder.RunFolder(tmp_path / "run")
    first, second = (
        Allocation(kind="sparsity", allocation=[share] * 3, layer_sizes=[1, 1, 1])
        for share in (0.4, 0.6)
    )
    with folder.claimed("recipe"):
        folder.keep_plan("plan", first)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_folder, "write_text", lambda *_: (_ for _ in ()).throw(SystemExit))
            with pytest.raises(SystemExit):
                folder.keep_plan("plan", second)
        folder.keep_plan("plan", second)
        folder.keep_plan("plan", first)
    assert Allocation.load(tmp_path / "run" / "plan.json") == first


def test_one_process_at_a_time_follows_a_recipe(layerif, model, text, tmp_path):
    run = tmp_path / "run"
    with alone(run / run_folder.LOCK_FILE, run):
        status, _, err = layerif("run", recipe(model, text, tmp_path))
    assert status == 2
    assert "another process is writing" in err


def test_a_wrong_recipe_is_refused_before_anything_is_written(layerif, model, text, tmp_path):
    wrong = {
        "asks for 2 experts, fewer than the 3 decoder layers": {"experts": {"total": 2}},
        "asks for 1 ranks, fewer than the 3 decoder layers": {"ranks": {"total": 1}},
        "sparsity.target: Input should be less than or equal to 1": {"sparsity": {"target": 2}},
        "sparsety: Extra inputs are not permitted": {"sparsety": {}},
        "fewer than the 1000000": {"score": {"task": "agreement", "train_samples": 10**6}},
        "give its folder": {"score": {"task": "agreement", "subspace": "adapter"}},
        "no adapter 'default'": {
            "score": {"task": "agreement", "subspace": "adapter", "adapter": str(tmp_path)}
        },
        "no task or corpus is called 'nothing'": {"evaluate": {"tasks": ["nothing"]}},
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
    stage.check_combination()
    assert ScoreStage.model_validate(stage.model_dump()) == stage
    with_own = ScoreStage(task="agreement", preset="paper", adapter="runs/lora")
    assert (with_own.subspace, with_own.warmup_steps) == ("adapter", 0)
    with_own.check_combination()
    with pytest.raises(ValueError, match="preset"):
        ScoreStage(task="agreement", preset="papers")


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
    assert "is there already; name another file" in err
    assert path.read_text() == text


def test_a_folder_with_something_else_is_refused(layerif, model, text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear to somebody")
    status, _, err = layerif("run", recipe(model, text, tmp_path))
    assert status == 2
    assert "already holds something" in err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_the_stages_of_a_run_share_one_seed(model, text, tmp_path):
    """Dense, uniform and LayerIF are measured on the same rows and calibrated on the same text."""
    followed = pipeline.Recipe.load(recipe(model, text, tmp_path))
    results = pipeline.run_recipe(followed).pruned
    origins = [r.how for r in results.values()]
    assert origins[0] == origins[1] == origins[2]
    assert {r.measurements[0].count for r in results.values()} == {8}


def commands(model, text, run):
    """Every command that writes something, in the order of a user's day."""
    few = ["--train-samples", 6, "--validation-samples", 3, "--rank", 2]
    plan = run / "plan.json"
    mola = ["--map", "mola", "--shape", "1-2-3"]
    short = ["--context-length", 32]
    yield (
        ["score", "--model", model, "--task", "agreement", *few, "--out", run],
        run / "recipe.yaml",
    )
    yield (
        [
            *["metric", "shuffled", "--of", "dlp", "--model", model, "--calibration", text, *short],
            *["--calibration-samples", 3, "--out", run / "metric.json"],
        ],
        run / "metric.recipe.yaml",
    )
    yield (
        ["allocate", "sparsity", run, "--sparsity", 0.5, "--no-smooth", "--out", plan],
        run / "plan.recipe.yaml",
    )
    yield (
        [*["allocate", "experts", run, "--total", 9, "--out", run / "experts.json"], *mola],
        run / "experts.recipe.yaml",
    )
    own = ["--normalise", "none", "--compat", "authors", "--model", model]
    yield (
        ["allocate", "ranks", run, "--total", 24, *own, "--out", run / "ranks.json"],
        run / "ranks.recipe.yaml",
    )
    yield (
        [
            *["prune", "--model", model, "--plan", plan, "--calibration", text, *short],
            *["--calibration-samples", 3, "--out", run / "pruned"],
        ],
        run / "pruned" / "recipe.yaml",
    )
    yield (
        [
            *["evaluate", "--model", run / "pruned", "--tasks", f"agreement,{text}", *short],
            *["--samples", 5, "--out", run / "results.json"],
        ],
        run / "results.recipe.yaml",
    )


def contents(path):
    """The artifact at a path, the seconds it took aside."""
    if path.is_dir() and (path / "scores.json").exists():
        scores = LayerScores.load(path)
        return scores.influence.tobytes(), scores.record.fingerprint
    if path.is_dir():
        return (path / "model.safetensors").read_bytes()
    if path.name == "metric.json":
        return MetricScores.load(path).model_copy(update={"seconds": 0.0})
    kind = Results if path.name == "results.json" else Allocation
    return kind.load(path)


def test_every_command_writes_the_recipe_that_replays_it(layerif, model, text, tmp_path):
    run = tmp_path / "run"
    for number, (command, recipe_file) in enumerate(commands(model, text, run)):
        out = command[command.index("--out") + 1]
        status, first, err = layerif(*command, "--json")
        assert status == 0, err
        # In the same place nothing is done again, and the same is printed.
        status, again, err = layerif("run", recipe_file, "--json")
        assert (status, again) == (0, first), err
        # Elsewhere the same comes out.
        elsewhere = tmp_path / f"again{number}{out.suffix}"
        if elsewhere.suffix:
            elsewhere = elsewhere.with_name(out.name)
        status, _, err = layerif("run", recipe_file, "--out", elsewhere)
        assert status == 0, err
        assert contents(elsewhere) == contents(out)


def test_a_recipe_of_a_command_is_checked_and_its_line_named(layerif, model, text, tmp_path):
    path = tmp_path / "recipe.yaml"
    for written, message in (
        ("command: scoer\n", "line 1: there is no command `layerif scoer`; known here: "),
        ("command: allocate\n", "line 1: `layerif allocate` is no command that a recipe"),
        ("command: run\n", "line 1: `layerif run` is no command that a recipe can replay"),
        ("command: score\nmodle: x\n", "line 2: `layerif score` has no option 'modle'; did you"),
        (
            "command: score\nmodel: x\ntask: agreement\nout: y\nrank: eight\n",
            "line 5: rank: Input should be a valid integer",
        ),
        ("command: score\nmodel: x\nout: y\n", "task: "),
        ("command: score\nmodel: x\nmodel: y\n", "line 3 gives 'model' again"),
    ):
        path.write_text(written)
        status, _, err = layerif("run", path)
        assert status == 2
        assert message in err, err


def test_the_same_command_again_does_nothing_and_another_is_refused(layerif, model, text, tmp_path):
    run = tmp_path / "run"
    for command, _ in commands(model, text, run):
        layerif(*command)
    stamp = (run / "scores.json").stat().st_mtime_ns
    score = next(commands(model, text, run))[0]
    status, _, err = layerif(*score)
    assert status == 0
    assert "nothing is done again" in err
    status, _, err = layerif(*score, "--seed", 4)
    assert status == 2
    assert "already holds another result: " in err
    assert "seed was 0 and is 4" in err
    assert (run / "scores.json").stat().st_mtime_ns == stamp
    status, _, err = layerif(*score, "--seed", 4, "--overwrite")
    assert status == 0
    assert LayerScores.load(run).record.seed == 4


def test_the_plan_of_experts_is_trained_where_a_recipe_asks_for_it(layerif, model, text, tmp_path):
    stage = {
        "plans": ["lora"],
        "seeds": [0, 1],
        "train_samples": 8,
        "validation_samples": 2,
        "samples": 6,
        "rank": 2,
        "max_steps": 2,
        "batch_size": 4,
    }
    path = recipe(model, text, tmp_path, finetune=stage)
    status, out, err = layerif("run", path)
    assert status == 0, err
    assert "Experts trained by plan" in out
    assert "agreement answer loss: LayerIF" in out
    folder = tmp_path / "run" / "finetuned"
    assert Allocation.load(folder / "LayerIF.json") == Allocation.load(
        tmp_path / "run" / "experts.json"
    )
    value = json.loads(layerif("run", path, "--json")[1])
    assert set(value["finetuned"]) == {"uniform", "lora", "LayerIF"}
    assert len(value["finetuned"]["lora"]["figures"][0][2]) == 2


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"plans": ["moola"]}, "there is no plan 'moola'"),
        ({"seeds": [1, 1]}, "seeds are to be at least one, each once"),
        ({"train_samples": 10**6}, "fewer than the 1000000 asked for"),
        ({"epoch": 2}, "finetune.epoch: Extra inputs"),
    ],
)
def test_a_fine_tuning_that_cannot_be_is_refused_first(
    layerif, model, text, tmp_path, stage, message
):
    status, _, err = layerif("run", recipe(model, text, tmp_path, finetune=stage))
    assert status == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def test_fine_tuning_needs_a_plan_of_experts(layerif, model, text, tmp_path):
    path = recipe(model, text, tmp_path, finetune={"max_steps": 1}, experts=None)
    assert "add the stage `experts`" in layerif("run", path)[2]


def test_the_stage_has_the_options_of_fine_tuning():
    fields, options = FinetuneStage.model_fields, FinetuneOptions.__dataclass_fields__
    shared = {name: option for name, option in options.items() if name != "seed"}
    assert {name: fields[name].default for name in shared} == {
        name: option.default for name, option in shared.items()
    }
