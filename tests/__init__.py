"""Tests of lightning_rs; the folders mirror the package."""
