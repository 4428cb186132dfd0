"""Pruning with a sparsity for each layer."""

from layerif.pruning.runner import prune, save_pruned
from layerif.pruning.wanda import wanda_mask

__all__ = ["prune", "save_pruned", "wanda_mask"]
