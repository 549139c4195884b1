"""Tests of lightning_rs.noise."""
