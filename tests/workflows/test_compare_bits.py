"""Plans of bits compared on one model: the same mean, the same items, nothing done twice."""

from __future__ import annotations

import json

import torch

from helpers.marginal_models import corpus, trained_model
from helpers.tiny import tiny_tokenizer
from layerif.artifacts import Comparisons, Plan
from layerif.evaluation.options import EvaluateOptions
from layerif.workflows.bench import COMPARISON_FILE
from layerif.workflows.compare_models import TUNING_FILE, compare_models
from layerif.workflows.options import BitsStudy

STUDY = BitsStudy(
    bits=3,
    method="rtn",
    group_size=32,
    calibration_samples=4,
    context_length=32,
    held_out_tokens=512,
    tries=2,
)


def compared(folder, model):
    return compare_models(
        folder,
        model,
        tiny_tokenizer(),
        ["rule", "local", "slope", "quadratic"],
        STUDY,
        calibration=corpus(),
        on=[corpus()],
        options=EvaluateOptions(context_length=32, max_tokens=1024),
    )


def test_plans_have_one_mean_and_the_model_is_as_before(tmp_path, capsys):
    model = trained_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    results = compared(tmp_path / "study", model)
    assert list(results) == ["dense", "uniform", "rule", "local", "slope", "quadratic"]
    for name in list(results)[1:]:
        plan = Plan.load(tmp_path / "study" / f"{name}.json")
        assert plan.kind == "bits"
        assert 2.9 < plan.realised_total <= 3
    perplexity = {name: found.measurements[0].value for name, found in results.items()}
    assert perplexity["dense"] < perplexity["quadratic"] < perplexity["uniform"]
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())

    tuning = json.loads((tmp_path / "study" / TUNING_FILE).read_text())
    pairs = Comparisons.load(tmp_path / "study" / COMPARISON_FILE).comparisons
    rivals = {name: tuning[name]["held_out_loss"] for name in ("rule", "local", "slope")}
    assert {(each.one, each.other) for each in pairs} >= {
        ("quadratic", "uniform"),
        ("quadratic", min(rivals, key=rivals.__getitem__)),
    }

    capsys.readouterr()
    again = compared(tmp_path / "study", model)
    assert {name: found.measurements for name, found in again.items()} == {
        name: found.measurements for name, found in results.items()
    }
    assert "measuring" not in capsys.readouterr().err
