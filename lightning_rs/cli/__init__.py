"""The command line: fit, certify and their kin through Lightning's; commands on records, without torch, before it."""

from lightning_rs.cli.program import main

__all__ = ["main"]
