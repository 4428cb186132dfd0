"""`layerif prune` with every method, pattern and source of text, and the recipe's stage."""

from __future__ import annotations

import json

import pytest
import yaml

from layerif.artifacts import Manifest, Plan
from layerif.compress.pruning.verifying import verify
from layerif.errors import InputError
from layerif.workflows.document import Document
from layerif.workflows.recipe import Recipe

SHORT = ["--calibration-samples", 4, "--context-length", 32]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_method_writes_a_folder_that_holds(layerif, model, text, tmp_path, method):
    out = tmp_path / "out"
    reads = [] if method == "magnitude" else ["--calibration", text, *SHORT]
    base = ["prune", "--model", model, "--method", method, *reads]
    status, printed, err = layerif(*base, "--nm", "2:4", "--out", out)
    assert status == 0, err
    assert f"pruned by {method} 2:4: 50.00% zeros" in " ".join(printed.split())
    assert ("error" in printed) == (method != "magnitude")
    assert verify(out).ok
    manifest = Manifest.load(out / "layerif_manifest.json")
    assert (manifest.method, manifest.nm) == (method, "2:4")
    # The same again is found; where hidden states lie is no other work, and a pattern is.
    assert "nothing is done again" in layerif(*base, "--nm", "2:4", "--out", out)[2]
    elsewhere = ["--hidden-states", "disk"] if reads else []
    again = layerif(*base, "--nm", "2:4", "--out", out, *elsewhere)
    assert "nothing is done again" in again[2]
    status, _, err = layerif(*base, "--sparsity", 0.5, "--out", out)
    assert status == 2
    assert "nm was" in err


def test_hidden_states_on_disk_and_text_of_its_own(layerif, model, tmp_path):
    base = ["prune", "--model", model, "--sparsity", 0.5, "--method", "sparsegpt", *SHORT]
    for name, extra in {"a": [], "b": ["--hidden-states", "disk"]}.items():
        status, _, err = layerif(*base, "--calibration", "self", "--out", tmp_path / name, *extra)
        assert status == 0, err
    assert "on disk" in err
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert first == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    status, _, err = layerif(*base, "--calibration", "agreement", "--out", tmp_path / "c")
    assert status == 0, err
    manifest = Manifest.load(tmp_path / "c" / "layerif_manifest.json")
    assert manifest.calibration["text"]["split"] == "train"


def test_a_mixed_plan_reports_the_total_it_comes_to(layerif, model, text, tmp_path):
    plan = tmp_path / "plan.json"
    Plan(kind="sparsity", allocation=[0.31, 0.47, 0.63]).save(plan)
    status, out, _ = layerif(
        *["prune", "--model", model, "--plan", plan, "--nm", "2:4", "--calibration", text],
        *[*SHORT, "--out", tmp_path / "out"],
    )
    assert status == 0
    told = " ".join(out.split())
    assert "is the nearest that 2:4 with its N by projection can be" in told
    manifest = Manifest.load(tmp_path / "out" / "layerif_manifest.json")
    assert {m.pattern for m in manifest.modules} >= {"2:4", "1:4", "3:4"}
    assert verify(tmp_path / "out").ok


def test_plans_by_projection_are_told_apart(layerif, model, text, tmp_path):
    """Would see: a folder taken for that of another plan with the same means of layers."""
    from layerif.artifacts import ModuleSparsity
    from layerif.model.layers import find_decoder_layers
    from layerif.model.opening import describe, open_model

    opened, _ = open_model(model)
    for number, flip in enumerate((0.2, -0.2)):
        modules = [
            ModuleSparsity(
                module=p.key,
                sparsity=0.5 + flip * {"q_proj": 1, "o_proj": -1}.get(p.name.split(".")[-1], 0),
                numel=p.numel,
            )
            for p in find_decoder_layers(opened).projections
        ]
        plan = Plan.of_modules(modules, model=describe(opened))
        plan.save(tmp_path / f"plan-{number}.json")
    base = ["prune", "--model", model, "--calibration", text, *SHORT, "--out", tmp_path / "out"]
    assert layerif(*base, "--plan", tmp_path / "plan-0.json")[0] == 0
    status, _, err = layerif(*base, "--plan", tmp_path / "plan-1.json")
    assert status == 2
    assert "modules.layers.0.self_attn.q_proj was" in err


def test_bad_input_is_refused(layerif, model, text, tmp_path):
    base = ["prune", "--model", model, "--calibration", text, "--out", tmp_path / "out", *SHORT]
    for message, arguments in {
        "give either --plan FILE or --sparsity NUMBER, or --nm N:M": [],
        "no N:M pattern": ["--nm", "two of four"],
        "not a multiple of 5": ["--nm", "3:5"],
        "a sparsity of 0.4 was asked for": ["--nm", "2:4", "--sparsity", 0.4],
    }.items():
        status, _, err = layerif(*base, *arguments)
        assert status == 2
        assert message in err
    status, _, err = layerif(*base, "--sparsity", 0.5, "--calibration", "no-such-text")
    assert "calibration text" in err
    assert not (tmp_path / "out").exists()


def test_the_recipes_stage_has_the_same_options(layerif, model, text, tmp_path):
    recipe = {
        "model": str(model),
        "out": str(tmp_path / "run"),
        "score": {"task": "agreement", "train_samples": 6, "validation_samples": 2},
        "sparsity": {"target": 0.5, "epsilon": 0.4},
        "prune": {
            "method": "sparsegpt",
            "nm": "2:4",
            "calibration": "self",
            "calibration_samples": 4,
            "context_length": 32,
            "hidden_states": "disk",
        },
        "evaluate": {"tasks": [str(text)], "max_tokens": 256, "context_length": 32},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    status, out, err = layerif("run", path, "--json")
    assert status == 0, err
    assert set(json.loads(out)) == {"dense", "uniform", "LayerIF"}
    for name in ("pruned", "pruned-uniform"):
        manifest = Manifest.load(tmp_path / "run" / name / "layerif_manifest.json")
        assert (manifest.method, manifest.nm) == ("sparsegpt", "2:4")
        assert manifest.calibration["text"]["name"] == "self"
        assert verify(tmp_path / "run" / name).ok
    assert {m.pattern for m in manifest.modules} == {"2:4"}  # the uniform plan

    recipe["prune"]["nm"] = "4:2"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match=r"prune\.nm"):
        Recipe.of(Document.read(path))
    recipe["prune"]["nm"] = "3:5"
    path.write_text(yaml.safe_dump(recipe))
    status, _, err = layerif("run", path, "--out", tmp_path / "other")
    assert status == 2
    assert "multiple of 5" in err
    assert not (tmp_path / "other").exists()
