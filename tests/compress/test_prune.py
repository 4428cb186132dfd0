"""Pruning a whole model by a plan."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.pruned import prune_tiny
from helpers.texts import SENTENCES
from helpers.tiny import ARCHITECTURES, LAYERS, tiny_model, tiny_tokenizer
from layerif.artifacts import MANIFEST_FILE, Manifest, Plan
from layerif.compress.figures import relative
from layerif.compress.pruning.saving import save_pruned
from layerif.compress.pruning.wanda import wanda_mask
from layerif.compress.saving import save_tokenizer
from layerif.data.chunks import cut, draw
from layerif.errors import InputError, NumericalError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe
from layerif.plans.allocate import allocate_sparsity


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_plan_is_met_exactly_in_every_architecture(architecture):
    model = tiny_model(architecture)
    plan = allocate_sparsity([1.0, 5.0, 2.0], 0.4713, epsilon=0.3, model=describe(model))
    others = {
        name: p.clone()
        for name, p in model.named_parameters()
        if not any(p is q.module.weight for q in find_decoder_layers(model).projections)
    }
    manifest = prune_tiny(model, plan)
    for projection, entry in zip(
        find_decoder_layers(model).projections, manifest.modules, strict=True
    ):
        zeros = int((projection.weight == 0).sum())
        assert entry.module == projection.key
        assert entry.zeros == entry.asked == zeros
        assert abs(zeros - plan.allocation[projection.layer] * projection.numel) <= 0.5
    assert manifest.sparsity == pytest.approx(0.4713, abs=5e-4)
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in others.items())


def test_each_layer_is_pruned_on_what_the_pruned_layers_below_hand_on():
    """The same by hand: whole forward passes, hooks, one layer after the other."""
    plan = Plan(kind="sparsity", allocation=[0.6, 0.3, 0.5])
    model, by_hand, tokenizer = tiny_model(), tiny_model(), tiny_tokenizer()
    prune_tiny(model, plan, seed=5)
    chunks = draw(cut(tokenizer, SENTENCES, 32), 6, seed=5)
    ids = torch.tensor([chunk.input_ids for chunk in chunks])
    for layer in range(LAYERS):
        squares = {}
        projections = find_decoder_layers(by_hand).of(layer)
        handles = [
            p.module.register_forward_pre_hook(
                lambda _m, args, key=p.key, kept=squares: kept.update({key: args[0].flatten(0, 1)})
            )
            for p in projections
        ]
        with torch.no_grad():
            by_hand(ids, use_cache=False)
        for handle in handles:
            handle.remove()
        for p in projections:
            norms = squares[p.key].double().norm(dim=0)
            p.weight.masked_fill_(wanda_mask(p.weight, norms, plan.allocation[layer]), 0)
    for a, b in zip(
        find_decoder_layers(model).projections,
        find_decoder_layers(by_hand).projections,
        strict=True,
    ):
        assert torch.equal(a.weight, b.weight)


def test_the_batch_of_calibration_text_changes_nothing():
    one, all_at_once = tiny_model(), tiny_model()
    prune_tiny(one, 0.5, batch_tokens=1)
    prune_tiny(all_at_once, 0.5, batch_tokens=10_000)
    for a, b in zip(one.parameters(), all_at_once.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_saved_model_opens_with_plain_transformers(tmp_path):
    model = tiny_model()
    manifest = prune_tiny(model, 0.5)
    folder = tmp_path / "pruned"
    save_pruned(model, tiny_tokenizer(), manifest, folder)
    reopened = AutoModelForCausalLM.from_pretrained(folder)
    for (name, a), (_, b) in zip(
        model.named_parameters(), reopened.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"] == [67, 68]
    assert Manifest.load(folder / MANIFEST_FILE) == manifest
    assert [p.name for p in tmp_path.iterdir()] == ["pruned"], "nothing is left beside it"


def test_the_sentencepiece_model_of_a_folder_comes_along(tmp_path, monkeypatch):
    """llama.cpp's converter needs it; transformers neither reads nor writes it."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    own, cached = tmp_path / "own", tmp_path / "cache" / "models--somebody--tiny"
    for folder in (own, cached / "snapshots" / "0123"):
        tiny_tokenizer().save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(folder.name.encode())
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    names = {str(own): b"own", "somebody/tiny": b"0123", "somebody/else": None, "no id": None}
    for name, content in names.items():
        tokenizer = tiny_tokenizer()
        tokenizer.name_or_path = name
        place = tmp_path / "saved" / name.replace("/", "_")
        place.mkdir(parents=True)
        save_tokenizer(tokenizer, place)
        found = place / "tokenizer.model"
        assert (found.read_bytes() if found.exists() else None) == content, name
        assert (place / "tokenizer.json").is_file()


def test_saving_that_fails_leaves_the_old_folder(tmp_path):
    model = tiny_model()
    manifest = prune_tiny(model, 0.5)
    folder = tmp_path / "pruned"
    save_pruned(model, tiny_tokenizer(), manifest, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = prune_tiny(model, 0.75)
    with pytest.raises(AttributeError):
        save_pruned(model, None, other, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["pruned"]


def test_the_manifest_says_what_was_done(tmp_path):
    manifest = prune_tiny(tiny_model(), 0.25, seed=9)
    text = json.loads(json.dumps(manifest.model_dump(mode="json")))
    assert text["calibration"]["seed"] == 9
    assert text["plan"]["total"] == 0.25
    assert text["setting"]["versions"].keys() >= {"torch", "transformers", "layerif", "python"}


def test_what_cannot_be_done_is_refused_before_any_weight_changes():
    model = tiny_model()
    before = [p.clone() for p in model.parameters()]
    wrong = {
        "2 layers, but": Plan(kind="sparsity", allocation=[0.5, 0.5]),
        "sparsity": Plan(kind="experts", allocation=[1, 2, 3]),
        "sparsity must be within 0 to 1": 1.5,
        "projection parameters": allocate_sparsity(
            [1.0, 2.0, 3.0], 0.5, model=describe(tiny_model("gpt2"))
        ),
    }
    for message, plan in wrong.items():
        with pytest.raises(InputError, match=message):
            prune_tiny(model, plan)
    for message, options in {
        "no pruner 'magic'": {"method": "magic"},
        "chunks of 32 tokens, and 10000 were asked": {"calibration_samples": 10_000},
        "longer than the 128 positions": {"context_length": 129},
        "fewer than one chunk of 64": {"calibration": "short", "context_length": 64},
    }.items():
        with pytest.raises(InputError, match=message):
            prune_tiny(model, 0.5, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_activations_that_are_not_finite_stop_the_run_by_name():
    model = tiny_model()
    model.model.layers[0].input_layernorm.weight.data[0] = torch.inf
    with pytest.raises(NumericalError, match=r"layers\.0\.self_attn\.q_proj"):
        prune_tiny(model, 0.5)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_stops_the_run_by_name(method, value):
    model = tiny_model()
    model.model.layers[-1].mlp.down_proj.weight.data[0, 0] = value
    with pytest.raises(NumericalError, match=r"mlp\.down_proj .*NaN"):
        prune_tiny(model, 0.5, method=method)


def test_an_error_that_is_not_finite_is_not_taken_for_none():
    nan, zero, one = torch.tensor(torch.nan), torch.tensor(0.0), torch.tensor(1.0)
    assert math.isnan(relative(one, nan))
    assert math.isnan(relative(nan, one))
    assert relative(zero, zero) == 0
    assert relative(one, 4 * one) == 0.25


def test_the_draw_of_chunks_is_seeded_and_nested():
    chunks = cut(tiny_tokenizer(), SENTENCES, 32)
    first = [c.index for c in draw(chunks, 5, seed=1)]
    assert [c.index for c in draw(chunks, 9, seed=1)][:5] == first
    assert [c.index for c in draw(chunks, 5, seed=2)] != first


def test_chunks_begin_with_bos_where_the_tokenizer_adds_it():
    plain, with_bos = (cut(tiny_tokenizer(bos=bos), "abcdefghij", 4) for bos in (False, True))
    assert [len(c.input_ids) for c in plain] == [4, 4]
    assert [c.input_ids[0] for c in with_bos] == [1, 1, 1]
    decoded = [tiny_tokenizer().decode(c.input_ids[1:]) for c in with_bos]
    assert decoded == ["abc", "def", "ghi"]
