"""What adapters in one layer gain, against PEFT training with forward passes of the whole model."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.adapters import adapted
from helpers.scoring import TRAIN, VALIDATION, WANTED
from helpers.tiny import LAYERS, tiny_model, tiny_tokenizer
from layerif.artifacts import Agreement, GroundTruth, hash_model
from layerif.core.checkpoint import resumable
from layerif.data.batching import pack
from layerif.data.tokenizing import encode
from layerif.errors import InputError, NumericalError
from layerif.influence.fresh_adapter import Schedule
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers
from layerif.report.correlation import agreement_table, plot_agreement
from layerif.validation.capacity import capacity
from layerif.validation.correlation import advice, agreements
from layerif.validation.partial import PartialForward

ITEMS, _ = encode(tiny_tokenizer(), [(e.prompt, e.completion) for e in TRAIN], 128)
JUDGED, _ = encode(tiny_tokenizer(), [(e.prompt, e.completion) for e in VALIDATION], 128)
STEPS, RATE, RANK, ALPHA, SEED = 6, 5e-3, 3, 6.0, 2


def gains(model, **options):
    options = {"batch_tokens": 10_000} | options
    return capacity(
        model,
        ITEMS,
        JUDGED,
        rank=RANK,
        alpha=ALPHA,
        train_steps=STEPS,
        learning_rate=RATE,
        seed=SEED,
        **options,
    )


def row_loss(model, item):
    """Mean completion loss of one row, run alone through the whole model."""
    ids = torch.tensor([item.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, item.start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, item.start :])


def by_peft(model, layer, batches):
    """(rows,) fall of the loss by a LoRA of PEFT in one layer, trained row by row."""
    with torch.no_grad():
        before = [row_loss(model, item).item() for item in JUDGED]
    own = copy.deepcopy(model)
    layers = find_decoder_layers(own)
    targets = [f"{layers.path}.{layer}.{p.name}" for p in layers.of(layer)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Conv1D's weights are transposed, and PEFT says so
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
        wrapped = get_peft_model(own, config).double().eval()
    lora = FreshLora(RANK, ALPHA, SEED)
    for projection in find_decoder_layers(model).of(layer):
        name = f"{layers.path}.{layer}.{projection.name}"
        wrapper = own.get_submodule(name)
        wrapper.lora_A.default.weight.data.copy_(lora.down(projection))
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(targets)
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        torch.stack([row_loss(wrapped, item) for item in batch]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = [row_loss(wrapped, item).item() for item in JUDGED]
    return np.array(before) - after


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3", "opt", "gpt2", "falcon"])
def test_a_layer_gains_what_training_it_by_peft_gains(architecture):
    model = tiny_model(architecture, dtype=torch.float64)
    before, names = hash_model(model), [name for name, _ in model.named_modules()]
    attributes = set(vars(model))
    truth = gains(model)
    assert (hash_model(model), [n for n, _ in model.named_modules()]) == (before, names)
    assert set(vars(model)) == attributes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert truth.training["parameters"] == [
        sum(RANK * (p.in_features + p.out_features) for p in find_decoder_layers(model).of(layer))
        for layer in range(LAYERS)
    ]
    for layer in (0, LAYERS - 1):
        expected = by_peft(model, layer, [ITEMS] * STEPS)
        assert np.abs(expected).max() > 1e-3
        # Where a gradient is next to nothing, AdamW's step of it depends on its last digits.
        np.testing.assert_allclose(truth.matrix[layer], expected, rtol=0, atol=1e-6)
    assert truth.base_loss == pytest.approx(
        np.mean([row_loss(model, item).item() for item in JUDGED]), rel=1e-9
    )


def test_every_layer_is_trained_on_the_same_batches_in_an_order_of_the_seed():
    model = tiny_model(dtype=torch.float64)
    batches = pack(ITEMS, 150)
    assert len(batches) > 2
    order = Schedule("capacity", STEPS, RATE, SEED).order(len(batches))
    assert sorted(order[: len(batches)]) == list(range(len(batches)))  # all, before one again
    assert order != Schedule("capacity", STEPS, RATE, SEED + 1).order(len(batches))
    truth = gains(model, batch_tokens=150)
    for layer in range(LAYERS):
        expected = by_peft(model, layer, [batches[number] for number in order])
        np.testing.assert_allclose(truth.matrix[layer], expected, rtol=0, atol=1e-6)


def test_a_run_cut_short_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    model = tiny_model(dtype=torch.bfloat16).train()
    reference, before = gains(model), hash_model(model)
    assert model.training
    seen = []
    upwards = PartialForward.upwards

    def stop_in_layer(self, batch, layer, hidden):
        seen.append(layer)
        if layer == stop and seen.count(layer) == 3:
            raise KeyboardInterrupt
        return upwards(self, batch, layer, hidden)

    monkeypatch.setattr(PartialForward, "upwards", stop_in_layer)
    stop = 1
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "run", WANTED) as steps:
        gains(model, steps=steps)
    assert hash_model(model) == before
    stop = None
    seen.clear()
    with resumable(tmp_path / "run", WANTED) as steps:
        found = gains(model, steps=steps)
    assert found.costs == reference.costs
    assert set(seen) == {1, 2}


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(InputError, match="already"):
        gains(adapted())
    for bad in ({"train_steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}):
        with pytest.raises(InputError, match=r"train_steps|learning_rate"):
            capacity(tiny_model(), ITEMS, JUDGED, **bad)
    with pytest.raises(InputError, match="0 validation"):
        capacity(tiny_model(), ITEMS, [])
    broken = tiny_model()
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="validation row 0 "):
        gains(broken)
    with pytest.raises(NumericalError, match=r"layer 0|step"):
        capacity(tiny_model(), ITEMS, JUDGED, learning_rate=1e30, train_steps=3)


def test_a_high_score_beside_a_high_gain_speaks_for_direct(tmp_path):
    truth = gains(tiny_model())
    ascending = truth.model_copy(
        update={
            "costs": [[layer + 0.1, layer + 0.3] for layer in range(6)],
            "model": truth.model.model_copy(update={"layers": 6}),
        }
    )
    scores = {"with": np.arange(6.0) ** 2}
    (found,) = agreements(scores, {"capacity": ascending})["capacity"]
    assert (found.spearman, found.truth, found.orientation) == (1.0, "capacity", "direct")
    assert "Use with with orientation direct for experts or ranks" in advice([found])
    (against,) = agreements({"against": -np.arange(6.0)}, {"capacity": ascending})["capacity"]
    assert against.orientation == "inverse"
    pruned = Agreement(name="with", truth="isolated", spearman=1.0, low=0.5, high=1.0)
    assert pruned.orientation == "inverse"
    none = Agreement(name="none", truth="capacity", spearman=0.1, low=-0.5, high=0.6)
    assert advice([none]).startswith("No better than uniform: the interval of every score's")
    assert "experts or ranks" in advice([none])
    assert "scores with the fall of the loss by adapters" in agreement_table(
        {"capacity": [found]}
    ).title.plain.replace("\n", " ")
    plot_agreement(scores, [found], ascending, tmp_path / "scatter")
    assert "Fall of the loss by adapters, in one layer alone" in (
        tmp_path / "scatter.svg"
    ).read_text().replace("&#x27;", "'")


def test_the_command_measures_it_when_asked(layerif, model, tmp_path):
    (tmp_path / "depth.json").write_text(json.dumps(list(range(LAYERS))))
    out = tmp_path / "checked"
    asked = ["validate", "--model", model, "--scores", tmp_path / "depth.json", "--out", out]
    few = ["--train-samples", 8, "--validation-samples", 4, "--train-steps", 3, "--rank", 2]
    for wrong in (["--truth", "capacity"], ["--task", "agreement"]):
        status, _, err = layerif(*asked, *few, *wrong)
        assert status == 2
        assert "--truth capacity" in err
    assert not out.exists()
    right = [*asked, *few, "--truth", "capacity", "--task", "agreement"]
    status, printed, err = layerif(*right)
    assert status == 0, err
    assert "capacity: " in printed
    truth = GroundTruth.load(out / "capacity.json")
    assert (truth.sparsity, truth.training["steps"], truth.matrix.shape) == (None, 3, (LAYERS, 4))
    assert truth.text["name"] == "agreement"
    assert list(json.loads((out / "validation.json").read_text())) == ["capacity"]
    assert (out / "capacity-scatter.png").stat().st_size > 1000
    status, _, err = layerif("run", out / "recipe.yaml")
    assert status == 0, err
    assert "nothing is done again" in err
    status, _, err = layerif(*right, "--learning-rate", 0.1)
    assert status == 2
    assert "--learning-rate was" in err
