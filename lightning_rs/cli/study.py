"""The study command: an experiment on laws and bounds."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from lightning_rs.checks import naming
from lightning_rs.cli.words import whole_numbers_in_files, with_whole_numbers
from lightning_rs.studies import Study, empty_folder

_STUDY = "Run an experiment on laws and bounds, and write its tables and figures into a folder."


def study_main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lightning_rs study`` and return its exit code."""
    parser = ArgumentParser(prog="lightning_rs study", description=_STUDY, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="YAML with the study, see configs/study")
    parser.add_subclass_arguments(Study, "study", required=True)
    parser.add_argument("--out", type=str, required=True, help="a new or empty folder for the results")
    with whole_numbers_in_files():
        config = parser.parse_args(with_whole_numbers(sys.argv[1:] if argv is None else argv))
    folder = empty_folder(config.out)
    result = parser.instantiate(config).study.run(lambda line: print(line, file=sys.stderr))
    files = result.write(folder)
    settings = folder / "study.yaml"
    with naming(settings):
        settings.write_text(parser.dump(Namespace(study=config.study), skip_validation=True))
    print("\n".join([str(result), *(f"wrote {file}" for file in [*files, settings])]))
    return 0
