"""The subspaces in which gradients are compared: which matrices would be trained."""
