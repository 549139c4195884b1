"""Costs, measured: samples a second, samples an image, and how both grow. See README.md."""
