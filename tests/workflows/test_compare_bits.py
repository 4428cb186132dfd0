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
    assert {(each.model, each.baseline) for each in pairs} >= {
        ("quadratic", "uniform"),
        ("quadratic", min(rivals, key=rivals.__getitem__)),
    }

    capsys.readouterr()
    again = compared(tmp_path / "study", model)
    assert {name: found.measurements for name, found in again.items()} == {
        name: found.measurements for name, found in results.items()
    }
    assert "measuring" not in capsys.readouterr().err


def test_commands_and_recipes_say_what_plans_take(layerif, tmp_path):
    from layerif.artifacts import Results

    model, text = tmp_path / "model", tmp_path / "text.txt"
    trained_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    whole = corpus().text("calibration")
    text.write_text("\n\n".join(whole[place : place + 400] for place in range(0, len(whole), 400)))
    few = ["--calibration-samples", "4", "--context-length", "32", "--held-out-tokens", "128"]
    how = ["--bits", "3", "--method", "rtn", "--group-size", "32", "--calibration", str(text)]
    status, out, err = layerif(
        *["compare", "bits", "--model", str(model), "--tasks", str(text), *how, *few],
        *["--plans", "quadratic", "--out", str(tmp_path / "compared")],
    )
    assert status == 0, err
    # 3 bits, with a scale of 2 bytes and a zero point of 3 bits for each group.
    assert "uniform 0.01 MB" in " ".join(out.split())
    (tmp_path / "recipe.yaml").write_text(
        f"""
model: {model}
out: {tmp_path / "run"}
score: {{task: agreement, train_samples: 8, validation_samples: 4}}
sparsity: {{target: 0.5}}
prune: {{calibration: {text}, calibration_samples: 4, context_length: 32}}
bits: {{bits: 3, method: rtn, group_size: 32, calibration_samples: 4, context_length: 32,
       held_out_tokens: 128, token: 128}}
depth: {{drop: 1, context_length: 32, tokens: 128, trial_tokens: 64, held_out_tokens: 128}}
evaluate: {{tasks: [{text}], max_tokens: 512, context_length: 32}}
"""
    )
    status, out, err = layerif("run", str(tmp_path / "recipe.yaml"))
    assert status == 2
    assert "did you mean tokens" in err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("token: 128", "tokens: 128"))
    status, out, err = layerif("run", str(recipe))
    assert status == 0, err
    assert "quadratic" in out
    folder = tmp_path / "run" / "quantized"
    dense = Results.load(folder / "dense-results.json").measurements[0].value
    assert dense == Results.load(tmp_path / "run" / "dense-results.json").measurements[0].value
    assert "1 layer dropped" in out
    assert (tmp_path / "run" / "dropped" / "shortlist.json").is_file()
    status, _, err = layerif("run", str(recipe))
    assert status == 0
    assert "measuring" not in err
