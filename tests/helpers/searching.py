"""How little tests search, and weights before and after."""

from __future__ import annotations

import torch

OPTIONS = {
    "calibration_samples": 16,
    "context_length": 32,
    "tokens": 768,
    "held_out_tokens": 1024,
    "rounds": 3,
    "batch_tokens": 1024,
}
SEARCH = {key: OPTIONS[key] for key in ("calibration_samples", "context_length", "batch_tokens")}


def states(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
