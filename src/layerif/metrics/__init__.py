"""Metrics of layers other than influence: baselines, controls, and a user's."""
