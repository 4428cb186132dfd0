"""Ground truths against brute force on copies of the model, and scores beside them."""

from __future__ import annotations

import copy
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr

from helpers.scoring import WANTED
from helpers.tiny import ARCHITECTURES, LAYERS, float64_tolerance, tiny_model, tiny_tokenizer
from layerif.artifacts import GroundTruth
from layerif.calibration.statistics import InputNorms
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.wanda import wanda_mask
from layerif.core.checkpoint import resumable
from layerif.data.batching import Encoded, collate
from layerif.data.chunks import cut
from layerif.errors import InputError, NumericalError
from layerif.evaluation.statistics import holm
from layerif.model.layers import find_decoder_layers
from layerif.model.modes import evaluation_mode
from layerif.model.opening import describe, setting
from layerif.report.correlation import agreement_table, plot_agreement
from layerif.validation.correlation import advice, agreements
from layerif.validation.ground_truth import isolated, operating_point
from layerif.validation.partial import PartialForward
from layerif.workflows.validation import scores_of

TEXT = "the keys to the old cabinet are on the table, and nobody knows who put them there. " * 6
DEVICE = torch.device("cpu")


def chunks(count=4, length=24):
    return cut(tiny_tokenizer(), TEXT, length)[:count]


def loss(model):
    """Mean nats a token, chunk by chunk, straight from the model."""
    found = []
    with torch.no_grad(), evaluation_mode(model):
        for chunk in chunks():
            ids = torch.tensor([chunk.input_ids])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            found.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    return np.array(found)


def norms_of(model, layer):
    """What InputNorms sees when the whole model runs the chunks."""
    statistics = InputNorms(find_decoder_layers(model).of(layer))
    with torch.no_grad(), statistics.watching(), evaluation_mode(model):
        for chunk in chunks():
            model(input_ids=torch.tensor([chunk.input_ids]), use_cache=False)
    return statistics


def pruned_layer(model, layer, statistics, sparsity, dense=None):
    for row, projection in enumerate(find_decoder_layers(model).projections):
        if projection.layer == layer:
            if dense is not None:
                projection.weight.copy_(find_decoder_layers(dense).projections[row].weight)
            mask = wanda_mask(projection.weight, statistics.norms(projection), sparsity)
            projection.weight.masked_fill_(mask, 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_forward_from_a_layer_is_the_whole_one(architecture):
    model = tiny_model(architecture, dtype=torch.float64)
    layers = find_decoder_layers(model)
    batch = collate(chunks(), device=DEVICE)
    with evaluation_mode(model):
        partial = PartialForward(model, layers)
        whole, hidden = partial.whole(batch)
        for layer in range(LAYERS):
            again = partial.upwards(batch, layer, hidden[layer])
            torch.testing.assert_close(again, whole, rtol=1e-12, atol=0)
        changed = partial.upwards(batch, 1, hidden[1] * 1.5)
    assert not torch.allclose(changed, whole)
    assert not any("forward" in vars(module) for module in layers.modules)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layer_pruned_alone_costs_what_it_costs(architecture):
    model = tiny_model(architecture, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    truth = isolated(model, chunks(), 0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    dense = loss(model)
    tolerance = max(1e-10, 10 * float64_tolerance(architecture))
    assert truth.base_loss == pytest.approx(dense.mean(), rel=tolerance)
    for layer in range(LAYERS):
        alone = copy.deepcopy(model)
        pruned_layer(alone, layer, norms_of(alone, layer), 0.5)
        expected = loss(alone) - dense
        np.testing.assert_allclose(truth.matrix[layer], expected, rtol=0, atol=100 * tolerance)
        assert truth.values[layer] == pytest.approx(expected.mean(), abs=100 * tolerance)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
def test_a_layer_moved_at_the_operating_point_costs_what_it_costs(architecture):
    model = tiny_model(architecture, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    truth = operating_point(model, chunks(), 0.5, delta=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruned = copy.deepcopy(model)
    text = tiny_tokenizer().decode([i for c in chunks() for i in c.input_ids])
    prune(
        pruned,
        0.5,
        tokenizer=tiny_tokenizer(),
        calibration=text,
        calibration_samples=len(chunks()),
        context_length=24,
    )
    assert truth.base_loss == pytest.approx(loss(pruned).mean(), rel=1e-9)
    for layer in range(LAYERS):
        # As the pruner sees it: the layers below are pruned, the layer itself is not yet.
        below = copy.deepcopy(pruned)
        for ours, dense in zip(
            find_decoder_layers(below).of(layer), find_decoder_layers(model).of(layer), strict=True
        ):
            ours.weight.copy_(dense.weight)
        statistics = norms_of(below, layer)
        moved = []
        for sparsity in (0.6, 0.4):
            other = copy.deepcopy(pruned)
            pruned_layer(other, layer, statistics, sparsity, dense=model)
            moved.append(loss(other))
        expected = (moved[0] - moved[1]) / 0.2
        np.testing.assert_allclose(truth.matrix[layer], expected, rtol=1e-6, atol=1e-9)


def test_a_run_cut_short_goes_on(tmp_path, monkeypatch):
    model = tiny_model()
    reference = isolated(model, chunks(), 0.5)
    runs = []
    upwards = PartialForward.upwards

    def stop_later(self, *args):
        runs.append(args[1])
        if len(runs) == 2:
            raise KeyboardInterrupt
        return upwards(self, *args)

    monkeypatch.setattr(PartialForward, "upwards", stop_later)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "run", WANTED) as steps:
        isolated(model, chunks(), 0.5, steps=steps)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    runs.clear()
    monkeypatch.setattr(
        PartialForward, "upwards", lambda s, *a: runs.append(a[1]) or upwards(s, *a)
    )
    with resumable(tmp_path / "run", WANTED) as steps:
        found = isolated(model, chunks(), 0.5, steps=steps)
    assert found.costs == reference.costs
    assert runs == [1, 2]


def test_costs_are_those_of_their_own_chunks():
    """Chunks of several lengths are run in another order than they come in."""
    model = tiny_model(dtype=torch.float64)
    whole = chunks(6)
    lengths = (9, 24, 13, 20, 11, 17)
    uneven = [
        Encoded(chunk.index, chunk.input_ids[:length], 1)
        for chunk, length in zip(whole, lengths, strict=True)
    ]
    order = [3, 0, 5, 1, 4, 2]
    found = isolated(model, uneven, 0.5, batch_tokens=40).matrix
    turned = isolated(model, [uneven[i] for i in order], 0.5, batch_tokens=40).matrix
    np.testing.assert_allclose(turned, found[:, order], rtol=0, atol=1e-6)
    assert len({round(cost, 6) for cost in found[0]}) == len(lengths)


def test_what_cannot_be_moved_is_refused():
    with pytest.raises(InputError, match="sparsity"):
        isolated(tiny_model(), chunks(), 1.0)
    with pytest.raises(InputError, match=r"0\.2"):
        operating_point(tiny_model(), chunks(), 0.8, delta=0.3)


@pytest.mark.parametrize("truth", [isolated, operating_point])
def test_a_loss_that_is_not_finite_is_named(truth):
    model = tiny_model()
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(NumericalError, match="chunk 0 "):
        truth(model, chunks(), 0.5)


def truth_of(costs):
    model = tiny_model()
    return GroundTruth(
        kind="isolated",
        sparsity=0.5,
        delta=None,
        costs=costs.tolist(),
        base_loss=1.0,
        model=describe(model).model_copy(
            update={"layers": len(costs), "layer_sizes": [1] * len(costs)}
        ),
        text={},
        setting=setting(model),
    )


def beside(scores, truth):
    """Agreements of scores with one ground truth alone."""
    return agreements(scores, {truth.kind: truth})[truth.kind]


def test_scores_are_ranked_by_their_correlation_with_the_costs():
    rng = np.random.default_rng(0)
    costs = np.arange(12.0)[:, None] + rng.normal(scale=15, size=(12, 40))
    scores = {
        "noise": rng.normal(size=12),
        "against": -(np.arange(12.0) ** 3),
        "with": np.sqrt(np.arange(12.0)) + 0.3 * rng.normal(size=12),
        "constant": np.ones(12),
    }
    found = beside(scores, truth_of(costs))
    by_name = {each.name: each for each in found}
    assert found[0].name == "against"
    assert found[-1].spearman is None
    for name in ("noise", "against", "with"):
        expected = spearmanr(scores[name], costs.mean(1))[0]
        assert by_name[name].spearman == pytest.approx(expected)
    # The interval against a plain loop over the same draws.
    draws = np.random.default_rng(0).integers(0, 40, (2000, 40))
    loop = [spearmanr(scores["with"], costs[:, own].mean(1))[0] for own in draws[:2000]]
    low, high = np.quantile(loop, [0.025, 0.975])
    assert (by_name["with"].low, by_name["with"].high) == pytest.approx((low, high))
    assert high - low > 0.05
    assert by_name["against"].orientation == "direct"
    assert by_name["with"].orientation == "inverse"
    assert by_name["constant"].orientation is None
    assert "Use against with orientation direct" in advice(found)
    assert "No better than uniform" in advice([by_name["constant"]])
    with pytest.raises(InputError, match=r"short has 3 .*12"):
        beside({"short": [1, 2, 3]}, truth_of(costs))


def test_a_score_that_chance_may_have_made_is_no_better_than_uniform():
    rng = np.random.default_rng(0)
    scores = {"chance": rng.permutation(30) + 0.3 * np.arange(30.0)}
    costs = np.arange(30.0)[:, None] + 0.01 * rng.normal(size=(30, 40))
    (alone,) = beside(scores, truth_of(costs))
    expected = spearmanr(scores["chance"], costs.mean(1))
    assert 0.05 < expected.pvalue < 0.5
    assert alone.p == pytest.approx(expected.pvalue, abs=0.01)
    # The text leaves no doubt of the correlation, and that is not enough.
    assert alone.low > 0
    assert (alone.by_chance, alone.orientation) == (True, None)
    assert "or the score in random order of the layers correlates" in advice([alone])
    rising = {"rising": np.arange(30.0)}
    best, other = beside(scores | rising, truth_of(costs))
    assert other.p == alone.p  # Holm: the largest is not multiplied
    assert best.p == pytest.approx(2 / 20_001)
    assert (best.by_chance, best.orientation) == (False, "inverse")
    assert "Use rising" in advice([best, other])


def test_p_is_adjusted_over_all_that_the_table_shows():
    rng = np.random.default_rng(1)
    scores = {name: rng.normal(size=12) for name in "abc"} | {"constant": np.ones(12)}
    isolated = truth_of(np.arange(12.0)[:, None] + rng.normal(scale=4, size=(12, 8)))
    moved = truth_of(rng.normal(size=(12, 8))).model_copy(update={"kind": "operating_point"})
    both = agreements(scores, {"isolated": isolated, "operating_point": moved})
    raw = {
        (truth.kind, name): beside({name: scores[name]}, truth)[0].p
        for truth in (isolated, moved)
        for name in "abc"
    }
    expected = dict(zip(raw, holm(list(raw.values())), strict=True))
    shown = {(e.truth, e.name): e.p for rows in both.values() for e in rows if e.p is not None}
    assert shown == pytest.approx(expected)
    assert len(shown) == 6


def test_chance_knows_the_ties_of_a_score():
    # Two of the 20 ways to put three high scores among six layers are as far from the middle.
    costs = np.arange(6.0)[:, None] + np.zeros((6, 4))
    (found,) = beside({"halves": [0, 0, 0, 1, 1, 1]}, truth_of(costs))
    assert found.p == pytest.approx(2 / 20, abs=0.01)


def test_costs_that_are_all_equal_speak_for_no_score():
    # Pruning so little that no weight goes costs nothing anywhere; scipy gives NaN.
    (found,) = beside({"rising": np.arange(6.0)}, truth_of(np.zeros((6, 4))))
    assert (found.spearman, found.low, found.high, found.orientation) == (0, 0, 0, None)
    assert "No better than uniform" in advice([found])


def test_one_text_alone_speaks_for_no_score():
    (found,) = beside({"rising": np.arange(6.0)}, truth_of(np.arange(6.0)[:, None]))
    assert (found.spearman, found.low, found.high) == (pytest.approx(1), -1, 1)
    assert "No better than uniform" in advice([found])


def test_scores_of_one_name_are_told_apart_by_their_paths(tmp_path):
    paths = [tmp_path / "a" / "gain.json", tmp_path / "b" / "gain.json", tmp_path / "depth.json"]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([number, 1, 2]))
    found = scores_of(paths)
    assert {name: list(vector) for name, vector in found.items()} == {
        str(paths[0]): [0, 1, 2],
        str(paths[1]): [1, 1, 2],
        "depth": [2, 1, 2],
    }
    with pytest.raises(InputError, match=r"depth\.json .*twice"):
        scores_of([paths[2], paths[0], paths[2]])


def test_the_table_and_the_picture_are_of_the_same(tmp_path):
    costs = np.arange(6.0)[:, None] + np.zeros((6, 3))
    truth = truth_of(costs)
    scores = {"rising": np.arange(6.0), "flat [x]": np.ones(6)}
    found = beside(scores, truth)
    console = Console(width=80, file=io.StringIO())
    console.print(agreement_table({"isolated": found, "operating_point": found[::-1]}))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    shown = lines[lines.index("pruned alone") :]
    rising, flat = "rising +1.00 [+1.00, +1.00] 0.0035 inverse", "flat [x] constant"
    assert [line for line in shown if line.strip("─")] == [
        *("pruned alone", rising, flat),
        *("at the operating point", flat, rising),
    ]
    written = plot_agreement(scores, found, truth, tmp_path / "scatter")
    assert [path.name for path in written] == ["scatter.png", "scatter.svg"]
    assert "rising: +1.00" in (tmp_path / "scatter.svg").read_text()


def test_a_delta_that_does_not_fit_is_refused_before_anything_is_measured(
    layerif, model, text, tmp_path
):
    (tmp_path / "depth.json").write_text(json.dumps(list(range(LAYERS))))
    asked = ["validate", "--model", model, "--scores", tmp_path / "depth.json"]
    asked += ["--calibration", text, "--out", tmp_path / "checked", "--delta", 0.9]
    status, _, err = layerif(*asked)
    assert status == 2
    assert "--delta 0.9" in err
    assert not (tmp_path / "checked").exists()


def test_the_command_measures_both_truths_once(layerif, model, text, tmp_path):
    few = ["--train-samples", 6, "--validation-samples", 3, "--rank", 2]
    run, out = tmp_path / "run", tmp_path / "checked"
    layerif("score", "--model", model, "--task", "agreement", *few, "--out", run)
    (tmp_path / "depth.json").write_text(json.dumps(list(range(LAYERS))))
    asked = ["validate", "--model", model, "--scores", f"{run},{tmp_path / 'depth.json'}"]
    asked += ["--calibration", text, "--calibration-samples", 3, "--context-length", 32]
    status, printed, err = layerif(*asked, "--out", out)
    assert status == 0, err
    assert "run positive" in printed
    assert "operating_point: " in printed
    verdict = json.loads((out / "validation.json").read_text())
    assert {each["name"] for each in verdict["isolated"]["scores"]} == {
        *(f"run {how}" for how in ("all", "positive", "top", "negative")),
        "depth",
    }
    truth = GroundTruth.load(out / "operating_point.json")
    assert (truth.delta, truth.matrix.shape) == (0.05, (LAYERS, 3))
    assert (out / "isolated-scatter.png").stat().st_size > 1000
    status, _, err = layerif("run", out / "recipe.yaml")
    assert status == 0, err
    assert err.count("nothing is done again") == 2
    status, _, err = layerif(*asked, "--sparsity", 0.6, "--out", out)
    assert status == 2
    assert "already holds another result" in err


def test_scores_of_another_model_are_refused(layerif, model, text, tmp_path):
    (tmp_path / "two.json").write_text("[1, 2]")
    asked = ["validate", "--model", model, "--scores", tmp_path / "two.json"]
    status, _, err = layerif(*asked, "--calibration", text, "--out", tmp_path / "out")
    assert status == 2
    assert "two has 2 scores" in err
    assert not (tmp_path / "out").exists()
