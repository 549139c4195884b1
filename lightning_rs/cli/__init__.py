"""The command line: fit, certify and their kin through Lightning's; commands on records before it."""

from lightning_rs.cli.lightning import main

__all__ = ["main"]
