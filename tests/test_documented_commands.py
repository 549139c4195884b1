"""Every command in README and docs is understood: the command exists, its options parse, what it names is shipped."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import lightning_rs
from lightning_rs import shipped
from lightning_rs.cli import main
from lightning_rs.cli.help import _EXAMPLES
from lightning_rs.cli.program import COMMANDS, STAGES
from tests.driving import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Names in commands that stand for a checkpoint of the reader's; the shipped one has the same form.
CHECKPOINT = "digits_gaussian_0.25"


def documented(page: Path) -> list[list[str]]:
    """Return the words of every command of ours in the shell blocks of a page, with continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    found: list[list[str]] = []
    whole = ""
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        told = re.sub(r"(^|\s)#.*$", "", line)
        whole = f"{whole} {told}".strip()
        if whole.count("'") % 2:
            continue  # a quotation goes on in the next line
        starts = [start for start in ("python -m lightning_rs ", "lightning_rs ") if whole.startswith(start)]
        found += [shlex.split(whole[len(start) :]) for start in starts[:1]]
        whole = ""
    return found


COMMAND_LINES = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}:{i}")
    for page in PAGES
    for i, words in enumerate(documented(page))
    if not any(sign in " ".join(words) for sign in ("$", "..."))  # a shell variable, an omission
]
# Parsing needs no model: only those whose parts are the package's.
PLACEHOLDERS = re.compile(r"\b(mine|mynet)\b|NOISE|CERTIFICATES|[{]checkpoint: ")


def test_there_is_something_to_test() -> None:
    assert len(COMMAND_LINES) > 40
    assert all(documented(ROOT / "docs" / name) for name in ("certify.md", "train.md", "attack.md", "reproduce.md"))


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_the_command_and_what_it_names_exist(words: list[str]) -> None:
    assert words[0] in (*STAGES, *COMMANDS, "--help", "--version", "--completion", "COMMAND"), words
    names = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-c", "--config")]
    for name in names:
        own = "NAME" in name or name.startswith("runs/") or "/" not in name or (ROOT / name).is_file()
        assert own or Path(shipped.config_path(name)).is_file()


@pytest.mark.slow
def test_options_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One process for all. A checkpoint or configuration of the reader's is replaced by a shipped one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").touch()
    failed: list[str] = []
    examples = [shlex.split(line) for lines in _EXAMPLES.values() for line in lines]
    for words in [*(case.values[0] for case in COMMAND_LINES), *examples]:
        if words[0] not in STAGES or PLACEHOLDERS.search(" ".join(words)):
            continue
        mended = list(words)
        for i, word in enumerate(words[:-1]):
            if word in ("--ckpt_path", "--source") and shipped.find(words[i + 1], "checkpoints") is None:
                mended[i + 1] = CHECKPOINT
            if word == "-c" and words[i + 1].startswith("runs/"):
                mended[i + 1] = "data/digits"
        if main([*mended, "--print_config"]) != 0:
            failed.append(f"{shlex.join(words)}: {capsys.readouterr().err.strip().splitlines()[-1]}")
        capsys.readouterr()
    assert not failed, "\n".join(failed)


def test_every_public_name_has_a_place_among_the_api_pages() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: lightning_rs\.([\w.]+)$", pages, re.MULTILINE)
    packages = ("attacks", "callbacks", "classifiers", "data", "evidence", "functional", "metrics",
                "noise", "certificates", "plots", "studies")  # fmt: skip
    for name in packages:
        assert name in shown, name
    covered = {"functional", *lightning_rs.certificates.__all__, *lightning_rs.noise.__all__}
    for name in lightning_rs.__all__:
        if name not in covered:
            home = getattr(lightning_rs, name).__module__.removeprefix("lightning_rs.")
            told = {f"{home}.{name}", *(home.rsplit(".", i)[0] for i in range(home.count(".") + 1))}
            assert told & set(shown), name


def test_pages_name_pages_that_are_there() -> None:
    """Links, pictures and the navigation of the site lead to files; `make docs` builds it strictly."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert link.startswith(("http://", "https://", "mailto:")) or (page.parent / link).exists(), (page, link)
    listed = re.findall(r": ([\w/]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert all((ROOT / "docs" / name).is_file() for name in listed)
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert there <= set(listed)
