"""The quadratic question as a metric: against real losses, on text and on a task's samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

import layerif
from helpers.marginal_models import corpus, trained_model
from helpers.tiny import tiny_tokenizer
from layerif.compress.compressor import put_back
from layerif.data import Example
from layerif.data.chunks import cut, draw
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.search.slopes import mean_loss

TEXT = {"tokenizer": tiny_tokenizer(), "calibration_samples": 8, "context_length": 32}


def measured(model, **options):
    return layerif.metric_scores(model, "quadratic", calibration=corpus(), **TEXT, **options)


def test_it_ranks_projections_as_their_real_losses_do():
    model = trained_model()
    scores = measured(model, level=0.6, method="magnitude")
    predicted = np.array([each.score for each in scores.projections])
    text = draw(cut(tiny_tokenizer(), corpus().text("calibration"), 32), 8, 0)
    dense, real = mean_loss(model, text, batch_tokens=512), []
    projections = find_decoder_layers(model).projections
    for projection in projections:
        with put_back([projection]):
            weight = projection.weight
            order = weight.abs().flatten().argsort()[: round(0.6 * projection.numel)]
            weight.view(-1)[order] = 0
            real.append(mean_loss(model, text, batch_tokens=512) - dense)
    assert spearmanr(predicted, real)[0] > 0.8
    assert np.add.reduceat(predicted, range(0, len(predicted), 7)) == pytest.approx(scores.scores)


def test_more_compression_costs_more():
    model = trained_model()
    for of_kind, levels in (("sparsity", (0.3, 0.5, 0.7)), ("bits", (5, 4, 3))):
        sums = [
            sum(measured(model, of_kind=of_kind, level=each, group_size=32).scores)
            for each in levels
        ]
        assert sums == sorted(sums)


def test_samples_of_a_task_take_the_place_of_text():
    rows = [Example(prompt=f"what {i}", completion=f" {i * i}") for i in range(12)]
    scores = layerif.metric_scores(
        trained_model(),
        "quadratic",
        tokenizer=tiny_tokenizer(),
        train=rows[:8],
        validation=rows[8:],
    )
    assert min(scores.scores) > 0


@pytest.mark.parametrize("how", [{"level": 1.5}, {"of_kind": "bits", "level": 2.5}])
def test_a_level_that_there_is_not_is_refused(how):
    with pytest.raises(InputError, match="level"):
        measured(trained_model(), **how)
