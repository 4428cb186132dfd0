"""Decoder layers, or their sublayers, taken out of a model: for a while, or for good."""
