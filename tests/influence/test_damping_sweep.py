"""A sweep over dampings: what single runs give, from one pass over the gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from helpers.scoring import WANTED, measure
from helpers.tiny import LAYERS, tiny_model
from layerif.artifacts import LayerScores
from layerif.core.checkpoint import resumable
from layerif.errors import InputError
from layerif.report.tables import sweep_lines

PLACES = ("memory", "disk", "passes")
FACTORS = (10.0, 0.01, 1000.0)


@pytest.mark.parametrize(
    ("estimator", "keep"),
    [
        *((estimator, keep) for estimator in ("datainf", "ekfac") for keep in PLACES),
        *((estimator, keep) for estimator in ("exact", "cg") for keep in ("memory", "disk")),
    ],
)
def test_each_damping_gives_what_a_run_of_its_own_gives(estimator, keep, tmp_path):
    model = tiny_model(dtype=torch.float64)
    options = {"estimator": estimator, "keep": keep, "damping": 0.5, "tolerance": 1e-12}
    with resumable(tmp_path / "run", WANTED) as steps:
        scores = measure(model, damping_sweep=FACTORS, steps=steps, **options)
    alone = measure(model, estimator=estimator, damping=0.5, tolerance=1e-12)
    assert np.abs(scores.influence - alone.influence).max() <= 1e-9 * np.abs(alone.influence).max()
    sweep = scores.damping_sweep
    assert sweep.dampings == [0.01, 0.5, 10.0, 1000.0]
    for place, factor in enumerate(sweep.dampings):
        single = measure(model, estimator=estimator, damping=factor, tolerance=1e-12)
        for how in ("all", "positive", "top", "negative"):
            expected = single.aggregate(how)
            found = np.array(sweep.scores[how][place])
            assert np.abs(found - expected).max() <= 1e-8 * np.abs(expected).max()
    assert (sweep.residuals[0] is not None) == (estimator in ("exact", "cg"))


def test_the_stability_is_the_correlation_of_the_layers(tmp_path):
    scores = measure(tiny_model(), damping_sweep=FACTORS)
    sweep = scores.damping_sweep
    rows = sweep.scores["all"]
    expected = [[spearmanr(a, b)[0] for b in rows] for a in rows]
    np.testing.assert_allclose(sweep.spearman["all"], expected, atol=1e-12)
    assert sweep.least["all"] == pytest.approx(np.min(expected))
    (line,) = sweep_lines(scores)
    assert "dampings 0.01, 0.1, 10, 1000" in line
    scores.save(tmp_path)
    assert LayerScores.load(tmp_path) == scores
    assert sweep_lines(measure(tiny_model())) == []


def test_the_gradients_are_computed_once(monkeypatch):
    model = tiny_model()
    forward, calls = model.forward, []
    monkeypatch.setattr(model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    measure(model)
    once = len(calls)
    measure(model, damping_sweep=FACTORS)
    assert len(calls) == 2 * once


def test_what_cannot_be_swept_is_refused():
    with pytest.raises(InputError, match="grad_dot"):
        measure(tiny_model(), estimator="grad_dot", damping_sweep=[0.1])
    with pytest.raises(InputError, match="damping_sweep"):
        measure(tiny_model(), damping_sweep=[0.1, -1.0])


def test_a_damping_given_as_a_number_is_beside_the_sweep():
    sweep = measure(tiny_model(), damping_value=0.3, damping_sweep=[0.1, 1.0]).damping_sweep
    assert sweep.dampings == [0.1, 1.0]
    assert [len(row) for row in sweep.scores["all"]] == [LAYERS, LAYERS]


def test_one_damping_has_no_rankings_to_compare():
    """Would see: a claim that the layers score alike, where nothing was compared."""
    scores = measure(tiny_model(), damping_value=0.3, damping_sweep=[0.1])
    (line,) = sweep_lines(scores)
    assert "alike" not in line
