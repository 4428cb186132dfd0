"""A small comparison of plans of experts, trained with two seeds."""

from __future__ import annotations

from helpers.tiny import tiny_tokenizer
from layerif.artifacts import Plan
from layerif.data import Example, Task
from layerif.workflows.compare_experts import compare_experts
from layerif.workflows.options import ExpertsStudy

CHOICES = (" yes", " no")


def rows(start, count):
    return [
        Example(f"is {i} even?", CHOICES[i % 2], CHOICES, answer=i % 2)
        for i in range(start, start + count)
    ]


TASK = Task("even", {"train": rows(0, 24), "validation": rows(24, 6), "test": rows(30, 12)})
STUDY = ExpertsStudy(
    max_steps=4,
    batch_size=6,
    rank=2,
    learning_rate=1e-2,
    seeds=(0, 5),
    validation_samples=6,
    max_length=64,
    batch_tokens=200,
)
PLANS = {
    "uniform": Plan(kind="experts", allocation=[2, 2, 2]),
    "top": Plan(kind="experts", allocation=[1, 1, 4]),
    "lora": Plan(kind="ranks", allocation=[4, 4, 4]),
}


def compared(folder, model, study=STUDY):
    return compare_experts(folder, model, tiny_tokenizer(), PLANS, study, task=TASK)
