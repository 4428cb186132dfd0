"""Tiny models that are pruned, and folders of them."""

from __future__ import annotations

from helpers.texts import SENTENCES
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import save_pruned

OPTIONS = {
    "calibration": SENTENCES,
    "calibration_samples": 6,
    "context_length": 32,
    "batch_tokens": 64,
}


def prune_tiny(model, plan=None, **options):
    """The manifest; the model is pruned in place."""
    return prune(model, plan, tokenizer=tiny_tokenizer(), **(OPTIONS | options))


def pruned_folder(path, architecture="llama", **options):
    model = tiny_model(architecture)
    manifest = prune_tiny(model, **(options or {"nm": "2:4"}))
    save_pruned(model, tiny_tokenizer(), manifest, path)
    return path
