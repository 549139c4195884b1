"""Certify image classifiers by randomized smoothing, and train them for it."""
