"""What a model is worth: perplexity on text, accuracy on tasks, and how sure a difference is."""
