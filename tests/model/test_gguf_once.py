"""Several processes that want one GGUF file on a cold cache: one converts it, the others wait."""

from __future__ import annotations

import multiprocessing
import uuid

import torch

from helpers.tiny import tiny_model
from helpers.tiny_gguf import write_tiny_gguf
from layerif.model import gguf
from layerif.model.opening import open_model


def test_one_of_several_processes_converts(tmp_path, monkeypatch):
    write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("LAYERIF_CACHE", str(tmp_path / "cache"))
    convert = gguf._convert

    def counted(*args):
        (tmp_path / f"converted-{uuid.uuid4()}").touch()
        convert(*args)

    monkeypatch.setattr(gguf, "_convert", counted)
    context = multiprocessing.get_context("fork")
    others = [
        context.Process(target=gguf.converted, args=(tmp_path / "tiny.gguf",)) for _ in range(3)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert len(list(tmp_path.glob("converted-*"))) == 1
    (folder,) = (tmp_path / "cache" / "gguf").iterdir()
    model, _ = open_model(folder)
    # Of 48 inputs, and so in float32.
    ours = tiny_model().state_dict()["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(model.state_dict()["model.layers.1.mlp.down_proj.weight"], ours)
