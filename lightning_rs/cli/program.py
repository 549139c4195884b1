"""What runs when: the command line loads only what the command needs, and every error is one line."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning_rs
from lightning_rs.announce import announced
from lightning_rs.checks import naming
from lightning_rs.cli.configs import with_shipped
from lightning_rs.cli.console import quiet, report_error
from lightning_rs.cli.help import command_help, completion_script, overview
from lightning_rs.cli.suggest import near

# Commands by the module and the function that run them
COMMANDS = {
    "report": ("commands", "report_main"),
    "merge": ("commands", "merge_main"),
    "combine": ("commands", "combine_main"),
    "import": ("commands", "import_main"),
    "export": ("commands", "export_main"),
    "study": ("study", "study_main"),
    "levels": ("levels", "levels_main"),
    "reproduce": ("reproduce", "reproduce_main"),
    "configs": ("configs", "configs_main"),
}
# Commands with a model, which Lightning's parser understands.
_OFFLINE = "; without an account: --trainer.logger.init_args.offline true, or --trainer.logger false"
# What other programs call it, where spelling would lead elsewhere.
_OTHER_WORDS = {
    "train": "fit",
    "evaluate": "test",
    "eval": "test",
    "plot": "report",
    "help": "--help",
    "version": "--version",
}
STAGES = ("fit", "validate", "test", "predict", "certify", "attack", "transfer")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 2 for bad input, which is one line on standard error.

    Ctrl-C gives 1. Set LIGHTNING_RS_TRACEBACK=1 to see where an error came from.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not {"", os.getcwd()} & set(sys.path):  # `python -m lightning_rs` finds modules of the current folder, this too
        sys.path.append(os.getcwd())
    os.environ.setdefault("WANDB_SILENT", "true")
    with quiet():
        try:
            status = _run(words)
        except SystemExit as stop:  # --help, a parser's error, or Lightning after Ctrl-C or a request to terminate
            asked = type(stop).__name__ == "SIGTERMException"
            status = (
                128 + signal.SIGTERM if asked else stop.code if isinstance(stop.code, int) else int(bool(stop.code))
            )
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = 1
        except BrokenPipeError:  # the reader of our output has seen enough, as `head` has
            status = 0
        except Exception as error:
            if os.environ.get("LIGHTNING_RS_TRACEBACK") or not isinstance(error, _bad_input()):
                raise
            report_error(error, _OFFLINE if type(error).__module__.startswith("wandb") else "")
            status = 2
        _close_loggers(failed=status != 0)
    return _flushed(status)


def _flushed(status: int) -> int:
    """Write what is left to say; a reader that has gone is no error, a full disk behind standard output is one."""
    try:
        with naming("standard output"):
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        report_error(error)
        return status or 2
    return status


def _run(words: list[str]) -> int:
    words = with_shipped(words)
    command = words[0] if words else ""
    if command in ("--help", "-h") and words[1:] != ["all"]:
        print(overview([*STAGES, *COMMANDS]))
        return 0
    if command == "--version":
        print(f"lightning_rs {lightning_rs.__version__}")
        return 0
    if command == "--completion":
        print(completion_script([*STAGES, *COMMANDS]))
        return 0
    if command in COMMANDS:
        module, function = COMMANDS[command]
        with _tidy_termination():
            return 2 if getattr(importlib.import_module(f"lightning_rs.cli.{module}"), function)(words[1:]) else 0
    if not command.startswith("-") and command not in STAGES:
        _refuse_command(command)
    if command in STAGES and words[1:] in (["--help"], ["-h"]):
        print(command_help(command))
        return 0
    with announced("starting: torch and Lightning are loaded", quiet=_rank() > 0):
        from lightning_rs.cli.lightning import SmoothingCLI

    SmoothingCLI([word for word in words if word != "all"] if words[-2:] == ["--help", "all"] else words)
    return 0


@contextmanager
def _tidy_termination() -> Iterator[None]:
    """Within it, a request to terminate lets what was begun be tidied up; status 143. Lightning's stages see to it."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) or 0)


def _refuse_command(command: str) -> None:
    known = [*STAGES, *COMMANDS]
    if command in _OTHER_WORDS:
        meant = _OTHER_WORDS[command]
        raise ValueError(f"command must be one of {', '.join(known)}, got {command!r}; did you mean {meant}?")
    if not command:
        raise ValueError(f"a command is missing: one of {', '.join(known)}; see --help")
    raise ValueError(f"command must be one of {', '.join(known)}, got {command!r}{near(command, known)}")


def _bad_input() -> tuple[type[BaseException], ...]:
    """Return what counts as bad input; classes of libraries that are not loaded cannot have been raised."""
    named = (
        ("lightning_rs.data.errors", "CorruptDataError"),
        ("pytorch_lightning.utilities.exceptions", "MisconfigurationException"),
        ("wandb.errors", "UsageError"),
        ("wandb.errors", "CommError"),
    )
    loaded = [getattr(sys.modules[module], name, None) for module, name in named if module in sys.modules]
    return (ValueError, OSError, ModuleNotFoundError, argparse.ArgumentError, *(kind for kind in loaded if kind))


def _drop_output() -> None:
    """Let nobody write into a closed pipe again, Python at its end included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _close_loggers(failed: bool) -> None:
    loggers = sys.modules.get("lightning_rs.loggers")
    if loggers is not None:
        loggers.close_loggers(failed=failed)
