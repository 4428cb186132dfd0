"""Pruning with a sparsity for each layer."""

from layerif.pruning.manifest import MANIFEST_FILE, Manifest, PrunedModule
from layerif.pruning.runner import Method, prune, save_pruned

__all__ = ["MANIFEST_FILE", "Manifest", "Method", "PrunedModule", "prune", "save_pruned"]
