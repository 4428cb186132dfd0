"""A model that is broken on purpose is found out, and what breaks it is named."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.adapters import adapted
from helpers.quantised import packed_and_dense
from helpers.scoring import TRAIN, VALIDATION
from helpers.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from layerif.artifacts import hash_model
from layerif.influence.doctor import examine

FINITE, REACHED, AUTOGRAD, BATCH = range(4)


def diagnose(model):
    return examine(model, tiny_tokenizer(), TRAIN, VALIDATION, rank=4)


def verdicts(found):
    return [check.ok for check in found.checks]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_sound_model_passes_and_is_left_as_it_was(architecture, dtype):
    model = tiny_model(architecture, dtype)
    model.get_input_embeddings().weight.requires_grad_(False)
    before = hash_model(model)
    wanted = [p.requires_grad for p in model.parameters()]
    found = diagnose(model)
    assert found.ok, found
    assert hash_model(model) == before
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not any(m._forward_hooks for m in model.modules())


def test_quantised_projections_and_adapters_are_examined_too():
    packed, _ = packed_and_dense()
    found = diagnose(packed)
    assert found.ok
    assert "quantised" in found.checks[AUTOGRAD].detail
    assert diagnose(adapted()).ok


class Through(torch.autograd.Function):
    """The identity, whose gradient is changed on the way back."""

    @staticmethod
    def forward(context, values, change):
        context.change = change
        return values.clone()

    @staticmethod
    def backward(context, error):
        return context.change(error), None


def breaking(path, change=None, forward=None):
    """A model in which one module's output, or the gradient of it, is changed."""
    model = tiny_model(dtype=torch.float64)

    def hook(_module, _args, output):
        return Through.apply(output, change) if forward is None else forward(output)

    model.get_submodule(path).register_forward_hook(hook)
    return model


def test_a_scaled_gradient_is_found_at_its_projection():
    found = diagnose(breaking("model.layers.1.mlp.up_proj", lambda error: 1.5 * error))
    assert verdicts(found) == [True, True, False, True]
    detail = found.checks[AUTOGRAD].detail
    assert "at layers.1.mlp.up_proj; largest difference 0.3" in detail


def test_a_mean_over_the_batch_is_found_at_its_module():
    """Each sample alone is sound: no check of single samples would see it."""
    leaky = breaking("model.layers.1.mlp", forward=lambda out: out + out.mean(0, keepdim=True))
    found = diagnose(leaky)
    assert verdicts(found) == [True, True, True, False]
    assert "from layers.1.mlp on" in found.checks[BATCH].detail


def test_samples_that_meet_on_the_way_back_alone_are_found():
    leaky = breaking(
        "model.layers.1.self_attn.o_proj", lambda error: error + error.mean(0, keepdim=True)
    )
    found = diagnose(leaky)
    assert found.checks[BATCH].ok is False
    # The hooks see what reaches the projection's output, before the mean: it shows below.
    assert "from layers.1.self_attn.v_proj down" in found.checks[BATCH].detail


def test_a_projection_that_no_gradient_reaches_is_named():
    found = diagnose(breaking("model.layers.2.mlp.gate_proj", forward=torch.Tensor.detach))
    assert found.ok
    assert found.checks[REACHED].detail.endswith("on them: layers.2.mlp.gate_proj")


def test_a_silent_projection_is_named():
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data.zero_()
    found = diagnose(model)
    assert found.checks[REACHED].ok is False
    assert "layers.0.mlp.gate_proj, layers.0.mlp.down_proj" in found.checks[REACHED].detail


def test_values_that_are_not_finite_are_said():
    model = tiny_model()
    model.lm_head.weight.data[0, 0] = torch.inf
    found = diagnose(model)
    assert verdicts(found) == [False, None, None, None]
    assert "loss of sample" in found.checks[FINITE].detail


def test_the_estimate_counts_what_the_run_has():
    model = tiny_model()
    about = diagnose(model).estimate
    tokenizer = tiny_tokenizer()
    lengths = [len(tokenizer(e.prompt + e.completion)["input_ids"]) for e in TRAIN + VALIDATION]
    assert (about.samples, about.tokens) == (13, sum(lengths))
    assert about.seconds == pytest.approx(about.tokens / about.tokens_per_second)
    outputs = 3 * (2 * 32 + 2 * 16 + 2 * 48 + 32)  # q, o; k, v; gate, up; down
    assert about.gradients == 9 * outputs * 4 * 4
    assert about.weights == sum(p.nbytes for p in model.parameters())


def test_the_command_prints_a_table_or_json_and_has_a_status(layerif, model, tmp_path):
    few = ["--train-samples", 6, "--validation-samples", 3]
    status, out, _ = layerif("doctor", model, *few)
    assert status == 0
    assert out.count(" ok ") == 4
    assert "A run of 9 samples" in out
    status, out, _ = layerif("doctor", model, *few, "--json")
    printed = json.loads(out)
    assert [check["ok"] for check in printed["checks"]] == [True] * 4
    assert printed["estimate"]["samples"] == 9

    broken = tiny_model()
    # The tokens that opening tries, 1 to 3, are well.
    broken.model.embed_tokens.weight.data[4:] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    status, out, _ = layerif("doctor", tmp_path / "broken", *few)
    assert status == 3
    assert "failed" in out
    assert layerif("doctor", "no/such/model")[0] == 2
