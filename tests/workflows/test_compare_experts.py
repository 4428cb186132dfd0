"""Plans of experts compared: cells found again, statistics over seeds and rows, the command."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.experts_study import CHOICES, PLANS, STUDY, TASK, compared, rows
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Comparisons, LayerScores, Plan, Results, hash_model
from layerif.core.files import taken
from layerif.data import Task
from layerif.errors import InputError
from layerif.evaluation.comparison import compare_seeds, figures_of
from layerif.evaluation.statistics import holm
from layerif.finetuning.trainer import CompletionTrainer
from layerif.model.peft_adapters import with_adapter
from layerif.report.comparisons import comparison_lines
from layerif.workflows.compare_experts import (
    check_plans,
    compare_experts,
    plans_of,
    scorer,
)


def test_every_plan_is_trained_with_every_seed_and_found_again(tmp_path, monkeypatch):
    model = tiny_model()
    before, asked = hash_model(model), []
    monkeypatch.setattr(
        "layerif.workflows.compare_experts.require_disk",
        lambda folder, size, _what: asked.append((folder, size)),
    )
    cells = compared(tmp_path / "run", model)
    assert hash_model(model) == before
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())
    assert not any(hasattr(m, "get_base_layer") for m in model.modules())
    assert list(cells) == ["uniform", "top", "lora"]
    for name, own in cells.items():
        assert [record.options["seed"] for record in own.records] == [0, 5]
        assert len({record.losses[-1].loss for record in own.records}) == 2
        for seed, result in zip((0, 5), own.results, strict=True):
            # What was measured is what the folder holds.
            adapted = with_adapter(tiny_model(), tmp_path / "run" / "cells" / f"{name}-{seed}")
            losses = by_hand(adapted)
            found = result.measurements[0].outcomes
            assert found.nats == pytest.approx(losses, rel=1e-4)
    routers = sum(p.in_features for p in projections(model))
    trained = {name: own.trainable_parameters for name, own in cells.items()}
    assert trained["uniform"] - trained["lora"] == 2 * routers
    monkeypatch.setattr(CompletionTrainer, "training_step", None)
    again = compared(tmp_path / "run", model)
    for name in cells:
        assert [r.measurements for r in again[name].results] == [
            r.measurements for r in cells[name].results
        ]
    # Room was asked for all adapters, in float32, and the second time for what was missing.
    size = 4 * sum(record.trainable_parameters for own in cells.values() for record in own.records)
    folder = tmp_path / "run"
    assert asked == [(folder, size), (folder, size - taken(folder / "cells"))]
    comparisons = Comparisons.load(tmp_path / "run" / "comparison.json").comparisons
    assert [(c.model, c.metric) for c in comparisons] == [
        (name, metric) for name in ("top", "lora") for metric in ("accuracy", "completion_loss")
    ]
    assert {c.count for c in comparisons} == {12}
    assert [c.p_holm for c in comparisons] == holm([c.p for c in comparisons])
    assert any(c.p_holm > c.p for c in comparisons)


def test_other_test_rows_are_measured_again_and_fewer_plans_compared(tmp_path, monkeypatch):
    plans = {name: PLANS[name] for name in ("uniform", "lora")}
    study = STUDY.but(max_steps=1, seeds=(0,), validation_samples=0)

    def results(plans, task=TASK):
        cells = compare_experts(tmp_path, tiny_model(), tiny_tokenizer(), plans, study, task=task)
        return cells["uniform"].results[0].measurements[0].outcomes

    first = results(plans)
    assert len(Comparisons.load(tmp_path / "comparison.json").comparisons) == 2
    monkeypatch.setattr(CompletionTrainer, "training_step", None)  # nothing is trained again
    other = Task("even", TASK.splits | {"test": rows(50, 12)})
    assert results({"uniform": PLANS["uniform"]}, other).items != first.items
    assert Comparisons.load(tmp_path / "comparison.json").comparisons == []


def test_seeds_out_of_range_are_refused_beforehand():
    with pytest.raises(InputError, match="seeds"):
        STUDY.but(seeds=(0, -1))


def test_no_two_plans_have_one_name(tmp_path):
    with pytest.raises(InputError, match=r"mine/Uniform\.json"):
        compare_experts(
            tmp_path,
            tiny_model(),
            tiny_tokenizer(),
            {"uniform": PLANS["uniform"], "mine/Uniform.json": PLANS["top"]},
            STUDY,
            task=TASK,
        )


def projections(model):
    from layerif.model.layers import find_decoder_layers

    return find_decoder_layers(model).projections


def by_hand(model):
    """Nats of the right completion of each test row, one at a time."""
    tokenizer = tiny_tokenizer()
    losses = []
    for row in TASK.splits["test"]:
        ids = torch.tensor([tokenizer(row.prompt + row.completion)["input_ids"]])
        start = len(tokenizer(row.prompt)["input_ids"])
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        losses.append(-sum(logs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
    return losses


def test_two_seeds_of_noise_are_inside_the_noise(tmp_path):
    cells = compared(tmp_path / "run", tiny_model())
    results = {"a": cells["uniform"].results, "b": list(reversed(cells["uniform"].results))}
    for comparison in compare_seeds(results, "a"):
        assert comparison.difference == pytest.approx(0, abs=1e-12)
        assert comparison.inside_noise
        assert comparison.seeds == 2
    assert "2 seeds cannot show" in comparison_lines(compare_seeds(results, "a"))[-1]
    accuracy, loss = figures_of(cells["top"].results)
    assert accuracy.values.shape == loss.values.shape == (2, 12)
    outcomes = cells["top"].results[1].measurements[0].outcomes
    each = [nats / tokens for nats, tokens in zip(outcomes.nats, outcomes.tokens, strict=True)]
    assert loss.by_seed[1] == pytest.approx(sum(each) / 12)
    with pytest.raises(InputError, match="seeds"):
        compare_seeds({"a": results["a"], "b": results["a"][:1]}, "a")
    other = results["a"][1].model_copy(deep=True)
    outcomes = other.measurements[0].outcomes.model_copy(update={"items": "x"})
    measurement = other.measurements[0].model_copy(update={"outcomes": outcomes})
    mixed = other.model_copy(update={"measurements": [measurement]})
    assert isinstance(mixed, Results)
    with pytest.raises(InputError, match="rows"):
        figures_of([results["a"][0], mixed])


def test_plans_by_name_have_one_total(tmp_path):
    model = tiny_model()

    def plan(name, total=9):
        return plans_of([name], total, scorer(model, None, 0), 4)[name]

    for name in ("uniform", "alphalora", "mola-2468", "mola-531", "random"):
        assert plan(name).realised_total == 9
        assert plan(name).kind == "experts"
    assert plan("mola-531").allocation == [5, 3, 1]
    assert plan("alphalora").how["normalise"] == "none"
    assert (plan("lora").kind, plan("lora").allocation) == ("ranks", [12, 12, 12])
    Plan(kind="ranks", allocation=[2, 4, 30]).save(tmp_path / "ranks.json")
    assert plan(str(tmp_path / "ranks.json")).allocation == [2, 4, 30]
    with pytest.raises(InputError, match="expected 10 experts, or ranks of 40"):
        plan(str(tmp_path / "ranks.json"), 10)
    with pytest.raises(InputError, match="give scores"):
        check_plans(["lora", "layerif"], 9, model=model, options=STUDY, scored=False)
    with pytest.raises(InputError, match=r"there is no experts plan 'mola'.* or a .json file"):
        plan("mola")
    found = plans_of(["lora", "uniform", "lora"], 9, scorer(model, None, 0), 4)
    assert list(found) == ["uniform", "lora"]


def test_the_command_prints_one_table(layerif, model, tmp_path, monkeypatch):
    lines = [
        json.dumps({"prompt": e.prompt, "choices": list(CHOICES), "answer": e.answer})
        for e in rows(0, 60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    scored = ["score", "--model", model, "--task", tmp_path / "rows.jsonl", "--out"]
    few = ["--train-samples", 6, "--validation-samples", 3]
    status, _, err = layerif(*scored, tmp_path / "scores", *few)
    assert status == 0, err
    base = ["compare", "experts", "--model", model, "--task", tmp_path / "rows.jsonl"]
    base += ["--total", 6, "--seeds", "0,1", "--max-steps", 2, "--batch-size", 4, "--rank", 2]
    base += ["--validation-samples", 3, "--out", tmp_path / "run"]
    asked = [*base, "--plans", "layerif,lora", "--scores", tmp_path / "scores"]
    status, out, err = layerif(*asked)
    assert status == 0, err
    words = " ".join(out.split())
    assert "6 experts trained by several plans, 2 seeds, 6 test rows" in words
    assert "answer loss: layerif" in words
    saved = Plan.load(tmp_path / "run" / "layerif.json")
    assert saved.realised_total == 6
    assert LayerScores.load(tmp_path / "scores").model.layers == len(saved.allocation)
    status, out, err = layerif("run", tmp_path / "run" / "recipe.yaml")
    assert status == 0, err
    assert err.count("nothing is done again") >= 6
    value = json.loads(layerif(*asked, "--json")[1])
    assert set(value) == {"uniform", "layerif", "lora"}
    assert "seeds" in layerif(*asked, "--seeds", "1,1")[2]
    assert "seeds" in layerif(*asked, "--seeds", "0,-1")[2]
    assert "whole numbers" in layerif(*asked, "--seeds", "0.5,1")[2]
    # Before the scores of any other plan are measured.
    monkeypatch.setattr("layerif.workflows.compare_experts.metric_scores", None)
    assert "there is no experts plan 'moola'" in layerif(*base, "--plans", "alphalora,moola")[2]
    assert "give scores" in layerif(*base, "--plans", "alphalora,layerif")[2]
