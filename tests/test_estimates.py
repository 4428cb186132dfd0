"""Memory by formula against the peak of a process that does the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.architectures import tiny_architecture
from helpers.tiny import tiny_model
from layerif import estimates
from layerif.model.layers import find_decoder_layers

WITHIN = 1.5


def test_short_memory_is_noted_beforehand(monkeypatch, capsys):
    model = tiny_model(dtype=torch.float64)
    estimates.note_memory(model, "scoring", "backward", 100)
    assert not capsys.readouterr().err
    estimates.note_memory(model, "scoring", "backward", 100, kept=1e15)
    assert "scoring takes about" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="a peak since then is Linux's to tell")
def test_estimates_are_near_the_peak():
    """Weights included; a vocabulary whose logits are in several slices."""
    ran = subprocess.run(
        [sys.executable, "-m", "helpers.estimated_peaks", "49152", "1024", "3"],
        cwd=Path(__file__).parents[0],
        capture_output=True,
        text=True,
        check=True,
    )
    for work, (estimated, measured) in json.loads(ran.stdout.splitlines()[-1]).items():
        assert measured / WITHIN <= estimated <= WITHIN * measured, work


def test_an_expert_counts_for_the_tokens_that_are_routed_to_it():
    model = tiny_architecture("mixtral")  # four experts, two for a token
    experts = [p for p in find_decoder_layers(model).projections if p.fused is not None]
    routed = estimates.memory(model, "backward", 100)
    model.config.num_experts_per_tok = 4
    everywhere = estimates.memory(model, "backward", 100)
    outputs = sum(p.out_features for p in experts)
    assert everywhere - routed == pytest.approx(100 * estimates.COPIES * outputs * 4 / 2)
