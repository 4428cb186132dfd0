"""A decoder layer without a linear map has size 0 and gets no budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layerif
from helpers.architecture_checks import TEXT
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.data import Corpus, Example
from layerif.data.tokenizing import encode
from layerif.model.layers import find_decoder_layers
from layerif.validation.capacity import capacity

ROWS = [Example(prompt=f"what {i}", completion=f" {i * i}") for i in range(12)]
CHUNKS = {"calibration_samples": 4, "context_length": 32}


class Bare(nn.Module):
    """A layer that only normalises."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return self.norm(hidden_states)


@pytest.fixture
def model():
    model = tiny_model()
    model.model.layers[1] = Bare(model.model.layers[1].input_layernorm)
    assert find_decoder_layers(model).sizes.tolist() == [7680, 0, 7680]
    return model


def test_plans_give_it_nothing(model):
    scores = layerif.score(model, tiny_tokenizer(), ROWS[:8], ROWS[8:])
    assert not scores.influence[1].any()
    sparsity = layerif.allocate_sparsity(scores, sparsity=0.5)
    assert sparsity.allocation[1] == 0
    assert (sparsity.allocation[0] + sparsity.allocation[2]) / 2 == pytest.approx(0.5)
    experts = layerif.allocate_experts(scores, total=9)
    assert experts.allocation[0] + experts.allocation[2] == 9
    options = {"tokenizer": tiny_tokenizer(), "calibration": TEXT, **CHUNKS}
    assert layerif.prune(model, sparsity, **options).sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("granularity", ["projection", "layer"])
@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy": "marginal", "tokens": 128, "rounds": 1},
        {"strategy": "evolution", "evaluations": 20, "offspring": 4, "stages": ("64:2",)},
    ],
    ids=["marginal", "evolution"],
)
def test_a_search_leaves_it_out(model, strategy, granularity):
    plan = layerif.search_plan(
        model,
        0.5,
        tokenizer=tiny_tokenizer(),
        calibration=Corpus("text", [TEXT], [TEXT], "\n\n"),
        held_out_tokens=256,
        granularity=granularity,
        **strategy,
        **CHUNKS,
    )
    assert plan.allocation[1] == 0
    assert plan.realised_total == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("metric", ["outlier_ratio", "dlp", "pl_alpha", "uniform"])
def test_metrics_measure_the_others(model, metric):
    text = {"tokenizer": tiny_tokenizer(), "calibration": Corpus("text", [TEXT], [TEXT], "\n\n")}
    text = {**text, **CHUNKS} if metric in ("outlier_ratio", "dlp") else {}
    scores = layerif.metric_scores(model, metric, **text)
    assert layerif.allocate_sparsity(scores, sparsity=0.5, on_constant="uniform").allocation[1] == 0


@pytest.mark.parametrize("place", [1, 2])
def test_adapters_gain_nothing_in_it(place):
    model = tiny_model()
    model.model.layers[place] = Bare(model.model.layers[place].input_layernorm)
    samples = {"train": ROWS[:8], "validation": ROWS[8:]}
    scores = layerif.metric_scores(model, "adapter_gain", tokenizer=tiny_tokenizer(), **samples)
    assert [value == 0 for value in scores.scores] == [layer == place for layer in range(3)]
    train, validation = (
        encode(tiny_tokenizer(), [(e.prompt, e.completion) for e in rows], 64)[0]
        for rows in samples.values()
    )
    truth = capacity(model, train, validation, rank=2, train_steps=2)
    assert [not row.any() for row in truth.matrix] == [layer == place for layer in range(3)]
    assert [n == 0 for n in truth.training["parameters"]] == [layer == place for layer in range(3)]
