"""Pruning with a sparsity for each layer or projection."""
