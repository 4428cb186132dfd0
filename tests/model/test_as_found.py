"""Whatever ends a function that changes a model for a while, the model is as it was found."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from peft import LoraModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from helpers.experts_study import compared
from helpers.finetuning import EXPERTS, TRAIN, VALIDATION, into, settings
from helpers.scoring import measure
from helpers.stages import capacity_small
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import hash_model
from layerif.finetuning.finetune import finetune
from layerif.finetuning.trainer import CompletionTrainer
from layerif.influence.preparing import Runner
from layerif.metrics.measuring import metric_scores
from layerif.model.modes import as_found

# The packages' functions of the same names hide these modules.
finetune_module = import_module("layerif.finetuning.finetune")
finetune_stage = import_module("layerif.workflows.finetuning")
comparing = import_module("layerif.workflows.compare_experts")


def made_of(model):
    """All that a model is beside the numbers in its weights, and their hash."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    modules = [
        (
            name,
            id(module),
            module.training,
            sorted(vars(module)),
            [len(getattr(module, kind)) for kind in hooks],
        )
        for name, module in model.named_modules()
    ]
    wants = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    settings = [model.config.to_dict(), model.generation_config.to_dict()]
    return modules, wants, settings, hash_model(model)


def mixed_model():
    """In training mode but for one module, and one weight that wants no gradient."""
    model = tiny_model().train()
    model.model.layers[1].eval()
    model.model.norm.weight.requires_grad_(False)
    return model


class Ended(KeyboardInterrupt):
    pass


def test_what_was_put_into_a_model_is_taken_out():
    model = mixed_model()
    before = made_of(model)

    def change():
        layer = model.model.layers[0]
        layer.mlp = nn.Identity()
        layer.forward = lambda *_args: None
        layer.register_forward_hook(lambda *_: None)
        model.peft_config = {}
        model.config.use_cache = False
        model.config.further = 1
        model.requires_grad_(False).eval()

    def change_and_end():
        with as_found(model, unless_done=True):
            change()
            raise Ended

    with pytest.raises(Ended):
        change_and_end()
    assert made_of(model) == before
    with as_found(model):
        change()
    assert made_of(model) == before
    with as_found(model, unless_done=True):
        change()
    assert made_of(model) != before


def finetuned(model, _folder):
    finetune(model, tiny_tokenizer(), TRAIN, VALIDATION, plan=EXPERTS, options=settings())


def finetuned_into(model, folder):
    into(folder / "out", model=model, max_steps=1)


def experts_compared(model, folder):
    compared(folder / "run", model)


def warmed(model, _folder):
    measure(model, warmup_steps=2, subspace="adapter")


def adapters_gained(model, folder):
    capacity_small(folder / "capacity", model)


def gain_asked(model, _folder):
    rows = {"train": TRAIN, "validation": VALIDATION}
    metric_scores(model, "adapter_gain", tokenizer=tiny_tokenizer(), rank=2, alpha=4.0, **rows)


# Called once; all others end the second time.
AT_ONCE = {
    (finetune_module, "Finetuning"),
    (finetune_stage, "plot_routing"),
    (comparing, "evaluate"),
}

PLACES = {
    "finetune, adapters half in": (finetuned, (BaseTuner, "_replace_module")),
    "finetune, in a step": (finetuned, (CompletionTrainer, "training_step")),
    "finetune, at its end": (finetuned, (finetune_module, "Finetuning")),
    "finetune_into, as routing is drawn": (finetuned_into, (finetune_stage, "plot_routing")),
    "compare experts, as it is measured": (experts_compared, (comparing, "evaluate")),
    "warm-up, adapters half in": (warmed, (LoraModel, "_replace_module")),
    "warm-up, training": (warmed, (torch.optim.AdamW, "step")),
    "warm-up, scoring": (warmed, (Runner, "gradients")),
    "capacity, half in": (adapters_gained, (LoraModel, "_replace_module")),
    "capacity, in a step": (adapters_gained, (torch.optim.AdamW, "step")),
    "adapter_gain, in a batch": (gain_asked, (Runner, "gradients")),
}


@pytest.mark.parametrize("place", PLACES)
def test_ended_anywhere_the_model_is_as_before(place, tmp_path, monkeypatch):
    work, (owner, name) = PLACES[place]
    model, calls, function = mixed_model(), [], getattr(owner, name)
    before = made_of(model)

    def ending(*args, **options):
        calls.append(None)
        if len(calls) == 2 or (owner, name) in AT_ONCE:
            raise Ended
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, ending)
        with pytest.raises(Ended):
            work(model, tmp_path)
    assert made_of(model) == before
