"""Exact confidence bounds in float64: binomial, accuracy of a whole test set, sequential, gradient."""
