"""What a user registers appears on the command line and in recipes like what layerif brings."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

import layerif
from helpers.recipes import recipe
from layerif.artifacts import MANIFEST_FILE, LayerScores, Manifest, MetricScores, Results
from layerif.compress.pruning.magnitude import Magnitude
from layerif.compress.pruning.registry import PRUNERS
from layerif.core.options import Options
from layerif.data import Corpus, load_corpus
from layerif.data.registry import CORPORA, TASKS, register_corpus, register_task
from layerif.errors import InputError
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.metrics.registry import METRICS
from layerif.workflows import pipeline


class ToyOptions(Options):
    """Options of the toy."""

    power: float = 1.0
    """Exponent of the toy."""


@pytest.fixture
def registered(monkeypatch):
    for registry in (METRICS, ESTIMATORS, PRUNERS):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    # A command is made once, with what is registered by then; other tests may have called it.
    monkeypatch.delitem(sys.modules, "layerif.cli.score", raising=False)

    def toy(subject, *, power):
        """Layers by their depth."""
        depth = np.arange(1.0, len(subject.layers) + 1)
        return layerif.MetricValues(layers=depth**power)

    def halved(block, _options):
        return layerif.Solution.of(block.products(block.validation / 2), damping=None)

    layerif.register_metric("toy", toy, options=ToyOptions)
    layerif.register_estimator("halved", halved)
    layerif.register_pruner("smallest", Magnitude())


def test_what_is_known_of_entries_before_they_are_imported_is_true():
    for name, facts in PRUNERS.facts.items():
        assert facts == {"reads_text": PRUNERS.find(name).statistics is not None}
    for name, facts in ESTIMATORS.facts.items():
        entry = ESTIMATORS.find(name)
        assert facts == {"damped": entry.damped, "iterative": entry.iterative}


@pytest.mark.usefixtures("registered")
def test_a_metric_with_an_option(layerif, model, tmp_path):
    assert "Layers by their depth" in layerif("metric", "--help")[1]
    assert "Exponent of the toy" in layerif("metric", "toy", "--help")[1]
    out = tmp_path / "toy.json"
    status, _, err = layerif("metric", "toy", "--model", model, "--power", 2, "--out", out)
    assert status == 0, err
    assert MetricScores.load(out).scores == [1.0, 4.0, 9.0]
    written = yaml.safe_load((tmp_path / "toy.recipe.yaml").read_text())
    assert (written["command"], written["power"]) == ("metric toy", 2.0)
    assert layerif("allocate", "sparsity", out, "--sparsity", 0.5)[0] == 0


@pytest.mark.usefixtures("registered")
def test_an_estimator_in_a_command_and_in_a_recipe(layerif, model, text, tmp_path):
    assert "halved" in " ".join(layerif("score", "--help")[1].split())
    few = ["--train-samples", 6, "--validation-samples", 3, "--rank", 2, "--task", "agreement"]
    command = ["score", "--model", model, *few, "--estimator"]
    for name in ("halved", "grad_dot"):
        status, _, err = layerif(*command, name, "--out", tmp_path / name)
        assert status == 0, err
    half, whole = (LayerScores.load(tmp_path / name) for name in ("halved", "grad_dot"))
    np.testing.assert_allclose(half.influence * 2, whole.influence, rtol=1e-12)
    path = recipe(model, text, tmp_path)
    value = yaml.safe_load(path.read_text())
    value["score"]["estimator"] = "halved"
    assert pipeline.Recipe.model_validate(value).score.estimator == "halved"


@pytest.mark.usefixtures("registered")
def test_a_pruner_that_prunes_and_is_searched_with(layerif, model, text, tmp_path):
    asked = ["prune", "--model", model, "--sparsity", 0.5, "--method"]
    for name in ("smallest", "magnitude"):
        status, _, err = layerif(*asked, name, "--out", tmp_path / name)
        assert status == 0, err
    found = [Manifest.load(tmp_path / name / MANIFEST_FILE) for name in ("smallest", "magnitude")]
    zeros = [[(each.module, each.zeros) for each in manifest.modules] for manifest in found]
    assert zeros[0] == zeros[1]
    assert found[0].method == "smallest"
    short = ["--calibration", text, "--calibration-samples", 3, "--context-length", 32]
    search = ["search", "sparsity", "--model", model, "--sparsity", 0.5, "--method", "smallest"]
    few = ["--rounds", 1, "--tokens", 64, "--held-out-tokens", 64]
    status, printed, err = layerif(*search, *short, *few)
    assert status == 0, err
    assert "50.00% overall" in printed


def riddles(request):
    """A task whose rows depend on the seed and the style."""

    def row(place):
        right, wrong = (f" {word}." for word in (("odd", "even") if place % 2 else ("even", "odd")))
        prompt = request.render(f"Is {place + 100 * request.seed} odd or even?")
        return layerif.Example(prompt, right, (right, wrong), 0)

    places = {"train": range(9), "validation": range(9, 14), "test": range(14, 20)}
    return layerif.Task("riddles", {split: list(map(row, own)) for split, own in places.items()})


def birds(request):
    """A corpus of counted birds."""
    lines = [f"Bird {n} of {n * n} in a tree by the river." for n in range(request.seed, 120)]
    return Corpus("birds", lines[:80], lines[80:])


@pytest.fixture
def sources(monkeypatch):
    for registry in (TASKS, CORPORA):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    for command in ("score", "evaluate", "prune", "metric"):
        monkeypatch.delitem(sys.modules, f"layerif.cli.{command}", raising=False)
    layerif.register_task("riddles", riddles, asks="odd or even?", candidates="2")
    layerif.register_corpus("birds", birds, holds="counted birds")


@pytest.mark.usefixtures("sources")
def test_a_task_in_commands_and_in_a_recipe(layerif, model, text, tmp_path):
    listed = {row["name"]: row for row in json.loads(layerif("tasks", "--json")[1])}
    assert listed["riddles"] == {
        **{"name": "riddles", "source": "registered", "candidates": "2"},
        "asks": "odd or even?",
    }
    assert "riddles" in " ".join(layerif("score", "--help")[1].split())
    shown = json.loads(layerif("tasks", "show", "riddles", "--style", "plain", "--json")[1])
    assert all(e["candidates"][0]["prompt"].endswith("even?\n") for e in shown["examples"])
    few = ["--train-samples", 4, "--validation-samples", 2, "--rank", 2]
    status, _, err = layerif(
        *["score", "--model", model, *few, "--task", "riddles", "--out", tmp_path / "scored"]
    )
    assert status == 0, err
    record = LayerScores.load(tmp_path / "scored").record.task
    assert (record["name"], record["rows"]["train"]) == ("riddles", 9)
    assert layerif("tasks", "show", "riddle")[2].count("did you mean riddles?") == 1

    path = recipe(model, text, tmp_path)
    value = yaml.safe_load(path.read_text())
    value["score"] |= {"task": "riddles", "train_samples": 4, "validation_samples": 2}
    value["evaluate"] |= {"tasks": ["riddles", "birds"], "samples": 4}
    value["prune"] |= {"calibration": "birds"}
    path.write_text(yaml.safe_dump(value))
    status, _, err = layerif("run", path)
    assert status == 0, err
    results = Results.load(next(tmp_path.rglob("dense-results.json")))
    assert [m.name for m in results.measurements] == ["riddles", "birds"]


@pytest.mark.usefixtures("sources")
def test_a_corpus_in_commands(layerif, model, tmp_path):
    assert "counted birds" in layerif("tasks")[1]
    assert "birds" in " ".join(layerif("prune", "--help")[1].split())
    asked = ["--model", model, "--tasks", "birds", "--context-length", 32, "--max-tokens", 64]
    status, _, err = layerif("evaluate", *asked, "--out", tmp_path / "r.json")
    assert status == 0, err
    for name in ("birds", "riddles", "facts", "wikitext2", "self"):
        for register in (register_task, register_corpus):
            with pytest.raises(InputError, match="already exists"):
                register(name, birds)
    origin = Results.load(tmp_path / "r.json").how["data"]["birds"]
    assert origin["sha256"]["evaluation"] == load_corpus("birds").origin["sha256"]["evaluation"]


def test_tasks_and_corpora_of_a_package(tmp_path):
    """Entry points of the groups `layerif.tasks` and `layerif.corpora`."""
    (tmp_path / "toys-1.0.dist-info").mkdir()
    (tmp_path / "toys-1.0.dist-info" / "METADATA").write_text("Name: toys\nVersion: 1.0\n")
    (tmp_path / "toys-1.0.dist-info" / "entry_points.txt").write_text(
        "[layerif.tasks]\nriddles = toys:RIDDLES\nfacts = toys:RIDDLES\n"
        "[layerif.corpora]\nbirds = toys:BIRDS\npython-docs = toys:BIRDS\n"
    )
    (tmp_path / "toys.py").write_text(
        "from layerif.data.base import Example, NamedTask, Task\n"
        "from layerif.data.corpora import Corpus, NamedCorpus\n"
        "row = Example('a', 'b')\n"
        "TASK = Task('riddles', {'train': [row], 'validation': [row], 'test': [row]})\n"
        "RIDDLES = NamedTask(lambda request: TASK, 'asked', 'toys', '2')\n"
        "BIRDS = NamedCorpus(lambda request: Corpus('birds', ['a'], ['b']), 'held', 'toys')\n"
    )
    code = (
        "from layerif.data import listings, load_corpus, load_task\n"
        "found = {each.name: each.source for each in listings()}\n"
        "print([found[name] for name in ('riddles', 'birds', 'facts', 'python-docs')])\n"
        "print(load_task('riddles').name, load_corpus('birds').name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    # What layerif brings keeps its names.
    assert done.stdout.split("\n")[0] == "['toys', 'toys', 'generated', 'this Python']"
    assert done.stdout.split("\n")[1] == "riddles birds"
