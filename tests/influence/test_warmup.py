"""An adapter that is warmed up before scoring, and one that is opened from its folder."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.adapters import adapted, fill_loras
from helpers.quantised import packed_and_dense
from helpers.scoring import TRAIN, WANTED, measure
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import hash_model
from layerif.core.checkpoint import NO_STEPS, resumable
from layerif.data.batching import collate
from layerif.data.tokenizing import encode
from layerif.errors import InputError, NumericalError
from layerif.influence.fresh_adapter import RATE
from layerif.influence.options import CollectOptions
from layerif.influence.subspaces.lora import FreshLora
from layerif.influence.warmup import warmed_up
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model

ITEMS, _ = encode(tiny_tokenizer(), [(e.prompt, e.completion) for e in TRAIN], 128)


def warm(model, steps=12, seed=3, **options):
    kept = options.pop("kept", NO_STEPS)
    asked = CollectOptions(**{"batch_tokens": 150, "warmup_steps": steps} | options)
    lora = FreshLora(4, 8.0, seed)
    return warmed_up(model, find_decoder_layers(model), ITEMS, lora, asked, kept=kept)


def mean_loss(model):
    batch = collate(ITEMS, device=torch.device("cpu"))
    with torch.no_grad():
        return float((row_sums(token_losses(model, batch), batch) / batch.counts).mean())


def by_hand(steps, seed=3):
    """AdamW written out, on a LoRA written out, one batch of all samples."""
    model = tiny_model(dtype=torch.float64)
    lora = FreshLora(4, 8.0, seed)
    projections = find_decoder_layers(model).projections
    weights = []
    for projection in projections:
        down = lora.down(projection).double().requires_grad_()
        up = torch.zeros(projection.out_features, 4, dtype=torch.float64, requires_grad=True)
        weights += [down, up]
        projection.module.register_forward_hook(
            lambda _m, args, out, down=down, up=up: out + 2.0 * (args[0] @ down.T @ up.T)
        )
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    batch = collate(ITEMS, device=torch.device("cpu"))
    for step in range(steps):
        loss = (row_sums(token_losses(model, batch), batch) / batch.counts).mean()
        gradients = torch.autograd.grad(loss, weights)
        rate = RATE * (1 - step / steps)
        for w, g, m, v in zip(weights, gradients, first, second, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            w.data -= rate * m_hat / (v_hat.sqrt() + 1e-8)
    return [w.detach() for w in weights]


def test_the_steps_are_those_of_adamw_written_out():
    model = tiny_model(dtype=torch.float64)
    with warm(model, 5, batch_tokens=10_000):
        named = dict(model.named_modules())
        found = []
        for projection in find_decoder_layers(tiny_model()).projections:
            layer = named[f"model.layers.{projection.layer}.{projection.name}"]
            found += [layer.lora_A["warmup"].weight, layer.lora_B["warmup"].weight]
        for ours, theirs in zip(found, by_hand(5), strict=True):
            # The written-out loss ends where AdamW's square root of a tiny gradient begins.
            assert (ours - theirs).abs().max() <= 1e-9


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_loss_falls_and_the_model_is_left_as_it_was(architecture):
    model = tiny_model(architecture)
    model.lm_head.weight.requires_grad_(False)
    model.training = True
    names = [name for name, _ in model.named_modules()]
    attributes, before, cold = set(vars(model)), hash_model(model), mean_loss(model)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with warm(model, 40) as subspace:
            assert mean_loss(model) < cold - 0.01
            matrices = subspace.matrices(find_decoder_layers(model).projections)
            assert len(matrices) == 2 * len(find_decoder_layers(model).projections)
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, _ in model.named_modules()] == names
    assert (set(vars(model)), hash_model(model)) == (attributes, before)
    assert not model.lm_head.weight.requires_grad
    assert next(model.parameters()).requires_grad is (architecture == "llama")
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_after_a_warm_up_are_repeatable_and_say_how_it_was():
    model = tiny_model()
    first, again, other = (
        measure(model, subspace="adapter", warmup_steps=6, seed=seed) for seed in (3, 3, 4)
    )
    assert np.array_equal(first.influence, again.influence)
    assert not np.array_equal(first.influence, other.influence)
    options = first.record.subspace_options
    assert (options["rank"], options["alpha"], options["seed"]) == (4, 8.0, 3)
    assert (options["warmup"]["steps"], options["warmup"]["rate"]) == (6, 3e-4)
    assert first.projections == measure(model).projections


def test_the_lora_is_float32_whatever_the_model():
    model = tiny_model(dtype=torch.bfloat16)
    with warm(model, 2):
        kinds = {p.dtype for name, p in model.named_parameters() if "lora_" in name}
        assert kinds == {torch.float32}
    assert np.isfinite(measure(model, subspace="adapter", warmup_steps=2).influence).all()


def test_quantised_projections_are_warmed_up_as_what_they_compute():
    found = [
        measure(model, subspace="adapter", warmup_steps=3).influence for model in packed_and_dense()
    ]
    assert np.abs(found[0] - found[1]).max() <= 1e-4 * np.abs(found[1]).max()


def test_a_run_cut_short_does_not_train_again(tmp_path, monkeypatch):
    options = {"subspace": "adapter", "warmup_steps": 4}
    reference = measure(tiny_model(), **options)
    with (
        pytest.raises(KeyboardInterrupt),
        resumable(tmp_path / "run", WANTED) as steps,
        warm(tiny_model(), 4, batch_tokens=1024, kept=steps),
    ):
        raise KeyboardInterrupt
    monkeypatch.setattr(
        "layerif.influence.warmup.fine_tune", lambda *_: pytest.fail("trains again")
    )
    with resumable(tmp_path / "run", WANTED) as steps:
        resumed = measure(tiny_model(), **options, steps=steps)
    assert np.array_equal(resumed.influence, reference.influence)


def test_what_cannot_be_warmed_up_is_refused():
    with pytest.raises(InputError, match="already"):
        measure(adapted(), subspace="adapter", warmup_steps=2)
    with pytest.raises(InputError, match="choose that"):
        measure(tiny_model(), warmup_steps=2)
    broken = tiny_model()
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="step 0 "):
        measure(broken, subspace="adapter", warmup_steps=2)
    assert not any(hasattr(module, "get_base_layer") for module in broken.modules())


@pytest.fixture
def folder(tmp_path):
    """A folder of two adapters of the tiny Llama."""
    model = get_peft_model(tiny_model(), LoraConfig(r=3, target_modules="all-linear"))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    fill_loras(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_model_opens_with_an_adapter_at_work(folder, model):
    plain, _ = open_model(model)
    opened, _ = open_model(model, adapter=folder)
    other, _ = open_model(model, adapter=folder, adapter_name="other")
    assert opened.active_adapters == ["default"]
    assert not opened.training
    kinds = [
        measure(opened, subspace="adapter"),
        measure(other, subspace="adapter", adapter_name="other"),
    ]
    assert [k.record.subspace_options["rank"] for k in kinds] == [3, 2]
    assert len({hash_model(m) for m in (plain, opened, other)}) == 3
    assert abs(mean_loss(opened) - mean_loss(plain)) > 1e-4


def test_adapters_that_do_not_fit_are_refused_before_the_weights(folder, model, tmp_path):
    gpt2 = tmp_path / "gpt2"
    tiny_model("gpt2").save_pretrained(gpt2)
    (gpt2 / "model.safetensors").unlink()
    tiny_tokenizer().save_pretrained(gpt2)
    with pytest.raises(InputError, match=r"does not fit .*gpt2"):
        open_model(gpt2, adapter=folder)
    with pytest.raises(InputError, match=r"'third' .*default, other"):
        open_model("no/such", adapter=folder, adapter_name="third")
    with pytest.raises(InputError, match=r"'default' .*none"):
        open_model("no/such", adapter=tmp_path / "gpt2")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 7}))
    with pytest.raises(InputError, match="does not fit"):
        open_model(model, adapter=folder)
    config["target_modules"] = ["q_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="place for"):
        open_model(model, adapter=folder)
