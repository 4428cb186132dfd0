"""Kinds of plan: what is given out, layer by layer. One file a kind."""
