"""What an adapter keeps of the model that it was trained on, and what it is made the same by."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from peft import PeftModel

from helpers.adapters import adapter_on, logits
from helpers.finetuning import EXPERTS, TASK, TRAIN, VALIDATION, settings
from helpers.scoring import measure
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.adapters import LoraMoeConfig
from layerif.artifacts import FINETUNING_FILE, Finetuning, Plan
from layerif.compress.pruning.merging import merge_into, zeros_of
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import save_pruned
from layerif.errors import InputError
from layerif.finetuning.finetune import finetune
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model
from layerif.model.peft_adapters import BASE_HASH, base_hash, with_adapter
from layerif.model.quiet import quiet_transformers
from layerif.report.cards import adapter_card
from layerif.workflows.finetuning import finetune_into


def into(folder, model, plan=None):
    return finetune_into(
        folder,
        model,
        tiny_tokenizer(),
        TASK,
        train=TRAIN,
        validation=VALIDATION,
        plan=plan,
        options=settings(max_steps=2),
    )


def pruned(folder, sparsity=0.5):
    model = tiny_model()
    save_pruned(model, tiny_tokenizer(), prune(model, sparsity, method="magnitude"), folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pruned model, and adapters trained on it and on the dense one."""
    root = tmp_path_factory.mktemp("bases")
    base = pruned(root / "pruned")
    for name, model in (("own", open_model(base, device="cpu")[0]), ("dense", tiny_model())):
        into(root / name, model)
    return root


def test_an_adapter_of_another_base_is_merged_by_force_alone(folders, tmp_path, layerif):
    merge = ["merge", folders / "pruned", "--device", "cpu"]
    dense = [*merge, "--adapter", folders / "dense", "--out", tmp_path / "out"]
    status, _, err = layerif(*dense)
    assert (status, err.count("force")) == (2, 1)
    assert not (tmp_path / "out").exists()
    assert layerif(*dense, "--force")[0] == 0
    assert layerif(*merge, "--adapter", folders / "own", "--out", tmp_path / "own")[0] == 0


def test_elsewhere_another_base_is_noted(folders, capsys):
    for name, said in (("own", False), ("dense", True)):
        open_model(folders / "pruned", adapter=folders / name, device="cpu")
        assert ("trained on other weights" in capsys.readouterr().err) == said


def test_the_hash_outlives_peft_and_does_not_depend_on_precision(folders, tmp_path):
    model = tiny_model()
    digest = base_hash(model)
    PeftModel.from_pretrained(model, folders / "dense").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["auto_mapping"][BASE_HASH] == digest
    for dtype in (torch.float64, torch.bfloat16):
        assert base_hash(tiny_model(dtype=dtype)) == digest
    assert base_hash(tiny_model(dtype=torch.float16)) is None
    model = tiny_model()
    model.lm_head.weight.data[0, 0] += 1
    assert base_hash(model) != digest


def test_another_name_of_the_base_is_a_note(tmp_path, capsys, monkeypatch):
    model, other = tiny_model(), tiny_model()
    model.name_or_path = "org/One"
    adapter_on(model).save_pretrained(tmp_path, save_embedding_layers=False)
    for name, said in (("mirror/one", False), ("org/two", True)):
        monkeypatch.setattr(other.config, "name_or_path", name)
        with_adapter(other, tmp_path).unload()
        assert ("org/One" in capsys.readouterr().err) == said


# Cards


def run_card(folder, monkeypatch, capsys):
    """What the code of a folder's card leaves behind."""
    card = (folder / "README.md").read_text()
    assert "More Information Needed" not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder)
    found = {}
    with quiet_transformers():
        exec(compile(code, "card", "exec"), found)
    assert capsys.readouterr().out.startswith("Once upon a time")
    return card, found


@pytest.mark.parametrize("plan", [None, EXPERTS], ids=["lora", "experts"])
def test_the_same_training_gives_the_same_files_and_a_card_whose_code_opens_them(
    plan, model, tmp_path, monkeypatch, capsys
):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        # By a path from here, which the card's own folder is not.
        opened, _ = open_model(os.path.relpath(model), device="cpu")
        record = into(folder, opened, plan)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in one.iterdir():
        files = [(folder / path.name).read_bytes() for folder in (one, two)]
        if path.name == "layerif_finetuning.json":
            files = [json.loads(text) | {"seconds": 0} for text in files]
        assert files[0] == files[1], path.name
    targets = json.loads((one / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) == 7
    assert targets == sorted(targets)

    card, found = run_card(one, monkeypatch, capsys)
    expected, _ = open_model(model, adapter=two, device="cpu")
    torch.testing.assert_close(logits(found["model"]), logits(expected))
    assert f"{record.evaluations[-1].loss:.4f}" in card
    assert f"{record.trainable_parameters:,}" in card


@pytest.mark.parametrize("name", ["smollm2", "some/model.gguf"])
def test_an_adapter_of_a_gguf_base_is_opened_by_layerif(name, folders):
    record = Finetuning.load(folders / "dense" / FINETUNING_FILE)
    info = record.model.model_copy(update={"name": name})
    card = adapter_card(record.model_copy(update={"model": info}))
    assert f'layerif.open_model({name!r}, adapter=".")' in card


@pytest.mark.parametrize(("kind", "levels"), [("ranks", (1, 2, 3)), ("ranks", (2, 2, 2))])
def test_a_card_says_which_adapters_other_engines_scale_wrongly(kind, levels, folders):
    record = Finetuning.load(folders / "dense" / FINETUNING_FILE)
    plan = Plan(kind=kind, allocation=list(levels))
    card = adapter_card(record.model_copy(update={"plan": plan}))
    assert ("layerif export lora" in card) == (len(set(levels)) > 1)


def test_a_card_names_the_terms_of_a_base_that_has_its_own(folders):
    record = Finetuning.load(folders / "dense" / FINETUNING_FILE)
    info = record.model.model_copy(update={"name": "gemma3-270m"})
    assert "ai.google.dev/gemma/terms" in adapter_card(record.model_copy(update={"model": info}))
    assert "terms of use" not in adapter_card(record)


def test_the_code_of_a_pruned_models_card_opens_it(folders, monkeypatch, capsys):
    card, found = run_card(folders / "pruned", monkeypatch, capsys)
    torch.testing.assert_close(
        logits(found["model"]), logits(open_model(folders / "pruned", device="cpu")[0])
    )
    assert "50.0000% of the weights" in card
    assert "magnitude" in card


# Ranks


def ranks(*values):
    return Plan(kind="ranks", allocation=list(values))


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: measure(model, rank=17),
        lambda model: measure(model, rank=17, subspace="adapter", warmup_steps=1),
        lambda model: measure(model, size=10**9, subspace="two_sided"),
        lambda model: finetune(model, tiny_tokenizer(), TRAIN, options=settings(rank=17)),
        lambda model: finetune(
            model, tiny_tokenizer(), TRAIN, plan=ranks(1, 17, 1), options=settings()
        ),
        lambda model: finetune(
            model, tiny_tokenizer(), TRAIN, plan=EXPERTS, options=settings(rank=10**9)
        ),
        lambda model: FreshLora(rank=10**9).matrices(find_decoder_layers(model).projections),
        lambda model: __import__("peft").get_peft_model(model, LoraMoeConfig(r=17)),
    ],
)
def test_a_rank_above_a_projections_smaller_side_is_refused_by_its_name(ask):
    with pytest.raises(InputError, match=r"layers\.\d\..* at most \d+"):
        ask(tiny_model())


def test_pissa_on_a_pruned_model_keeps_the_zeros(folders, tmp_path):
    """What PiSSA leaves of the weights has no zeros, so they are looked for before."""
    model, _ = open_model(folders / "pruned", device="cpu")
    zeros = zeros_of(model)
    adapter_on(model, init_lora_weights="pissa").save_pretrained(tmp_path / "pissa")
    manifest = merge_into(tmp_path / "out", folders / "pruned", tmp_path / "pissa", device="cpu")
    assert manifest.sparsity == 0.5
    found = zeros_of(open_model(tmp_path / "out", device="cpu")[0])
    assert all(torch.equal(found[key], mask) for key, mask in zeros.items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"modules_to_save": ["input_layernorm"]}, "input_layernorm"),
        ({"target_parameters": ["self_attn.v_proj.weight"]}, "target_parameters"),
        ({"use_dora": True}, "Dora"),
    ],
)
def test_influence_leaves_no_part_of_an_adapter_out(options, says):
    with pytest.raises(InputError, match=says):
        measure(adapter_on(tiny_model("qwen2"), **options), subspace="adapter")
