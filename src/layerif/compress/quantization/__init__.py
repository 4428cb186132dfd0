"""Quantisation to a number of bits for each layer or projection."""
