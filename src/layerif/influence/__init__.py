"""Layer-wise influence: how training samples move the validation loss through each layer."""
