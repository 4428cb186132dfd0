"""Mixtures of experts pruned, saved and verified, expert by expert."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import layerif
from helpers.architecture_checks import TEXT, input_products
from helpers.architectures import tiny_architecture
from helpers.sparsegpt_oracle import oracle
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import ModuleSparsity, Plan
from layerif.calibration.statistics import Hessians
from layerif.calibration.text import drawn_chunks
from layerif.compress.pruning.targets import Pattern
from layerif.compress.pruning.verifying import verify
from layerif.compress.stored import StoredModel
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers

NAMES = ["mixtral", "gpt_oss", "dbrx", "granitemoehybrid", "qwen3_5_moe_text"]
OPTIONS = {"calibration": TEXT, "calibration_samples": 8, "context_length": 32}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", NAMES)
def test_each_expert_has_the_zeros_it_was_asked_for(name, method):
    model = tiny_architecture(name)
    manifest = layerif.prune(model, 0.5, method=method, tokenizer=tiny_tokenizer(), **OPTIONS)
    projections = {p.key: p for p in find_decoder_layers(model).projections}
    assert [m.module for m in manifest.modules] == list(projections)
    for entry in manifest.modules:
        weight = projections[entry.module].weight
        assert entry.zeros == int((weight == 0).sum())
        assert entry.zeros == entry.numel // 2
        assert bool(weight.isfinite().all())


@pytest.mark.parametrize("name", ["lfm2_moe", "granitemoehybrid"])
def test_the_manifest_names_what_is_left_as_it_is(name):
    model, before = tiny_architecture(name), tiny_architecture(name)
    manifest = layerif.prune(model, 0.5, method="magnitude")
    untouched = {
        path.removeprefix("model."): weight.numel()
        for (path, weight), (_, old) in zip(
            model.named_parameters(), before.named_parameters(), strict=True
        )
        if ".layers." in path and weight.ndim > 1 and torch.equal(weight, old)
    }
    assert manifest.dense == untouched
    assert {path.split(".")[2] for path in untouched} > {"mamba" if "granite" in name else "conv"}


def test_patterns_lie_along_the_inputs_of_experts_stored_either_way_round():
    for name in ("mixtral", "gpt_oss"):
        model = tiny_architecture(name)
        layerif.prune(model, nm="2:4", method="wanda", tokenizer=tiny_tokenizer(), **OPTIONS)
        for projection in find_decoder_layers(model).projections:
            kept = (projection.weight != 0).reshape(-1, 4).sum(1)
            assert torch.equal(kept, torch.full_like(kept, 2))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_mixture_is_verified(name, tmp_path):
    model, tokenizer = tiny_architecture(name), tiny_tokenizer()
    manifest = layerif.prune(model, 0.5, method="wanda", tokenizer=tokenizer, **OPTIONS)
    layerif.save_pruned(model, tokenizer, manifest, tmp_path / "pruned")
    assert verify(tmp_path / "pruned").ok
    expert = next(p for p in find_decoder_layers(model).projections if p.fused is not None)
    with torch.no_grad():
        expert.weight[expert.weight == 0] = 1.0
    layerif.save_pruned(model, tokenizer, manifest, tmp_path / "other")
    faulty = [v.module for v in verify(tmp_path / "other").modules if v.fault is not None]
    assert faulty == [expert.key]


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])  # stored apart, and as one parameter
def test_what_experts_share_is_read_once(name, tmp_path, monkeypatch):
    model, tokenizer = tiny_architecture(name), tiny_tokenizer()
    manifest = layerif.prune(model, 0.5, method="magnitude")
    layerif.save_pruned(model, tokenizer, manifest, tmp_path / "pruned")
    read, tensor = [], StoredModel.tensor
    monkeypatch.setattr(
        StoredModel, "tensor", lambda self, path: read.append(path) or tensor(self, path)
    )
    assert verify(tmp_path / "pruned").ok
    projections = find_decoder_layers(model).projections
    assert len(read) == len({id(p.parameter) for p in projections}) < len(projections)


def test_all_experts_see_all_text():
    def pruned(**options):
        model = tiny_architecture("mixtral")
        layerif.prune(model, 0.5, tokenizer=tiny_tokenizer(), **OPTIONS, **options)
        return [p.weight.clone() for p in find_decoder_layers(model).projections]

    routed, everyone = pruned(), pruned(all_experts=True)
    assert any(not torch.equal(one, two) for one, two in zip(routed, everyone, strict=True))


def groups_by_force(saliency, pattern):
    """(out, in) bool: which weights stay, of all choices of N in each group the greatest sum."""
    size = pattern.group
    choices = torch.zeros(math.comb(size, pattern.keep), size, dtype=saliency.dtype)
    for row, kept in enumerate(itertools.combinations(range(size), pattern.keep)):
        choices[row, list(kept)] = 1
    sums = saliency.reshape(-1, size) @ choices.T
    return choices[sums.argmax(1)].reshape(saliency.shape).bool()


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize(
    ("method", "nm"),
    [("sparsegpt", None), ("sparsegpt", "2:4"), ("wanda", "2:4"), ("wanda", "1:4")],
)
def test_every_expert_is_pruned_by_the_tokens_of_its_own(name, method, nm):
    model, dense = (tiny_architecture(name, torch.float64) for _ in range(2))
    for one in (model, dense):
        one.set_experts_implementation("eager")
    text = {**OPTIONS, "calibration_samples": 16, "tokenizer": tiny_tokenizer()}
    sparsity = None if nm else 0.5
    layerif.prune(model, sparsity, method=method, nm=nm, **text)
    layers, before = find_decoder_layers(model), find_decoder_layers(dense)
    # What lies below a layer is pruned by the time that its inputs are taken.
    layer, pattern = 2, Pattern.parse(nm) if nm else None
    for below, pruned in zip(before.projections, layers.projections, strict=True):
        if below.layer < layer:
            below.weight.data.copy_(pruned.weight)
    with input_products(dense, before.of(layer)) as seen, torch.no_grad():
        for chunk in drawn_chunks(tiny_tokenizer(), TEXT, 16, 32, 0)[0]:
            dense(input_ids=torch.tensor([chunk.input_ids]), use_cache=False)
    experts = [p for p in before.of(layer) if p.fused is not None]
    for expert, pruned in zip(
        experts, (p for p in layers.of(layer) if p.fused is not None), strict=True
    ):
        products, tokens = seen(expert)
        assert tokens > expert.in_features
        weight, found = expert.weight.detach().clone(), pruned.weight.detach()
        if method == "sparsegpt":
            zeros = weight.numel() // 2
            expected = oracle(weight, 2 * products / tokens, zeros, pattern=pattern)
        else:
            kept = groups_by_force(weight.abs() * products.diagonal().sqrt(), pattern)
            expected = weight * kept
        # Routers compute in float32, and batches are rounded otherwise than single chunks.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(found == 0, expected == 0)
    assert len(experts) == 8


def test_what_experts_are_given_together_is_factorised_once():
    layers = find_decoder_layers(tiny_architecture("mixtral"))
    experts = [p for p in layers.of(0) if p.fused is not None and "gate_up" in p.key]
    statistics, draw = Hessians(experts), torch.Generator().manual_seed(0)
    given = []
    for place, expert in enumerate(experts):
        # Every second one has enough tokens to be judged by them.
        tokens = expert.in_features * (2 if place % 2 else 1) - (0 if place % 2 else 4)
        given.append(torch.randn(tokens, expert.in_features, generator=draw))
        statistics._count(expert.key, given[-1])
    statistics._end()
    factors = [statistics.factor(p) for p in experts]
    assert factors[0] is factors[2]
    assert factors[1] is not factors[3]
    everything = torch.cat(given)
    expected = 2 * everything.T @ everything / len(everything)
    torch.testing.assert_close(statistics.mean(experts[0]), expected)
    torch.testing.assert_close(statistics.mean(experts[1]), 2 * given[1].T @ given[1] / 64)


def test_a_plan_of_other_projections_is_refused():
    model = tiny_architecture("mixtral")
    own = [
        ModuleSparsity(module=p.key, sparsity=0.5, numel=p.numel)
        for p in find_decoder_layers(model).projections
    ]
    whole = own[4].numel
    half = own[4].model_copy(update={"numel": whole // 2})
    beside = ModuleSparsity(module="layers.0.mlp.expert.9", sparsity=0.5, numel=whole // 2)
    for modules, message in (
        ([*own[:4], half, *own[5:], beside], rf"{half.module} has {whole // 2:,} weights"),
        ([beside, *own[:4], half, *own[5:]], "expert.9, which the model does not have"),
    ):
        with pytest.raises(InputError, match=message):
            layerif.prune(model, Plan.of_modules(modules), method="magnitude")


@pytest.mark.parametrize(
    ("model", "method", "why"),
    [
        (tiny_model, "wanda", "has no experts"),
        (lambda: tiny_architecture("mixtral"), "magnitude", "method magnitude"),
    ],
)
def test_all_experts_where_it_has_no_effect_is_refused(model, method, why):
    options = {"tokenizer": tiny_tokenizer(), "method": method, "all_experts": True, **OPTIONS}
    with pytest.raises(InputError, match=f"all_experts.*{why}"):
        layerif.prune(model(), 0.5, **options)
