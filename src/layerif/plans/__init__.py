"""From scores to plans with an exact total."""
