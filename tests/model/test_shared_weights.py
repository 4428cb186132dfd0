"""A weight that serves in two places is refused by both names; slices and aliases are none."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from helpers.architecture_checks import CHECKS
from helpers.tiny import CONFIGS, tiny_model, tiny_tokenizer
from layerif.compress.pruning.runner import prune
from layerif.data.base import Example
from layerif.errors import InputError
from layerif.influence.scoring import score
from layerif.model.layers import find_decoder_layers


def one_module_in_two_layers(layers):
    layers[2].mlp.up_proj = layers[0].mlp.up_proj


def one_layer_three_times(layers):
    layers[1] = layers[2] = layers[0]


def one_parameter_in_two_layers(layers):
    layers[2].self_attn.k_proj.weight = layers[1].self_attn.k_proj.weight


def one_parameter_twice_in_a_layer(layers):
    layers[1].mlp.up_proj.weight = layers[1].mlp.gate_proj.weight


SHARED = {
    one_module_in_two_layers: ("0.mlp.up_proj", "2.mlp.up_proj"),
    one_layer_three_times: ("0.self_attn.q_proj", "1.self_attn.q_proj"),
    one_parameter_in_two_layers: ("1.self_attn.k_proj", "2.self_attn.k_proj"),
    one_parameter_twice_in_a_layer: ("1.mlp.gate_proj", "1.mlp.up_proj"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("share", SHARED, ids=lambda share: share.__name__)
def test_both_places_are_named(share, device):
    """A model on the meta device, opened for its shape alone, has no memory to compare."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    share(model.model.layers)
    first, second = (f"model.layers.{name}.weight" for name in SHARED[share])
    with pytest.raises(InputError, match=re.escape(f"{first} and {second} are one weight")):
        find_decoder_layers(model)


def test_a_projection_tied_to_the_embeddings_is_refused_and_a_tied_head_is_not():
    model = tiny_model("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    find_decoder_layers(model)
    model.transformer.h[1].extra = nn.Linear(32, 260, bias=False)
    model.transformer.h[1].extra.weight = model.transformer.wte.weight
    with pytest.raises(InputError, match=r"transformer\.h\.1\.extra\.weight .*transformer\.wte"):
        find_decoder_layers(model)


def test_the_whole_way_in_refuses_it():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    one_parameter_in_two_layers(model.model.layers)
    examples = [Example("a", " b")]
    with pytest.raises(InputError, match="one weight"):
        score(model, tokenizer, examples, examples)
    with pytest.raises(InputError, match="one weight"):
        prune(model, 0.5, tokenizer=tokenizer, calibration="some text")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["zamba", "zamba2"])
def test_a_block_that_layers_share_is_left_as_it_is(name, check, tmp_path):
    CHECKS[check](name, tmp_path)


def shares_a_block():
    """A model whose first and last layer have one MLP."""
    model = tiny_model()
    model.model.layers[2].mlp = model.model.layers[0].mlp
    return model


def test_what_is_pruned_and_what_is_left_where_layers_share_a_block():
    model = shares_a_block()
    layers = find_decoder_layers(model)
    names = [{p.name.partition(".")[0] for p in layers.of(index)} for index in range(3)]
    assert names == [{"self_attn"}, {"self_attn", "mlp"}, {"self_attn"}]
    mlp = model.model.layers[0].mlp
    assert sum(size for _, size in layers.rest) == sum(w.numel() for w in mlp.parameters())
    before = [weight.clone() for weight in mlp.parameters()]
    text = "Some words to calibrate on. " * 40
    about = {"tokenizer": tiny_tokenizer(), "calibration": text, "calibration_samples": 2}
    manifest = prune(model, 0.5, context_length=16, **about)
    assert manifest.sparsity == pytest.approx(0.5, abs=1e-3)
    assert all(map(torch.equal, mlp.parameters(), before))


def test_a_block_that_is_tied_elsewhere_too_or_in_part_is_refused():
    model = shares_a_block()
    model.aside = model.model.layers[1].mlp.up_proj
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight and aside\.weight"):
        find_decoder_layers(model)
    model = shares_a_block()
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    with pytest.raises(InputError, match="one weight"):
        find_decoder_layers(model)


@pytest.mark.parametrize(
    ("up", "shared"),
    [
        (lambda memory: memory[:, 0], True),
        (lambda memory: memory[:, 1], False),  # interleaved with gate, row by row
        (lambda memory: memory.flatten()[32 * 48 :].view(48, 32), True),  # half of it is gate's
        (lambda memory: memory[:, 0].clone(), False),
    ],
    ids=["the same", "interleaved", "overlapping", "copied"],
)
def test_slices_of_one_storage_are_one_weight_only_where_they_overlap(up, shared):
    model, memory = tiny_model(), torch.randn(48, 2, 32)
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.weight, mlp.up_proj.weight = nn.Parameter(memory[:, 0]), nn.Parameter(up(memory))
    # The oracle: what is written to one is seen in the other.
    before = mlp.up_proj.weight.clone()
    mlp.gate_proj.weight.data.add_(1)
    assert torch.equal(before, mlp.up_proj.weight) != shared
    if shared:
        with pytest.raises(InputError, match=r"gate_proj\.weight .*up_proj\.weight"):
            find_decoder_layers(model)
    else:
        find_decoder_layers(model)


def test_one_module_under_two_names_in_a_layer_is_one_projection():
    model, plain = tiny_model(), tiny_model()
    for layer in model.model.layers:
        layer.mlp.another_name = layer.mlp.gate_proj
    names = [p.key for p in find_decoder_layers(model).projections]
    assert names == [p.key for p in find_decoder_layers(plain).projections]
    assert "layers.0.mlp.gate_proj" in names


def test_a_second_way_to_the_layers_is_no_second_place():
    model = tiny_model()
    model.shortcut = nn.ModuleList([model.model.layers[1]])
    assert find_decoder_layers(model).path == "model.layers"


def test_weights_without_an_address_are_distinguished():
    """As torchao's quantised ones: a tensor that only wraps others has no storage of its own."""

    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            return args[0] if function is torch.ops.aten.detach.default else NotImplemented

    def wrap(projection):
        like = projection.weight
        inner = Wrapper._make_wrapper_subclass(Wrapper, like.shape, dtype=like.dtype)
        projection.weight = nn.Parameter(inner, requires_grad=False)

    model = tiny_model()
    mlp = model.model.layers[0].mlp
    wrap(mlp.gate_proj)
    wrap(mlp.up_proj)
    find_decoder_layers(model)
    mlp.up_proj.weight = mlp.gate_proj.weight
    with pytest.raises(InputError, match=r"gate_proj\.weight .*up_proj\.weight"):
        find_decoder_layers(model)
