"""Plans of sparsity by projections: what they must add up to, and that they are followed."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import ModuleSparsity, Plan
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.runner import prune
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe


def plan_for(model, **fields):
    projections = find_decoder_layers(model).projections
    modules = [
        ModuleSparsity(module=p.key, sparsity=(row % 7) / 8, numel=p.numel)
        for row, p in enumerate(projections)
    ]
    return Plan.of_modules(modules, model=describe(model), **fields)


def test_each_projection_is_pruned_by_its_own_number(tmp_path):
    model = tiny_model()
    plan = plan_for(model, how={"map": "by hand"})
    plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    text = "every word of it counts, and some count twice. " * 60
    manifest = prune(
        model,
        plan,
        tokenizer=tiny_tokenizer(),
        calibration=text,
        calibration_samples=4,
        context_length=32,
    )
    for module, p in zip(manifest.modules, find_decoder_layers(model).projections, strict=True):
        assert module.asked == round(plan.level_of(p.key) * p.numel)
        assert module.zeros == module.asked
    assert manifest.sparsity == pytest.approx(plan.realised_total, abs=1e-3)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight == 0, torch.zeros(32, 32) > 0)


def test_what_does_not_add_up_is_refused():
    plan = plan_for(tiny_model())
    value = plan.model_dump(mode="json")
    changed = value | {"allocation": [0.9, *value["allocation"][1:]]}
    with pytest.raises(InputError, match=r"layer 0 .*0\.9"):
        Plan.parse(changed, "plan")
    missing = value | {"modules": value["modules"][1:]}
    with pytest.raises(InputError, match="modules of layer 0"):
        Plan.parse(missing, "plan")
    twice = value | {"modules": [*value["modules"], value["modules"][0]]}
    with pytest.raises(InputError, match="named twice"):
        Plan.parse(twice, "plan")
    named = [{"module": "up", "sparsity": 0.5, "numel": 3}]
    with pytest.raises(InputError, match="named like"):
        Plan.parse({"kind": "sparsity", "allocation": [0.5], "modules": named}, "plan")
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.other"):
        plan.level_of("layers.0.mlp.other")


def test_plans_of_the_same_layer_means_are_not_taken_for_each_other(tmp_path):
    """In each layer two projections of one size change places."""
    from layerif.data import Corpus
    from layerif.workflows.stages import prune_into

    corpus = Corpus("words", ["every word of it counts, and some count twice. " * 60], ["x"], "")
    plan = plan_for(tiny_model())
    named = {module.module: module for module in plan.modules}
    other = [
        module.model_copy(update={"sparsity": named[_other(module.module, named)].sparsity})
        for module in plan.modules
    ]
    swapped = Plan.of_modules(other, model=plan.model)
    assert swapped.allocation == pytest.approx(plan.allocation)

    tiny_model().save_pretrained(tmp_path / "model")

    def pruned(wanted):
        return prune_into(
            tmp_path / "pruned",
            AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
            tiny_tokenizer(),
            wanted,
            calibration=corpus,
            options=PruneOptions(calibration_samples=4, context_length=32),
        )

    first = pruned(plan)
    assert pruned(plan) == first
    with pytest.raises(InputError, match=r"modules\.layers\.0\.mlp\.gate_proj was"):
        pruned(swapped)


def _other(name, named):
    for one, two in (("gate_proj", "up_proj"), ("up_proj", "gate_proj")):
        if name.endswith(one):
            assert named[name.replace(one, two)].numel == named[name].numel
            return name.replace(one, two)
    return name
