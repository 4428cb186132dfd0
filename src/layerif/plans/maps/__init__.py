"""From one score per layer to experts, ranks or sparsities, with an exact total."""
