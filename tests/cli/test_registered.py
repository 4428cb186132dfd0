"""What a user registers appears on the command line and in recipes like what layerif brings."""

import sys

import numpy as np
import pytest
import yaml

import layerif
from helpers.recipes import recipe
from layerif.artifacts import MANIFEST_FILE, LayerScores, Manifest, MetricScores
from layerif.compress.pruning.magnitude import Magnitude
from layerif.compress.pruning.registry import PRUNERS
from layerif.core.options import Options
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
