"""Pruning with a sparsity for each layer."""

from layerif.pruning.runner import prune, refuse_adapters, refuse_packed, save_pruned
from layerif.pruning.wanda import wanda_mask

__all__ = ["prune", "refuse_adapters", "refuse_packed", "save_pruned", "wanda_mask"]
