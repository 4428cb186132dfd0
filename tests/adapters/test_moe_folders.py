"""Folders with a mixture of LoRA experts (or a LoRA): opened, hashed, scored and evaluated."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from helpers.moe_models import adapted
from helpers.scoring import measure
from helpers.tiny import tiny_model
from layerif.adapters import LoraMoeConfig
from layerif.artifacts import Results, hash_model
from layerif.compress.pruning.merging import merged
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe, open_model
from layerif.model.peft_adapters import with_adapter

EVALUATE = ("--tasks", "agreement", "--samples", 20)


@pytest.fixture
def folder(tmp_path):
    """Of a mixture of experts for the session's tiny model."""
    adapted().save_pretrained(tmp_path / "moe")
    return tmp_path / "moe"


def lora(folder, name="default"):
    torch.manual_seed(3)
    config = LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear")
    get_peft_model(tiny_model(), config, adapter_name=name).save_pretrained(folder)


def changed(folder, to, **options):
    """A copy of an adapter's folder with another configuration."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(config | options))
    return to


def test_a_folder_is_opened_with_its_experts_at_work(model, folder):
    opened, _ = open_model(model, adapter=folder, device="cpu")
    tokens = torch.randint(3, 250, (1, 9))
    assert torch.equal(opened(tokens).logits, adapted().eval()(tokens).logits)
    info = describe(opened)
    assert info.adapter == "LORA_MOE default"
    assert info.title == f"{model} with LORA_MOE default"
    with opened.disable_adapter():
        assert describe(opened).adapter is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": [3, 4]}, "num_experts"),
        ({"num_experts": [3, 2, 4]}, "does not fit"),
        ({"peft_type": "IA3"}, "IA3; .*LORA_MOE"),
        ({"peft_type": None}, "None"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, model, folder, tmp_path):
    other = changed(folder, tmp_path / "other", **options)
    with pytest.raises(InputError, match=message):
        open_model(model, adapter=other, device="cpu")


def test_a_configuration_that_says_no_kind_is_refused(model, folder):
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(InputError, match="kind"):
        open_model(model, adapter=folder, device="cpu")


def test_all_that_changes_the_output_is_in_the_hash(model, folder, tmp_path):
    others = {
        "one expert a token": {"top_k": 1},
        "another scale": {"lora_alpha": 4.0},
        "fewer in one layer": {"top_k": [2, 2, 1]},
    }
    hashes = {"": hash_model(open_model(model, adapter=folder, device="cpu")[0])}
    assert hashes[""] == hash_model(open_model(model, adapter=folder, device="cpu")[0])
    for name, options in others.items():
        place = changed(folder, tmp_path / name, **options)
        hashes[name] = hash_model(open_model(model, adapter=place, device="cpu")[0])
    hashes["none"] = hash_model(open_model(model, device="cpu")[0])
    assert len(set(hashes.values())) == len(hashes)


def test_evaluate_opens_adapters_of_both_kinds(layerif, model, folder, tmp_path):
    lora(tmp_path / "lora", "mine")
    base = ["evaluate", "--model", model, *EVALUATE, "--device", "cpu", "--out"]
    found = {}
    for name, more in {
        "none": [],
        "moe": ["--adapter", folder],
        "one": ["--adapter", changed(folder, tmp_path / "one", top_k=1)],
        "lora": ["--adapter", tmp_path / "lora", "--adapter-name", "mine"],
    }.items():
        status, _, err = layerif(*base, tmp_path / f"{name}.json", *more)
        assert status == 0, err
        found[name] = Results.load(tmp_path / f"{name}.json")
    losses = {str(each.measurements[0].outcomes.nats) for each in found.values()}
    assert len(losses) == 4, "the cache takes none for another"
    assert len({each.fingerprint.model for each in found.values()}) == 4
    assert [each.model.adapter for each in found.values()] == [
        None,
        "LORA_MOE default",
        "LORA_MOE default",
        "LORA mine",
    ]
    # The recipe says the adapter too, and the result of another adapter is not this one's.
    status, _, err = layerif("run", tmp_path / "moe.recipe.yaml")
    assert (status, "nothing is done again" in err) == (0, True)
    status, _, err = layerif(*base, tmp_path / "moe.json", "--adapter", tmp_path / "one")
    assert status == 2
    assert "already holds another" in err
    status, _, err = layerif(*base, tmp_path / "x.json", "--adapter", tmp_path)
    assert status == 2
    assert "no adapter 'default' in" in err


def test_its_model_is_scored_by_any_subspace_but_that_of_the_adapter(model, folder):
    opened, _ = open_model(model, adapter=folder, dtype="float64", device="cpu")
    with pytest.raises(InputError, match="LORA_MOE"):
        measure(opened, subspace="adapter")
    beside = measure(opened, subspace="fresh_lora")
    with opened.disable_adapter():
        alone = measure(opened, subspace="fresh_lora")
    assert beside.influence.shape == alone.influence.shape
    assert (beside.influence != alone.influence).all(), "the experts are at work"


def test_one_expert_is_merged_and_zeros_are_kept(folder, tmp_path):
    tokens = torch.randint(3, 250, (1, 9))
    torch.manual_seed(2)
    model = get_peft_model(
        tiny_model(dtype=torch.float64), LoraMoeConfig(num_experts=1, init_weights=False)
    ).eval()
    weight = find_decoder_layers(model).projections[0].weight
    weight[0] = 0
    expected = model(tokens).logits
    plain = merged(model)
    weight = find_decoder_layers(plain).projections[0].weight
    assert not weight[0].any()
    assert weight[1].all()
    assert not torch.allclose(plain(tokens).logits, expected), "what it did through zeros is lost"
    several = with_adapter(tiny_model(), folder)
    with pytest.raises(InputError, match="token"):
        merged(several)


def test_score_refuses_it_as_a_subspace(layerif, model, folder, tmp_path):
    status, _, err = layerif(
        *("score", "--model", model, "--task", "agreement", "--out", tmp_path / "run"),
        *("--subspace", "adapter", "--adapter", folder, "--device", "cpu"),
    )
    assert status == 2
    assert "of the kind LORA_MOE" in err


def test_the_card_says_what_has_to_be_imported(folder, tmp_path):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: peft" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(code, "card", "exec")
    assert code.index("import layerif.adapters") < code.index("PeftModel.from_pretrained")
    # Saved again, into the same folder, it says so once.
    PeftModel.from_pretrained(tiny_model(), str(folder)).save_pretrained(folder)
    assert (folder / "README.md").read_text().count("import layerif.adapters") == 1
    # A card of one's own is kept, and one for an adapter that transformers saves is made.
    (folder / "README.md").write_text("# Mine\n")
    adapted().save_pretrained(folder)
    assert (folder / "README.md").read_text().count("import layerif.adapters") == 1
    assert "# Mine" in (folder / "README.md").read_text()
    plain = tiny_model()
    plain.add_adapter(LoraMoeConfig(num_experts=2))
    plain.save_pretrained(tmp_path / "plain")
    assert "import layerif.adapters" in (tmp_path / "plain" / "README.md").read_text()
