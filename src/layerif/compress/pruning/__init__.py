"""Pruning with a sparsity for each layer or projection."""

from layerif.compress.pruning.merging import merge_into, merged, zeros_of
from layerif.compress.pruning.pattern import Pattern
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import refuse_adapters, refuse_packed, save_pruned, saved_size
from layerif.compress.pruning.targets import check_pattern
from layerif.compress.pruning.verifying import Verification, verify
from layerif.compress.pruning.wanda import wanda_mask

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
