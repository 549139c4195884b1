"""``python -m lightning_rs``."""

import sys

from lightning_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
