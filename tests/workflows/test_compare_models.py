"""Plans compared on one model: tuned alike, measured on the same items, found again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from helpers.marginal_models import corpus
from helpers.scoring import measure
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Comparisons, Plan, Results
from layerif.compress.held import HeldModel
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.runner import prune
from layerif.data import load_corpus
from layerif.data.chunks import cut, draw
from layerif.errors import InputError
from layerif.evaluation.options import EvaluateOptions
from layerif.evaluation.perplexity import perplexity
from layerif.evaluation.statistics import holm
from layerif.model.opening import open_model
from layerif.plans.maps.sparsity import OWL_LAMBDA
from layerif.plans.named import PLANS, find_plan
from layerif.workflows.compare_models import beside, compare_models, compressions
from layerif.workflows.options import SparsityStudy

TRIES = 2

SHORT = {"context_length": 32, "held_out_tokens": 64}


def asked(model, text, out, plans="alphapruning,owl,dlp,random,marginal"):
    return [
        *["compare", "sparsity", "--model", model, "--sparsity", 0.5, "--tries", TRIES],
        *["--tasks", f"agreement,{text}", "--samples", 6, "--plans", plans, "--out", out],
        *["--calibration", text, "--calibration-samples", 4, "--context-length", 32],
        *["--held-out-tokens", 64],
    ]


@pytest.fixture
def compared(layerif, model, text, tmp_path):
    out = tmp_path / "out"
    status, printed, err = layerif(*asked(model, text, out))
    assert status == 0, err
    return out, printed


def test_every_plan_is_measured_and_the_best_try_is_taken(compared):
    out, printed = compared
    tuning = json.loads((out / "tuning.json").read_text())
    assert list(tuning) == ["uniform", "alphapruning", "owl", "dlp", "random", "marginal"]
    for name, found in tuning.items():
        losses = [each["held_out_loss"] for each in found["tried"]]
        assert found["held_out_loss"] == min(losses)
        assert len(losses) == {"uniform": 1, "marginal": TRIES + 1}.get(name, TRIES)
        assert name in printed
    values = [each["lam"] for each in tuning["owl"]["tried"]]
    assert values == [OWL_LAMBDA, 2 * OWL_LAMBDA]
    kept = Comparisons.load(out / "comparison.json").comparisons
    assert {each.baseline for each in kept if each.model != "marginal"} == {"uniform"}
    assert "against uniform" in printed
    # Marginal's meeting with the best rival is of the family that the text names.
    rivals = {each.baseline for each in kept if each.model == "marginal"} - {"uniform"}
    best = min(("alphapruning", "owl", "dlp", "random"), key=lambda n: tuning[n]["held_out_loss"])
    assert rivals == {best}
    assert [each.p_holm for each in kept] == pytest.approx(holm([each.p for each in kept]))
    assert f"adjusted for {len(kept)} comparisons" in " ".join(printed.split())
    assert Results.load(out / "owl-results.json").sparsity == pytest.approx(0.5, abs=1e-3)
    assert Plan.load(out / "owl.json").realised_total == pytest.approx(0.5, abs=1e-9)


def test_marginal_meets_its_best_rival_whether_or_not_that_beats_the_uniform_plan():
    losses = {"uniform": 1.0, "owl": 3.0, "marginal": 0.5, "dlp": 2.0}
    assert (
        beside(losses, "sparsity")
        == beside({**losses, "uniform": 9.0}, "sparsity")
        == [("marginal", "dlp")]
    )
    assert beside({"uniform": 1.0, "owl": 3.0, "dlp": 2.0}, "sparsity") == []
    assert beside({"uniform": 1.0, "marginal": 0.5}, "sparsity") == []


def test_held_out_chunks_are_none_that_pruning_takes(model, text):
    _, tokenizer = open_model(str(model))
    chunks = cut(tokenizer, text.read_text(), 32)
    taken = {c.index for c in draw(chunks, 4, 0)}
    both = [c.index for c in draw(chunks, 6, 0)]
    assert set(both[:4]) == taken
    assert not taken & set(both[4:])


def test_the_loss_of_a_try_is_that_of_the_pruned_model(compared, model, text):
    out, _ = compared
    plan = Plan.load(out / "uniform.json")
    opened, tokenizer = open_model(str(model))
    corpus = load_corpus(str(text))
    prune(
        opened,
        plan,
        tokenizer=tokenizer,
        calibration=corpus,
        calibration_samples=4,
        context_length=32,
    )
    chunks = cut(tokenizer, corpus.text("calibration"), 32)
    held_out = draw(chunks, 6, 0)[4:]
    nats = []
    for chunk in held_out:
        measured = perplexity(
            opened, tokenizer, tokenizer.decode(chunk.input_ids), context_length=32
        )
        nats.append(np.log(measured.value))
    tuning = json.loads((out / "tuning.json").read_text())
    assert tuning["uniform"]["held_out_loss"] == pytest.approx(np.mean(nats), rel=1e-5)


def test_what_is_finished_is_not_done_again(compared, layerif, model, text, monkeypatch):
    out, _ = compared

    def refuse(*_args, **_options):
        raise AssertionError("pruned again")

    monkeypatch.setattr("layerif.workflows.compare_models.prune", refuse)
    status, _, err = layerif("run", out / "recipe.yaml")
    assert status == 0, err
    assert err.count("nothing is done again") >= 7


def test_what_a_plan_misses_is_said_before_any_work(layerif, model, text, tmp_path):
    out = tmp_path / "out"
    for plans, message in {
        "layerif": "give scores, a run folder",
        "owls": "there is no sparsity plan 'owls'; did you mean owl? There are uniform, layerif",
    }.items():
        status, _, err = layerif(*asked(model, text, out, plans))
        assert status == 2
        assert message in err
    status, _, err = layerif(*asked(model, text, out, "owl"), "--held-out-tokens", 10**6)
    assert status == 2
    assert "chunks of 32 tokens" in err
    for option, value, message in [
        ("--held-out-tokens", 0, "held-out-tokens"),
        ("--tries", 7, "6 values"),
    ]:
        status, _, err = layerif(*asked(model, text, out, "marginal,dlp"), option, value)
        assert status == 2
        assert message in err
    assert not out.exists()


def test_every_value_that_is_tried_is_legal():
    scores = np.arange(1.0, 9.0)
    for name in PLANS["sparsity"].names():
        if find_plan(name, "sparsity").searched is not None:
            continue
        for plan in find_plan(name, "sparsity").plans("sparsity", 0.5, lambda *_: scores, tries=99):
            assert plan.realised_total == pytest.approx(0.5), name


def test_scores_of_another_model_are_refused_before_any_work(tmp_path):
    study = SparsityStudy(
        sparsity=0.5, context_length=32, calibration_samples=4, held_out_tokens=64
    )
    scores = measure(tiny_model("gpt2"))
    with pytest.raises(InputError, match="scores"):
        compare_models(
            tmp_path / "out",
            tiny_model(),
            tiny_tokenizer(),
            ["layerif"],
            study,
            calibration=corpus(),
            on=[corpus()],
            options=EvaluateOptions(context_length=32),
            influence=scores,
        )
    assert not (tmp_path / "out").exists()


def test_another_context_of_the_evaluation_is_measured_again(tmp_path):
    def perplexities(folder, length):
        found = compare_models(
            tmp_path / folder,
            tiny_model(),
            tiny_tokenizer(),
            ["uniform"],
            SparsityStudy(
                sparsity=0.5, context_length=32, calibration_samples=4, held_out_tokens=64
            ),
            calibration=corpus(),
            on=[corpus()],
            options=EvaluateOptions(context_length=length),
        )
        return {name: each.measurements[0].value for name, each in found.items()}

    first = perplexities("one", 64)
    again = perplexities("one", 16)
    assert again == perplexities("two", 16)
    assert again["uniform"] != first["uniform"]


def test_nothing_of_others_is_written_over(compared, layerif, model, text, tmp_path):
    out, _ = compared
    for name, change, says in (
        ("owl", {"how": {"map": "by hand"}}, "it was edited"),
        ("marginal", {"model": None}, "was edited since"),
    ):
        path = out / f"{name}.json"
        before = path.read_text()
        edited = json.dumps({**json.loads(before), **change})
        path.write_text(edited)
        status, _, err = layerif(*asked(model, text, out))
        assert status == 2
        assert says in err
        assert path.read_text() == edited
        path.write_text(before)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "uniform.json").write_text("dear to somebody")
    status, _, err = layerif(*asked(model, text, other))
    assert status == 2
    assert "already holds other files" in err
    assert (other / "uniform.json").read_text() == "dear to somebody"


def test_a_pattern_and_another_pruner_hold_for_every_plan(layerif, model, text, tmp_path):
    out = tmp_path / "out"
    how = ["--method", "sparsegpt", "--nm", "8:16"]
    status, _, err = layerif(*asked(model, text, out, "owl,marginal"), *how)
    assert status == 0, err
    assert Plan.load(out / "marginal.json").how["method"] == "sparsegpt"
    opened, tokenizer = open_model(str(model))
    manifest = prune(
        opened,
        Plan.load(out / "owl.json"),
        tokenizer=tokenizer,
        calibration=load_corpus(str(text)),
        method="sparsegpt",
        nm="8:16",
        calibration_samples=4,
        context_length=32,
    )
    zeros = Results.load(out / "owl-results.json").sparsity
    assert zeros == pytest.approx(manifest.sparsity, abs=1e-12)
    assert len({module.pattern for module in manifest.modules}) > 1
    status, _, err = layerif(*asked(model, text, tmp_path / "other", "owl"), "--nm", "3:7")
    assert status == 2
    assert "multiple" in err


def test_owl_tries_other_multiples_after_four_values_of_lam():
    options = find_plan("owl", "sparsity").tries("sparsity", 7)
    assert [of_metric for of_metric, _ in options[:4]] == [{}] * 4
    assert [own["multiple"] for own, _ in options[4:6]] == [3.0, 7.0]
    assert options[4][1] == options[5][1] == options[0][1]
    assert options[6] == ({}, options[0][1] | {"lam": 1.5 * OWL_LAMBDA})
    plans = {name: find_plan(name, "sparsity") for name in PLANS["sparsity"].names()}
    once = [name for name, plan in plans.items() if not (plan.tuned or plan.searched)]
    assert once == ["uniform"]
    assert len(find_plan("layerif", "sparsity").tries("sparsity", 3)) == 3


def test_the_scores_of_a_try_have_its_own_multiple(layerif, model, text, tmp_path):
    out = tmp_path / "out"
    arguments = asked(model, text, out, "owl")
    arguments[arguments.index("--tries") + 1] = 5
    status, _, err = layerif(*arguments)
    assert status == 0, err
    tried = json.loads((out / "tuning.json").read_text())["owl"]["tried"]
    losses = [each["held_out_loss"] for each in tried]
    assert len(losses) == 5
    assert losses[4] != losses[0], "M = 3 is another plan than M = 5 at the same lam"


def test_an_evolutionary_search_is_a_rival_with_seconds_of_its_own(layerif, model, text, tmp_path):
    out = tmp_path / "out"
    words = asked(model, text, out, "marginal,evolution")
    status, _, err = layerif(*words, "--evolution-seconds", 0.5)
    assert status == 0, err
    tuning = json.loads((out / "tuning.json").read_text())
    losses = [each["held_out_loss"] for each in tuning["evolution"]["tried"]]
    assert losses == sorted(losses, reverse=True)
    assert tuning["evolution"]["held_out_loss"] == losses[-1]
    assert Plan.load(out / "evolution.json").realised_total == pytest.approx(0.5, abs=1e-3)
    kept = Comparisons.load(out / "comparison.json").comparisons
    assert {each.baseline for each in kept if each.model == "marginal"} == {"uniform", "evolution"}
    # More of its seconds search again, and measure no other plan again.
    status, _, err = layerif(*words, "--evolution-seconds", 0.6)
    assert status == 0, err
    reused = {Path(path).name for path in re.findall(r"(\S+) already holds this result", err)}
    assert {"uniform-results.json", "marginal.json", "marginal-results.json"} <= reused
    assert "evolution.json" not in reused
    status, _, err = layerif(*asked(model, text, out, "owl"), "--evolution-seconds", 1)
    assert status == 2
    assert "evolution" in err


@pytest.mark.parametrize("name", ["owl", "quadratic", "marginal", "quadratic-marginal"])
def test_how_often_a_plan_compresses_is_known_beforehand(monkeypatch, tmp_path, name):
    study = SparsityStudy(
        sparsity=0.5, context_length=32, calibration_samples=4, held_out_tokens=64, tries=2
    )
    counted = []

    def counting(function):
        def called(*given, **options):
            counted.append(function.__name__)
            return function(*given, **options)

        return called

    monkeypatch.setattr(HeldModel, "at", counting(HeldModel.at))
    spent = {"sparsity": (counting(prune), PruneOptions)}
    monkeypatch.setattr("layerif.workflows.compare_models.SPENT", spent)
    on = {"calibration": corpus(), "on": [corpus()], "options": EvaluateOptions(context_length=32)}
    compare_models(tmp_path / "run", tiny_model(), tiny_tokenizer(), [name], study, **on)
    assert len(counted) == compressions("uniform", study) + compressions(name, study)
