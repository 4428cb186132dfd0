"""Rows to fine-tune a tiny model on, and runs of fine-tuning that are compared."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Plan
from layerif.data import Example, Task
from layerif.finetuning.options import FinetuneOptions
from layerif.workflows.finetuning import finetune_into

EXPERTS = Plan(kind="experts", allocation=[1, 3, 4])
# Completions of different lengths, so that a mean over tokens is not one over rows.
ROWS = [Example(f"say {i}: ", "yes" if i % 2 else "no, never, no") for i in range(22)]
TRAIN, VALIDATION = ROWS[:14], ROWS[14:]
TASK = Task("rows", {"train": TRAIN, "validation": VALIDATION, "test": []})
SETTING = {"batch_size": 4, "batch_tokens": 60, "learning_rate": 3e-3, "epochs": 2.0}
# So high a rate that the loss soon rises: the third step's is the lowest, and the fifth the last.
RISING = {"learning_rate": 0.6, "epochs": 3.0, "evaluate_every": 1, "patience": 2, "plan": None}


def settings(**options):
    return FinetuneOptions(**(SETTING | options))


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def into(folder, plan=EXPERTS, model=None, **options):
    """What `finetune_into` makes of the rows; in float64, unless a model is given."""
    return finetune_into(
        folder,
        model or tiny_model("llama", torch.float64),
        tiny_tokenizer(),
        TASK,
        train=TRAIN,
        validation=VALIDATION,
        plan=plan,
        options=settings(**options),
    )


def assert_same_run(record, folder, other, other_folder):
    """Not to the bit: some machines sum in another order when tensors lie elsewhere in memory."""
    for found, wanted in ((record.losses, other.losses), (record.evaluations, other.evaluations)):
        assert [at.step for at in found] == [at.step for at in wanted]
        assert [at.loss for at in found] == pytest.approx([at.loss for at in wanted], rel=1e-6)
    weights, expected = (
        load_file(path / "adapter_model.safetensors") for path in (folder, other_folder)
    )
    torch.testing.assert_close(weights, expected, rtol=1e-7, atol=1e-9)
