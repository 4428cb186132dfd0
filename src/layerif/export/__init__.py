"""Plans in the words of the engines that spend them. One file an engine."""
