"""Tests of lightning_rs.data, on small files in the true on-disk formats."""
