"""``python -m lightning_rs``."""

import sys


def run() -> int:
    """Run the command line and return the exit status; Ctrl-C is one word while modules are imported, too."""
    try:
        from lightning_rs.cli import main

        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run())
