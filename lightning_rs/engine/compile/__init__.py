"""The inference compiler: fold BatchNorm, fuse layers, quantise to 8-bit integers."""
