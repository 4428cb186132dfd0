"""Pruning with a sparsity for each layer or projection."""

from layerif.pruning.merging import merge_into, merged, zeros_of
from layerif.pruning.pattern import Pattern
from layerif.pruning.runner import prune
from layerif.pruning.saving import refuse_adapters, refuse_packed, save_pruned, saved_size
from layerif.pruning.targets import check_pattern
from layerif.pruning.verifying import Verification, verify
from layerif.pruning.wanda import wanda_mask

__all__ = [
    "Pattern",
    "Verification",
    "check_pattern",
    "merge_into",
    "merged",
    "prune",
    "refuse_adapters",
    "refuse_packed",
    "save_pruned",
    "saved_size",
    "verify",
    "wanda_mask",
    "zeros_of",
]
