"""What composes the rest: stages that are never done twice, recipes and comparisons."""
