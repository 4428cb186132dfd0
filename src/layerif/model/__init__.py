"""Opening a causal LM, and finding its decoder layers and their projections."""
