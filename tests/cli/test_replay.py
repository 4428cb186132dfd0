"""Every command writes the recipe that replays it, and finds what it has done."""

from __future__ import annotations

from safetensors.torch import load_file, save_file

from layerif.artifacts import LayerScores, MetricScores, Plan, Results


def commands(model, text, run):
    """Every command that writes something, in the order of a user's day."""
    few = ["--train-samples", 6, "--validation-samples", 3, "--rank", 2]
    plan = run / "plan.json"
    mola = ["--map", "mola", "--shape", "1,2,3"]
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
    kind = Results if path.name == "results.json" else Plan
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
        ("command: scoer\n", "line 1: there is no command `layerif scoer`"),
        ("command: allocate\n", "line 1: `layerif allocate` "),
        ("command: run\n", "line 1: `layerif run` "),
        ("command: score\nmodle: x\n", "line 2: `layerif score` has no option 'modle'"),
        (
            "command: score\nmodel: x\ntask: agreement\nout: y\nrank: eight\n",
            "line 5: rank: ",
        ),
        ("command: score\nmodel: x\nout: y\n", "task is missing"),
        ("command: score\nmodel: x\nmodel: y\n", "line 3: the key 'model'"),
    ):
        path.write_text(written)
        status, _, err = layerif("run", path)
        assert status == 2
        assert message in err, err


def test_what_destroys_or_runs_code_is_said_on_the_command_line(layerif, model, text, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("dear to somebody")
    path = tmp_path / "recipe.yaml"
    prune = f"command: prune\nmodel: {model}\nsparsity: 0.5\nmethod: magnitude\nout: {victim}\n"
    whole = "model: x\nout: y\nscore: {task: agreement}\nsparsity: {target: 0.5}\n"
    for written, key in (
        (prune, "overwrite"),
        (prune, "trust_remote_code"),
        (whole, "overwrite"),
        (whole, "trust_remote_code"),
    ):
        for value in ("true", "'yes'"):
            path.write_text(f"{written}{key}: {value}\n")
            line = len(path.read_text().splitlines())
            status, _, err = layerif("run", path)
            assert status == 2
            assert f"line {line}: {key} " in err
            assert f"pass --{key.replace('_', '-')} to `layerif run`" in err
            assert [each.name for each in victim.iterdir()] == ["thesis.txt"]
    # A result of the same recipe gives way where the command line says so, and says no more.
    plan = tmp_path / "plan.json"
    vector = tmp_path / "vector.json"
    vector.write_text("[0.1, 0.9, 0.4]")
    for share, flags, expected in (
        (0.5, [], 0),
        (0.4, [], 2),
        (0.4, ["--overwrite"], 0),
    ):
        path.write_text(
            f"command: allocate sparsity\nscores: {vector}\nsparsity: {share}\nout: {plan}\n"
        )
        assert layerif("run", path, *flags)[0] == expected
    assert Plan.load(plan).total == 0.4


def test_a_task_file_of_the_harness_runs_code_only_where_it_is_trusted(layerif, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("command: evaluate\nmodel: no/such/model\nharness: own/task.yaml\n")
    status, _, err = layerif("run", path)
    assert status == 2
    assert "line 3" in err
    assert "--trust-remote-code" in err
    status, _, err = layerif("run", path, "--trust-remote-code")
    assert status == 2
    assert "--trust-remote-code" not in err


def test_an_option_of_run_that_the_command_has_not_is_refused(layerif, model, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"command: verify\nfolder: {model}\n")
    for option in (["--no-cache"], ["--out", "x"], ["--data-dir", "x"], ["--overwrite"]):
        status, _, err = layerif("run", path, *option)
        assert status == 2
        assert f"has no option {option[0]}" in err
    path.write_text("command: tasks show\nname: agreement\nstyle: alpaca\ncount: {a: 1}\n")
    status, _, err = layerif("run", path)
    assert status == 2
    assert "line 4" in err
    path.write_text("command: tasks show\nname: agreement\nstyle: plain\n")
    status, _, err = layerif("run", path)
    assert status == 2
    assert "line 3: style: --style has no effect" in err


def test_a_replay_ends_with_the_status_of_its_command(layerif, model, tmp_path):
    pruned, path = tmp_path / "pruned", tmp_path / "recipe.yaml"
    prune = ["prune", "--model", model, "--sparsity", 0.5, "--method", "magnitude"]
    assert layerif(*prune, "--out", pruned)[0] == 0
    path.write_text(f"command: verify\nfolder: {pruned}\n")
    assert layerif("run", path)[0] == 0
    weights = load_file(pruned / "model.safetensors")
    name = next(name for name in weights if "mlp.up_proj" in name)
    weights[name].fill_(1.0)
    save_file(weights, pruned / "model.safetensors", metadata={"format": "pt"})
    status, out, _ = layerif("run", path)
    assert status == layerif("verify", pruned)[0] == 3
    assert "differs" in out


def test_a_file_that_is_no_recipe_of_ours_stays(layerif, tmp_path):
    vector, own = tmp_path / "vector.json", tmp_path / "plan.recipe.yaml"
    vector.write_text("[0.1, 0.9, 0.4]")
    allocate = ["allocate", "sparsity", vector, "--sparsity", 0.5, "--out", tmp_path / "plan.json"]
    own.write_text("flour: 500 g\n")
    status, _, err = layerif(*allocate)
    assert status == 0
    assert "not a recipe" in err
    assert own.read_text() == "flour: 500 g\n"
    # Comments in a recipe that says the same stay too.
    own.unlink()
    layerif(*allocate)
    own.write_text("# mine\n" + own.read_text())
    assert layerif("run", own)[0] == 0
    assert own.read_text().startswith("# mine\n")


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
    assert "already holds another" in err
    assert "seed was" in err
    assert (run / "scores.json").stat().st_mtime_ns == stamp
    status, _, err = layerif(*score, "--seed", 4, "--overwrite")
    assert status == 0
    assert LayerScores.load(run).record.seed == 4
