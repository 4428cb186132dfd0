"""Applications of plans that change a model."""
