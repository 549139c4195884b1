"""Tests of the base networks."""
