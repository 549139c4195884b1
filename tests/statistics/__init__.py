"""Tests of the confidence bounds."""
