"""Plans searched for: the model is asked as it will be, compressed."""
