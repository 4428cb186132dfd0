"""Folders of pruned tiny models."""

from __future__ import annotations

from helpers.texts import SENTENCES
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import save_pruned

OPTIONS = {
    "tokenizer": tiny_tokenizer(),
    "calibration": SENTENCES,
    "samples": 4,
    "context_length": 32,
}


def pruned_folder(path, architecture="llama", **options):
    model = tiny_model(architecture)
    manifest = prune(model, **(options or {"nm": "2:4"}), **OPTIONS)
    save_pruned(model, tiny_tokenizer(), manifest, path)
    return path
