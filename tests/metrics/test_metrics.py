"""Metrics of layers against whole forward passes and float64 arithmetic."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import layerif
from helpers.pruned import OPTIONS
from helpers.texts import SENTENCES
from helpers.tiny import ARCHITECTURES, LAYERS, tiny_model, tiny_tokenizer
from layerif.artifacts import MetricScores
from layerif.data.chunks import cut, draw
from layerif.errors import InputError, NumericalError
from layerif.metrics.base import MetricValues
from layerif.metrics.dlp import median
from layerif.metrics.measuring import metric_scores
from layerif.metrics.registry import METRICS
from layerif.metrics.saliency import layer_saliencies
from layerif.model.layers import find_decoder_layers

TEXT_METRICS = ["outlier_ratio", "dlp", "block_influence", "adapter_gain", "marginal", "quadratic"]


def measure(model, metric, **options):
    return metric_scores(model, metric, tokenizer=tiny_tokenizer(), **(OPTIONS | options))


@pytest.fixture
def forgotten():
    """Metrics that a test registers are gone after it."""

    before = dict(METRICS._registered)
    yield
    METRICS._registered = before


def observed(model, seed=0):
    """Whole forward passes: inputs of the projections, inputs and outputs of the layers."""
    layers = find_decoder_layers(model)
    chunks = draw(cut(tiny_tokenizer(), SENTENCES, 32), 6, seed)
    inputs, turned = {}, {}

    def projection_hook(key):
        def hook(_module, args):
            inputs.setdefault(key, []).append(args[0].flatten(0, -2).double())

        return hook

    def layer_hook(index):
        def hook(_module, args, kwargs, output):
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            turned.setdefault(index, []).append((before.double(), after.double()))

        return hook

    handles = [
        p.module.register_forward_pre_hook(projection_hook(p.key)) for p in layers.projections
    ] + [
        module.register_forward_hook(layer_hook(index), with_kwargs=True)
        for index, module in enumerate(layers.modules)
    ]
    with torch.no_grad():
        for chunk in chunks:
            model(torch.tensor([chunk.input_ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    saliencies = {}
    for p in layers.projections:
        norms = torch.cat(inputs[p.key]).square().sum(0).sqrt().numpy()
        saliencies[p.key] = np.abs(p.weight.double().numpy()) * norms
    return layers, saliencies, turned


def together(layers, saliencies, layer):
    return np.concatenate([saliencies[p.key].ravel() for p in layers.of(layer)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outlier_ratio(architecture):
    model = tiny_model(architecture)
    layers, saliencies, _ = observed(model)
    scores = measure(model, "outlier_ratio", multiple=2.5)
    for layer in range(LAYERS):
        every = together(layers, saliencies, layer)
        expected = 100 * (every > 2.5 * every.mean()).mean()
        assert scores.scores[layer] == pytest.approx(expected, abs=100.5 / every.size)
    for found, p in zip(scores.projections, layers.projections, strict=True):
        own = saliencies[p.key]
        expected = 100 * (own > 2.5 * own.mean()).mean()
        assert found.score == pytest.approx(expected, abs=100.5 / own.size)
        assert (found.module, found.numel) == (p.key, p.numel)
    assert len({*scores.scores}) == LAYERS


@pytest.mark.parametrize("statistic", ["median", "mean"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dlp(architecture, statistic):
    model = tiny_model(architecture)
    layers, saliencies, _ = observed(model)
    scores = measure(model, "dlp", statistic=statistic)
    middle = {"median": np.median, "mean": np.mean}[statistic]
    m = np.array([middle(together(layers, saliencies, layer)) for layer in range(LAYERS)])
    np.testing.assert_allclose(scores.scores, 1 - m / m.sum(), rtol=1e-5)
    own = np.array([middle(saliencies[p.key]) for p in layers.projections])
    np.testing.assert_allclose(
        [p.score for p in scores.projections], 1 - own / own.sum(), rtol=1e-5
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_block_influence(architecture):
    model = tiny_model(architecture)
    _, _, turned = observed(model)
    scores = measure(model, "block_influence")
    for layer in range(LAYERS):
        x, y = (torch.cat(states).flatten(0, 1) for states in zip(*turned[layer], strict=True))
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(x, y, strict=True)]
        assert len(cosines) == 6 * 32
        assert scores.scores[layer] == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)
    assert scores.projections is None


def test_block_influence_of_a_layer_that_does_nothing():
    model = tiny_model()
    model.model.layers[1].self_attn.o_proj.weight.data.zero_()
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    values = measure(model, "block_influence").scores
    assert values[1] == pytest.approx(0, abs=1e-15)
    assert min(values[0], values[2]) > 0.01


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_median(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    assert median(values) == pytest.approx(np.median(values.double().numpy()), rel=1e-12)


@pytest.mark.parametrize("metric", [*TEXT_METRICS, "pl_alpha"])
def test_the_model_stays_as_it_is(metric):
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    text = {} if metric == "pl_alpha" else {"tokenizer": tiny_tokenizer(), **OPTIONS}
    metric_scores(model, metric, **text)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("metric", TEXT_METRICS)
def test_the_batch_of_calibration_text_changes_nothing(metric):
    model = tiny_model()
    one = measure(model, metric, batch_tokens=32)
    np.testing.assert_allclose(one.scores, measure(model, metric).scores, rtol=1e-6)
    assert one.calibration["samples"] == 6
    assert measure(model, metric, seed=3).scores != one.scores


@pytest.mark.parametrize("metric", TEXT_METRICS[:-2])  # not where rounding moves a mask
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_to_full(metric, dtype):
    full = measure(tiny_model(), metric).scores
    half = measure(tiny_model(dtype=dtype), metric).scores
    np.testing.assert_allclose(half, full, rtol=0.05, atol=0.06)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_controls(architecture):
    model = tiny_model(architecture)
    count = len(find_decoder_layers(model).projections)
    uniform = metric_scores(model, "uniform")
    assert uniform.scores == [1.0] * LAYERS
    assert [p.score for p in uniform.projections] == [1.0] * count
    random = metric_scores(model, "random", seed=5)
    assert random.scores == metric_scores(model, "random", seed=5).scores
    assert random.scores != metric_scores(model, "random", seed=6).scores
    assert len({*random.scores, *(p.score for p in random.projections)}) == LAYERS + count
    assert random.options == {"seed": 5}

    alphas = metric_scores(model, "pl_alpha", compat="reference")
    orders = set()
    for seed in range(6):
        shuffled = metric_scores(model, "shuffled", of="pl_alpha", compat="reference", seed=seed)
        assert sorted(shuffled.scores) == sorted(alphas.scores)
        order = [alphas.scores.index(value) for value in shuffled.scores]
        orders.add(tuple(order))
        # Projections go with their layers.
        own = {p.module: p.score for p in alphas.projections}
        for p in shuffled.projections:
            source = p.module.replace(f"layers.{p.layer}.", f"layers.{order[p.layer]}.", 1)
            assert p.score == own[source]
    assert len(orders) > 1
    assert shuffled.options == {"of": "pl_alpha", "compat": "reference", "seed": 5}


def test_layers_of_unlike_projections_are_shuffled_alone():
    model = tiny_model()
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 49, bias=False)
    scores = metric_scores(model, "shuffled", of="pl_alpha")
    assert scores.projections is None
    assert len(scores.scores) == LAYERS


@pytest.mark.usefixtures("forgotten")
def test_a_metric_of_ones_own():
    def heaviest(subject, *, power=1.0):
        found = [0.0] * len(subject.layers)
        for layer in layer_saliencies(subject):
            found[layer.index] = max(float(layer.of(p).max()) ** power for p in layer.projections)
        return MetricValues(np.array(found))

    layerif.register_metric("heaviest", heaviest, options={"power": 1.0}, reads_text=True)
    assert METRICS.names()[-1] == "heaviest"
    model = tiny_model()
    layers, saliencies, _ = observed(model)
    scores = measure(model, "heaviest", power=2.0)
    expected = [together(layers, saliencies, layer).max() ** 2 for layer in range(LAYERS)]
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-5)
    assert sorted(measure(model, "shuffled", of="heaviest", power=2.0).scores) == sorted(
        scores.scores
    )
    with pytest.raises(InputError, match="metric 'heaviest' already"):
        layerif.register_metric("heaviest", heaviest)
    with pytest.raises(InputError, match="plans call the scores of influence"):
        layerif.register_metric("influence", heaviest)

    layerif.register_metric("silent", heaviest)
    with pytest.raises(InputError, match="reads_text"):
        measure(model, "silent")
    layerif.register_metric("short", lambda subject: MetricValues(np.ones(2)))
    with pytest.raises(InputError, match=r"\(2,\) .*\(3,\)"):
        metric_scores(model, "short")
    layerif.register_metric("broken", lambda subject: MetricValues(np.array([1.0, np.nan, 1.0])))
    with pytest.raises(NumericalError, match=r"finite .*layer 1"):
        metric_scores(model, "broken")


@pytest.mark.parametrize(
    ("metric", "options", "says"),
    [
        ("beta", {}, "no metric 'beta'"),
        ("pl_alpha", {"multiple": 3}, "no option multiple; there are compat"),
        ("uniform", {"of": "dlp"}, "no option of; there are none"),
        ("pl_alpha", {"compat": "authors"}, "compat='authors'"),
        ("outlier_ratio", {"multiple": 0}, "multiple=0"),
        ("outlier_ratio", {"multiple": np.nan}, "multiple=nan"),
        ("dlp", {"statistic": "mode"}, "statistic='mode'"),
        ("shuffled", {}, "name it by the option `of`, one of pl_alpha"),
        ("shuffled", {"of": "shuffled"}, "and not 'shuffled'"),
        ("shuffled", {"of": "dlp", "compat": "reference"}, "no option compat"),
        ("dlp", {"calibration_samples": 10_000}, "10000 were asked for"),
        ("dlp", {"context_length": 500}, "longer than the 128 positions"),
        ("dlp", {"calibration": None}, "dlp reads activations: give a tokenizer and calibration"),
        ("random", {"seed": -1}, "seed=-1"),
    ],
)
def test_what_is_refused(metric, options, says):
    with pytest.raises(InputError, match=says):
        measure(tiny_model(), metric, **options)


def test_weights_that_are_all_zero_have_no_middle():
    model = tiny_model()
    for p in find_decoder_layers(model).projections:
        p.weight.zero_()
    with pytest.raises(InputError, match="median"):
        measure(model, "dlp")
    assert measure(model, "outlier_ratio").scores == [0.0] * LAYERS


def test_activations_that_are_not_finite():
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    for metric, says in [
        ("outlier_ratio", "inputs of layers.2"),
        ("dlp", "inputs of layers.2"),
        ("block_influence", "states of layer 1"),
    ]:
        with pytest.raises(NumericalError, match=says):
            measure(model, metric)
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.down_proj: "):
        metric_scores(model, "pl_alpha")


def test_quantised_weights_are_refused_where_weights_are_read():
    model = tiny_model()
    packed = model.model.layers[0].mlp.up_proj
    packed.weight = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match="quantised"):
        metric_scores(model, "pl_alpha")
    assert METRICS.find("block_influence").reads_weights is False
    assert metric_scores(model, "random").scores


def test_the_artifact_comes_back_and_refuses_what_does_not_fit(tmp_path):
    scores = metric_scores(tiny_model(), "pl_alpha")
    scores.save(tmp_path / "alpha.json")
    assert MetricScores.load(tmp_path / "alpha.json") == scores
    assert layerif.read_scores(tmp_path / "alpha.json") == scores
    value = scores.model_dump(mode="json")
    for changed, says in [
        ({"scores": value["scores"][1:]}, "2 scores"),
        ({"projections": value["projections"][1:]}, "parameters in each layer"),
        ({"projections": value["projections"][:1] * 2}, "twice"),
        ({"scores": [1.0, float("nan"), 2.0]}, "scores.1"),
        ({"format": "layerif.metric/2"}, "format"),
    ]:
        with pytest.raises(InputError, match=says):
            MetricScores.parse(value | changed, "a file")


def test_marginal_is_the_derivative_at_the_pruned_model():
    """Against autograd on a copy that the pruner has pruned."""
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = measure(model, "marginal", sparsity=0.5, delta=0.25)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruned = copy.deepcopy(model)
    layerif.prune(pruned, 0.5, tokenizer=tokenizer, **OPTIONS)
    chunks = draw(cut(tokenizer, SENTENCES, 32), 6, 0)
    losses = []
    for chunk in chunks:
        ids = torch.tensor([chunk.input_ids])
        logits = pruned(input_ids=ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    torch.stack(losses).mean().backward()
    # The first layer's saliencies are those of the dense model, whatever is pruned above.
    _, saliencies, _ = observed(model)
    projections = find_decoder_layers(pruned).projections
    size = sum(p.numel for p in projections) / len(projections)
    for row, dense in enumerate(find_decoder_layers(model).of(0)):
        ranks = saliencies[dense.key].argsort(1).argsort(1) / dense.in_features
        band = torch.from_numpy((ranks >= 0.25) & (ranks < 0.75))
        gradient = projections[row].module.weight.grad
        expected = float((gradient * dense.weight * band).sum()) / int(band.sum()) * size
        assert scores.projections[row].score == pytest.approx(expected, rel=1e-6)
    by_layer = [sum(p.score for p in scores.projections if p.layer == k) for k in range(LAYERS)]
    assert np.argsort(scores.scores).tolist() == np.argsort(by_layer).tolist()
    with pytest.raises(InputError, match="sparsity="):
        measure(model, "marginal", sparsity=1.0)
