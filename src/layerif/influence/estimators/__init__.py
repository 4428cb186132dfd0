"""From the gradients of one block to the influence of each sample: one file an estimator."""
