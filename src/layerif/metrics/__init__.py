"""Metrics of layers other than influence: baselines and controls, or one's own."""
