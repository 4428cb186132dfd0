"""Every pruner on whole models: exact counts, patterns, statistics in the reference order."""

from __future__ import annotations

import pytest
import torch

from helpers.architectures import tiny_architecture
from helpers.pruned import prune_tiny
from helpers.texts import SENTENCES
from helpers.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer, use_mlps_twice
from layerif.artifacts import ModuleSparsity, Plan
from layerif.calibration.statistics import Hessians, InputNorms, factorise
from layerif.calibration.walk import walk
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.sparsegpt import sparsegpt
from layerif.compress.pruning.targets import Pattern, Target
from layerif.compress.pruning.wanda import wanda_mask
from layerif.core.checkpoint import Steps
from layerif.data.batching import collate
from layerif.data.chunks import cut, draw
from layerif.errors import InputError, NumericalError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe
from layerif.plans.allocate import allocate_sparsity

METHODS = ["magnitude", "wanda", "sparsegpt"]


def weights_of(model):
    return {p.key: p.weight for p in find_decoder_layers(model).projections}


def inputs_of_layers(model, layers, chunks):
    """Each projection's inputs (tokens, in) of a plain forward pass."""
    seen = {}
    handles = [
        p.module.register_forward_pre_hook(
            lambda _m, args, key=p.key: seen.setdefault(key, []).append(args[0].flatten(0, -2))
        )
        for p in layers
    ]
    with torch.no_grad():
        model(torch.tensor([c.input_ids for c in chunks]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {key: torch.cat(parts) for key, parts in seen.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_counts_are_exact_in_every_architecture(method, architecture):
    model = tiny_model(architecture)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plan = allocate_sparsity([1.0, 5.0, 2.0], 0.4713, epsilon=0.3, model=describe(model))
    manifest = prune_tiny(model, plan, method=method)
    pruned = {id(p.module.weight) for p in find_decoder_layers(model).projections}
    for module in manifest.modules:
        assert module.zeros == module.asked == round(plan.level_of(module.module) * module.numel)
        assert (module.error is None) == (method == "magnitude")
        assert (module.damping == 0.01) == (method == "sparsegpt")
        assert module.pattern is None
        assert module.seconds >= 0
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all()
        if id(parameter) not in pruned:
            assert torch.equal(parameter, before[name])
        elif method != "sparsegpt":
            kept = parameter != 0
            assert torch.equal(parameter[kept], before[name][kept])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_two_of_four_in_every_architecture(method, architecture):
    model = tiny_model(architecture)
    manifest = prune_tiny(model, nm="2:4", method=method)
    assert manifest.sparsity == manifest.asked_sparsity == 0.5
    for module, weight in zip(manifest.modules, weights_of(model).values(), strict=True):
        assert module.pattern == "2:4"
        assert (weight.reshape(-1, 4).count_nonzero(dim=1) == 2).all()


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_and_everything_are_legal(method, sparsity, dtype):
    model = tiny_model(dtype=dtype)
    before = {key: weight.clone() for key, weight in weights_of(model).items()}
    manifest = prune_tiny(model, sparsity, method=method)
    assert manifest.sparsity == sparsity
    assert {m.error for m in manifest.modules} <= {None, sparsity}
    for key, weight in weights_of(model).items():
        assert torch.equal(weight, before[key] if sparsity == 0 else torch.zeros_like(weight))


@pytest.mark.parametrize("nm", [None, "2:4"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi", "falcon"])
def test_sparsegpt_layer_by_layer_is_that_of_whole_forward_passes(architecture, nm):
    """The same by hand in float64: every layer's Hessians from what the pruned layers hand on."""
    model, by_hand = (tiny_model(architecture, torch.float64) for _ in range(2))
    manifest = prune_tiny(model, 0.5, method="sparsegpt", nm=nm, seed=5)
    chunks = draw(cut(tiny_tokenizer(), SENTENCES, 32), 6, seed=5)
    layers = find_decoder_layers(by_hand)
    asked = {m.module: m for m in manifest.modules}
    for layer in range(len(layers)):
        found = inputs_of_layers(by_hand, layers.of(layer), chunks)
        for p in layers.of(layer):
            inputs, before = found[p.key], p.weight.clone()
            factor = factorise(2 * inputs.T @ inputs / len(inputs), p.key)
            target = Target(asked[p.key].asked, Pattern.parse(nm) if nm else None)
            p.weight.copy_(sparsegpt(before, factor, target))
            lost = ((before - p.weight) @ inputs.T).square().sum()
            whole = (before @ inputs.T).square().sum()
            assert asked[p.key].error == pytest.approx((lost / whole).item(), rel=1e-6)
    for p in find_decoder_layers(model).projections:
        torch.testing.assert_close(p.weight, weights_of(by_hand)[p.key], rtol=1e-6, atol=1e-8)


def test_wandas_error_is_that_of_uncorrelated_features():
    model, dense = tiny_model(), tiny_model()
    manifest = prune_tiny(model, 0.5, method="wanda")
    chunks = draw(cut(tiny_tokenizer(), SENTENCES, 32), 6, seed=0)
    layers = find_decoder_layers(dense)
    found = inputs_of_layers(dense, layers.of(0), chunks)
    for p, module in zip(layers.of(0), manifest.modules, strict=False):
        squares = found[p.key].double().square().sum(0)
        weight = p.weight.double()
        lost = weight.masked_fill(weights_of(model)[p.key] != 0, 0).square() @ squares
        expected = lost.sum() / (weight.square() @ squares).sum()
        assert module.error == pytest.approx(expected.item(), rel=1e-5)
        mask = wanda_mask(p.weight, squares.sqrt(), 0.5)
        assert torch.equal(mask, weights_of(model)[p.key] == 0)


def hessians_of_layer(model, layer=1):
    layers = find_decoder_layers(model)
    chunks = draw(cut(tiny_tokenizer(), SENTENCES, 32), 5, seed=0)
    batches = [
        collate(chunks[i : i + 2], device=torch.device("cpu")).inputs for i in range(0, 5, 2)
    ]
    for visit in walk(model, layers, batches):
        if visit.index == layer:
            found = Hessians(layers.of(layer))
            with found.watching():
                for _ in visit.run():
                    pass
    return layers.of(layer), found, inputs_of_layers(model, layers.of(layer), chunks)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "llama twice"])
def test_hessians_are_those_of_all_tokens_together(architecture):
    model = tiny_model(architecture.split()[0])
    if "twice" in architecture:
        use_mlps_twice(model)
    projections, found, inputs = hessians_of_layer(model)
    for p in projections:
        exact = inputs[p.key].double()
        expected = (2 * exact.T @ exact / len(exact)).float()
        torch.testing.assert_close(found.mean(p), expected, rtol=1e-4, atol=1e-4)


def test_projections_that_share_an_input_share_one_hessian_and_one_factor(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "layerif.calibration.statistics.factorise",
        lambda hessian, name: calls.append(name) or factorise(hessian, name),
    )
    prune_tiny(tiny_model(), 0.5, method="sparsegpt")
    per_layer = [name.split(".", 2)[2] for name in calls if name.startswith("layers.1.")]
    assert per_layer == ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]

    def sharing(architecture):
        projections, found, _ = hessians_of_layer(tiny_model(architecture))
        return {tuple(k.split(".", 2)[2] for k in found.sharing(p)) for p in projections}

    # Attention and MLP stand side by side in Phi, on one input.
    assert sharing("phi") == {
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
        ("self_attn.dense",),
        ("mlp.fc2",),
    }
    assert sharing("phi3") == {
        ("self_attn.qkv_proj",),
        ("self_attn.o_proj",),
        ("mlp.gate_up_proj",),
        ("mlp.down_proj",),
    }


def test_what_shares_an_input_is_factorised_once_wherever_it_is_in_the_layer(monkeypatch):
    """GPT-J's MLP reads what its attention reads, and comes after the attention's output."""
    calls = []
    monkeypatch.setattr(
        "layerif.calibration.statistics.factorise",
        lambda hessian, name: calls.append(name) or factorise(hessian, name),
    )
    model = tiny_architecture("gptj")
    prune_tiny(model, 0.5, method="sparsegpt")
    ends = [name.rpartition(".")[2] for name in calls]
    assert sorted(set(ends)) == ["fc_out", "k_proj", "out_proj"]
    assert len(calls) == 3 * len(find_decoder_layers(model))


def test_inputs_that_are_changed_in_place_are_refused():
    model = tiny_model()
    layers = find_decoder_layers(model)

    def double(_module, args, _output):
        args[0].mul_(2)

    layers.of(0)[5].module.register_forward_hook(double)
    with pytest.raises(NumericalError, match=r"layers\.0\.mlp\.gate_proj"):
        prune_tiny(model, 0.5, method="sparsegpt")


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_have_no_rank_stop_the_run_by_name(method):
    model = tiny_model()
    model.model.layers[2].mlp.down_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(NumericalError, match=r"layers\.2\.mlp\.down_proj .*NaN"):
        prune_tiny(model, 0.5, method=method)


def mixed_plan(model):
    projections = find_decoder_layers(model).projections
    return Plan.of_modules(
        [
            ModuleSparsity(module=p.key, sparsity=(row % 7) / 8, numel=p.numel)
            for row, p in enumerate(projections)
        ],
        model=describe(model),
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_gives_each_projection_its_own_n(method):
    model = tiny_model()
    plan = mixed_plan(model)
    manifest = prune_tiny(model, plan, nm="2:4", method=method)
    for module, weight in zip(manifest.modules, weights_of(model).values(), strict=True):
        keep = int(module.pattern.split(":")[0])
        assert abs(4 - keep - 4 * plan.level_of(module.module)) < 1
        assert (weight.reshape(-1, 4).count_nonzero(dim=1) == keep).all()
    # The total misses the plan's by at most half of what the smallest projection can give.
    smallest = min(m.numel for m in manifest.modules) // 4
    total = sum(m.numel for m in manifest.modules)
    assert abs(manifest.asked_sparsity - manifest.planned_sparsity) <= smallest / 2 / total
    assert manifest.sparsity == manifest.asked_sparsity


def test_magnitude_needs_no_text():
    model = tiny_model()
    manifest = prune(model, 0.5, method="magnitude")
    assert manifest.sparsity == 0.5
    assert manifest.calibration == {}
    with pytest.raises(InputError, match="wanda"):
        prune(model, 0.5)


@pytest.mark.parametrize(
    ("message", "plan", "options"),
    [
        ("no N:M pattern", None, {"nm": "4:2"}),
        ("give a plan, a sparsity, or a pattern", None, {}),
        ("2:4 makes 0.5 of the weights zero, and a sparsity of 0.3", 0.3, {"nm": "2:4"}),
        (r"layers\.0\.self_attn\.q_proj has 32 inputs", None, {"nm": "3:5"}),
        ("no pruner 'magic'", 0.5, {"method": "magic"}),
        ("hidden_states='tape'", 0.5, {"hidden_states": "tape"}),
        ("hidden states on disk lie in the run folder", 0.5, {"hidden_states": "disk"}),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_weight_changes(message, plan, options):
    model = tiny_model()
    before = {key: weight.clone() for key, weight in weights_of(model).items()}
    with pytest.raises(InputError, match=message):
        prune_tiny(model, plan, **options)
    assert all(torch.equal(before[key], weight) for key, weight in weights_of(model).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_hidden_states_on_disk_change_nothing(architecture, dtype, tmp_path):
    in_memory, on_disk = (tiny_model(architecture, dtype) for _ in range(2))
    seen = []

    class Watched(Steps):
        def save(self, step, tensors):
            seen.append(len(list((tmp_path / "hidden").glob("*.bin"))))
            super().save(step, tensors)

    prune_tiny(in_memory, 0.5, method="sparsegpt")
    prune_tiny(on_disk, 0.5, method="sparsegpt", hidden_states="disk", steps=Watched(tmp_path))
    assert seen == [3, 3, 3]  # six chunks of 32 tokens, 64 tokens a batch
    assert not (tmp_path / "hidden").exists()
    for key, weight in weights_of(in_memory).items():
        assert torch.equal(weight, weights_of(on_disk)[key])


class Stopped(Exception):
    pass


class StoppingSteps(Steps):
    """Steps of a run that is stopped after some layers."""

    def __init__(self, folder, layers):
        super().__init__(folder)
        self.left = layers

    def save(self, step, tensors):
        super().save(step, tensors)
        self.left -= step.startswith("layer")
        if not self.left:
            raise Stopped


@pytest.mark.parametrize("nm", [None, "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_cut_short_goes_on_to_the_same_bits(method, nm, tmp_path):
    plan = 0.5
    whole, resumed = tiny_model(), tiny_model()
    expected = prune_tiny(whole, plan, method=method, nm=nm)
    with pytest.raises(Stopped):
        prune_tiny(tiny_model(), plan, method=method, nm=nm, steps=StoppingSteps(tmp_path, 2))
    found = prune_tiny(resumed, plan, method=method, nm=nm, steps=Steps(tmp_path))
    for key, weight in weights_of(whole).items():
        assert torch.equal(weight, weights_of(resumed)[key])

    def told(manifest):
        return [m.model_copy(update={"seconds": None}) for m in manifest.modules]

    assert told(found) == told(expected)


def test_norms_of_one_projection_share_nothing():
    projections = find_decoder_layers(tiny_model()).of(0)
    assert InputNorms(projections).sharing(projections[0]) == (projections[0].key,)
