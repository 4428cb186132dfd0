"""Influence at the operating point: what weights are worth to the model as it is pruned."""
