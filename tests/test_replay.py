"""Every command writes the recipe that replays it, and finds what it has done."""

from __future__ import annotations

from layerif.artifacts import Allocation, LayerScores, MetricScores, Results


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
        ("command: score\nmodel: x\nout: y\n", "task is missing"),
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
