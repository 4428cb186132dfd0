"""Whether a layer score is any good: what a change of each layer really does, and who foretells it.

The changes: weights are pruned, or adapters trained."""
