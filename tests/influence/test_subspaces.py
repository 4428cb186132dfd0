"""Subspaces against gradients from autograd, one sample at a time, of matrices really there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.adapters import adapted
from helpers.estimator_oracles import close
from helpers.quantised import packed_and_dense
from helpers.scoring import TRAIN, VALIDATION, literal_gradients, measure, published_datainf
from helpers.texts import SENTENCES
from helpers.tiny import LAYERS, tiny_model, tiny_tokenizer
from layerif.artifacts import hash_model
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import save_pruned
from layerif.data import load_task
from layerif.errors import InputError
from layerif.evaluation.evaluate import evaluate
from layerif.influence.scoring import score
from layerif.influence.subspaces.adapter import AdapterSubspace
from layerif.influence.subspaces.projected import TwoSided
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe

ARCHITECTURES = ["llama", "gpt2", "opt", "phi3"]


def oracle(train, validation):
    """DataInf of every block from its gradients, (samples, ...) each."""
    flat = [[block.flatten(1).numpy() for block in blocks] for blocks in (train, validation)]
    return np.stack([published_datainf(g, v) for g, v in zip(*flat, strict=True)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_sided_is_the_projected_gradient_of_the_weight(architecture):
    model = tiny_model(architecture, torch.float64)
    projections = find_decoder_layers(model).projections
    size, seed = 6, 4
    blocks = []
    for samples in (TRAIN, VALIDATION):
        gradients = literal_gradients(model, samples, [p.module.weight for p in projections])
        blocks.append([])
        for projection, matrix, gradient in zip(
            projections, TwoSided(size, seed).matrices(projections), gradients, strict=True
        ):
            transposed = gradient.shape[1:] != projection.weight.shape or architecture == "gpt2"
            weight = gradient.mT if transposed else gradient
            blocks[-1].append(matrix.left.double() @ weight @ matrix.right.double().T)
    found = measure(model, subspace="two_sided", size=size, seed=seed)
    close(found.projection_influence, oracle(*blocks))
    assert found.record.subspace_options == {"size": size, "seed": seed}


def test_a_projected_side_keeps_inner_products_in_the_mean_and_a_small_side_is_left():
    projection = find_decoder_layers(tiny_model()).projections[0]
    vectors = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in range(400):
        (matrix,) = TwoSided(8, seed).matrices([projection])
        a, b = vectors @ matrix.right.double().T
        found.append(float(a @ b))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - float(vectors[0] @ vectors[1])) < 4 * error
    key = find_decoder_layers(tiny_model()).projections[1]
    (half,) = TwoSided(24).matrices([key])
    assert (half.left, half.right.shape, half.shape) == (None, (24, 32), (16, 24))
    (whole,) = TwoSided(32).matrices([key])
    assert (whole.left, whole.right, whole.shape) == (None, None, (16, 32))
    with pytest.raises(InputError, match="at most 32"):
        TwoSided(33).matrices([key])


@pytest.mark.parametrize("block", ["matrix", "projection", "layer"])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]}),
        ("llama", {"rank_pattern": {"v_proj": 5}, "alpha_pattern": {"v_proj": 2}}),
        ("gpt2", {}),
        ("opt", {"lora_dropout": 0.3}),
        ("phi3", {}),
    ],
)
def test_an_adapter_is_scored_as_autograd_sees_it(architecture, options, block):
    model = adapted(architecture, **options)
    layers = find_decoder_layers(model)
    named = dict(model.named_modules())
    wrappers = {id(m.get_base_layer()): m for m in named.values() if hasattr(m, "get_base_layer")}
    at = [
        (row, wrappers[id(p.module)])
        for row, p in enumerate(layers.projections)
        if id(p.module) in wrappers
    ]
    parameters = [
        matrix["default"].weight for _, layer in at for matrix in (layer.lora_B, layer.lora_A)
    ]
    train, validation = (
        literal_gradients(model, samples, parameters) for samples in (TRAIN, VALIDATION)
    )
    found = measure(model, subspace="adapter", block=block)
    influence = np.zeros_like(found.projection_influence)
    groups = {}
    for place, (row, _) in enumerate(at):
        for index in (2 * place, 2 * place + 1):
            key = {"matrix": index, "projection": row, "layer": -layers.projections[row].layer}
            groups.setdefault(key[block], []).append((row, index))
    if block == "layer":
        by_layer = np.zeros_like(found.influence)
        for members in groups.values():
            whole = oracle(*([joined(s, members)] for s in (train, validation)))[0]
            by_layer[layers.projections[members[0][0]].layer] += whole
        close(found.influence, by_layer)
        return
    for members in groups.values():
        influence[members[0][0]] += oracle(*([joined(s, members)] for s in (train, validation)))[0]
    close(found.projection_influence, influence)


def joined(gradients, members):
    return torch.cat([gradients[index].flatten(1) for _, index in members], 1)


def test_an_adapter_added_by_transformers_is_the_same_as_one_of_peft():
    wrapped, plain = adapted(), tiny_model(dtype=torch.float64)
    plain.add_adapter(LoraConfig(r=3, lora_alpha=5, target_modules="all-linear"), "default")
    inner = wrapped.get_base_model().state_dict()
    plain.load_state_dict(inner)
    one, two = (measure(model, subspace="adapter") for model in (wrapped, plain.eval()))
    assert np.array_equal(one.influence, two.influence)
    assert one.projections == two.projections == measure(tiny_model()).projections
    assert one.model.architecture == two.model.architecture == "LlamaForCausalLM"


def test_of_several_adapters_the_active_one_is_scored_and_others_are_refused():
    model = adapted()
    alone = measure(model, subspace="adapter")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    again = measure(model, subspace="adapter")
    assert np.array_equal(again.influence, alone.influence)
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj .*'other'"):
        measure(model, subspace="adapter", adapter_name="other")
    with pytest.raises(InputError, match=r"'third'; .*default, other"):
        measure(model, subspace="adapter", adapter_name="third")
    before = hash_model(model)
    model.set_adapter("other")
    assert hash_model(model) != before, "which adapter is at work is part of the model"
    scored = measure(model, subspace="adapter", adapter_name="other")
    rows = zip(scored.projections, scored.projection_influence, strict=True)
    assert {p.name for p, row in rows if row.any()} == {"self_attn.q_proj"}
    # Its B is zero still, and with it the gradients of A.
    assert scored.record.silent_blocks == [
        f"layers.{i}.self_attn.q_proj.lora_A" for i in range(LAYERS)
    ]
    assert scored.record.subspace_options["adapter"] == "other"


def test_what_is_no_plain_lora_at_work_is_refused_by_name():
    merged = adapted()
    merged.merge_adapter()
    disabled = adapted()
    disabled.base_model.disable_adapter_layers()
    for model, message in (
        (merged, "and merged"),
        (disabled, "and disabled"),
        (adapted(use_dora=True), "Dora"),
        (tiny_model(), "'default'; .*none"),
        (adapted(target_modules=["lm_head"]), "projection"),
    ):
        with pytest.raises(InputError, match=message):
            measure(model, subspace="adapter")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapters_hide_no_projection_and_add_none(architecture, tmp_path):
    """Without care the projections would be `q_proj.base_layer`, `q_proj.lora_A.default` ..."""
    plain, model = tiny_model(architecture, torch.float64), adapted(architecture, r=40)
    expected, found = find_decoder_layers(plain), find_decoder_layers(model)
    assert [p.key for p in found.projections] == [p.key for p in expected.projections]
    assert (found.sizes == expected.sizes).all()
    named = {"adapter": "LORA default"}
    assert describe(model) == describe(plain).model_copy(update=named)
    close(measure(model).influence, measure(model, padding_side="left").influence)

    task = load_task("agreement")
    results = [evaluate(m, tiny_tokenizer(), [task], samples=4) for m in (plain, model)]
    assert [r.sparsity for r in results] == [0, 0]
    assert results[0].measurements[0].outcomes != results[1].measurements[0].outcomes

    before = {n: p.clone() for n, p in model.named_parameters() if "lora_" in n}
    options = {"calibration": SENTENCES, "calibration_samples": 4, "context_length": 32}
    manifest = prune(model, 0.5, tokenizer=tiny_tokenizer(), **options)
    assert [m.module for m in manifest.modules] == [p.key for p in expected.projections]
    assert evaluate(model, tiny_tokenizer(), [task], samples=4).sparsity == pytest.approx(0.5)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with pytest.raises(InputError, match="adapters already"):
        save_pruned(model, tiny_tokenizer(), manifest, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_the_order_of_modules_changes_nothing():
    """Tuners and code of one's own put modules in in any order."""
    model, turned = adapted(), adapted()
    for layer in turned.get_base_model().model.layers:
        for part in (layer, layer.self_attn, layer.mlp):
            part._modules = dict(reversed(part._modules.items()))
    for options in ({}, {"subspace": "two_sided"}, {"subspace": "adapter"}):
        one, two = measure(model, **options), measure(turned, **options)
        names = [(p.layer, p.name) for p in two.projections]
        rows = [names.index((p.layer, p.name)) for p in one.projections]
        assert rows != sorted(rows)
        assert np.array_equal(two.projection_influence[rows], one.projection_influence)


@pytest.mark.parametrize("subspace", ["fresh_lora", "two_sided", "full"])
def test_quantised_projections_are_scored_as_what_they_compute(subspace):
    packed, dense = packed_and_dense()
    one, two = (measure(model, subspace=subspace) for model in (packed, dense))
    assert one.projections == two.projections
    close(one.projection_influence, two.projection_influence, 1e-12)


def test_quantised_projections_are_not_pruned_and_count_as_dense():
    packed, _ = packed_and_dense()
    before = hash_model(packed)
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj is quantised .*uint8"):
        prune(packed, 0.5, tokenizer=tiny_tokenizer(), calibration=SENTENCES)
    assert hash_model(packed) == before
    assert evaluate(packed, tiny_tokenizer(), [load_task("agreement")], samples=2).sparsity == 0


def test_prompt_tuning_is_refused():
    from peft import PromptTuningConfig

    model = get_peft_model(
        tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        score(model, tiny_tokenizer(), TRAIN, VALIDATION)


def test_an_adapter_subspace_may_be_given_as_an_object():
    model = adapted(name="mine")
    given = measure(model, subspace=AdapterSubspace(model, "mine"))
    assert np.array_equal(
        given.influence, measure(model, subspace="adapter", adapter_name="mine").influence
    )
