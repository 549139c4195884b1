"""Tests of lightning_rs.certificates."""
