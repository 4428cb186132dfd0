"""Metrics of what dropping a layer would cost, held against gates on the layers."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

import layerif
from helpers.architectures import tiny_architecture
from helpers.marginal_models import corpus
from helpers.tiny import tiny_tokenizer
from layerif.calibration.text import drawn_chunks

TEXT = {"calibration_samples": 6, "context_length": 32}


def test_first_and_second_order_of_a_layers_gate():
    model = tiny_architecture("llama", torch.float64)
    chunks, _ = drawn_chunks(tiny_tokenizer(), corpus(), 6, 32, 0)
    expected = {"taylor": [], "drop_cost": []}
    for layer in model.model.layers:
        first = second = 0.0
        for chunk in chunks:
            gates = []

            def gated(_module, args, out, gates=gates):
                gates.append(torch.ones_like(out, requires_grad=True))
                return args[0] + gates[-1] * (out - args[0])

            hook = layer.register_forward_hook(gated)
            ids = torch.tensor([chunk.input_ids])
            logits = model(ids, use_cache=False).logits[0, :-1]
            loss = functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, gates[0])
            hook.remove()
            first += gradient.sum().item() / (6 * 31)
            second += gradient.square().sum().item() / 2 / (6 * 31)
        expected["taylor"].append(abs(first))
        expected["drop_cost"].append(second - first)
    for name, values in expected.items():
        found = layerif.metric_scores(
            model, name, tokenizer=tiny_tokenizer(), calibration=corpus(), **TEXT
        )
        np.testing.assert_allclose(found.scores, values, rtol=1e-6)
        assert found.projections is None
