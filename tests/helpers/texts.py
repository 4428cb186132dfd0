"""Text to calibrate and measure tiny models on."""

from __future__ import annotations

SENTENCES = " ".join(f"Sentence {i} says that {i * i} is the square of {i}." for i in range(200))
