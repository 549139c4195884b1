"""Tests of lightning_rs.callbacks."""
