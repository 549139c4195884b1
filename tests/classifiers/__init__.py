"""Tests of lightning_rs.classifiers."""
