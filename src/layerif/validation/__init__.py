"""Whether a layer score is any good: what a change of each layer really does, and who predicts it.

The changes: weights are pruned, or adapters trained."""
