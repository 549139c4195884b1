"""Figures and tables of the papers: the list is whole, steps are understood, what is done is known from its files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_rs import shipped
from lightning_rs.cli import main, reproduce
from lightning_rs.cli.configs import with_shipped
from lightning_rs.cli.reproduce import Step, entries, make

ASKED = {
    *(f"cohen-table-{i}" for i in range(2, 5)), "cohen-figure-8", *(f"cohen-figure-{i}" for i in range(12, 19)),
    "levine-figure-1b", *(f"levine-figure-{i}" for i in range(2, 16)),
    "mohapatra-figure-1", "mohapatra-figure-2",
    *(f"zhang-table-{i}" for i in range(1, 5)), *(f"zhang-figure-{i}" for i in range(1, 6)),
    *(f"splitting-table-{i}" for i in range(1, 4)), *(f"splitting-figure-{i}" for i in range(3, 7)),
    "splitting-appendix-d",
}  # fmt: skip


def test_the_list_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(entries()) == ASKED
    assert main(["reproduce", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", said, re.MULTILINE) for name in ASKED)
    assert all(entry.scales["paper"].steps for entry in entries().values())  # all are configured
    assert [name for name, entry in entries().items() if not entry.scales["here"].steps] == ["cohen-figure-13"]


@pytest.mark.parametrize("name", sorted(ASKED))
def test_every_configuration_of_a_step_is_shipped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for scale in entries()[name].scales.values():
        for step in scale.steps:
            words = with_shipped(step.words(Path("out"), Path("data")))
            named = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-c", "--ckpt_path")]
            assert all(Path(path).is_file() for path in named if not path.startswith("out/")), step.text
            assert "{" not in re.sub(r"\{(out|data)\}|\{checkpoint: ", "", step.text), step.text


def test_near_matches_and_what_cannot_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    assert main(["reproduce", "cohen-tabel-3", *out]) == 2
    assert "did you mean cohen-table-3" in capsys.readouterr().err
    assert main(["reproduce", "cohen-figure-13", *out]) == 2
    assert "needs released networks" in capsys.readouterr().err
    assert main(["reproduce", "zhang-figure-1", "--scale", "logs", *out]) == 2
    assert "must be one of here, paper, got 'logs'" in capsys.readouterr().err
    assert main(["reproduce", *out]) == 2
    assert "a name is missing" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_dry_run_prints_commands_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "cohen-table-3", "--scale", "paper", "--dry_run", "--out", str(tmp_path / "a b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert len(commands) == 9
    assert all(words[:3] == ["python", "-m", "lightning_rs"] for words in commands)
    assert commands[-1][-1] == str(tmp_path / "a b/paper/cohen-table-3")
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- what is done, and what is not


class Machine:
    """Runs steps: each writes its words and what it reads into the file that it makes; stops where it is told to."""

    def __init__(self, out: Path, stops_at: str = "") -> None:
        self.out, self.stops_at, self.ran = out, stops_at, []
        self.said: list[str] = []

    def __call__(self, words: list[str]) -> int:
        self.ran.append(words)
        made = Path(words[-1])
        if words[0] == self.stops_at:
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text("half")
            return 1
        made.parent.mkdir(parents=True, exist_ok=True)
        read = [Path(word).read_text() for word in words[1:-1] if str(self.out) in word and Path(word).is_file()]
        made.write_text(f"{words[0]} {' '.join(words[1:-2])} {read}")
        return 0

    def make(self, *steps: Step) -> int:
        return make(steps, self.out, Path("data"), self, self.said.append)


CERTIFY = Step("certify --n 5 --records {out}/a.jsonl", ("a.jsonl",))
REPORT = Step("report {out}/a.jsonl --out {out}/report", ("report",))


def test_what_is_done_is_skipped(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.make(CERTIFY, REPORT) == 0
    assert [words[0] for words in machine.ran] == ["certify", "report"]
    assert machine.make(CERTIFY, REPORT) == 0
    assert len(machine.ran) == 2
    assert machine.said[-1].startswith("step 2 of 2: done before")


def test_an_interrupted_step_goes_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path, stops_at="certify")
    assert machine.make(CERTIFY, REPORT) == 1
    assert "step 1 of 2 stopped with status 1: lightning_rs certify" in machine.said[-2]
    assert (tmp_path / "a.jsonl").read_text() == "half"
    seen: list[str] = []

    def goes_on(words: list[str]) -> int:
        seen.append((tmp_path / "a.jsonl").read_text())  # certify resumes from what is there
        machine.stops_at = ""
        return machine(words)

    assert make([CERTIFY, REPORT], tmp_path, Path("data"), goes_on, machine.said.append) == 0
    assert seen[0] == "half"


def test_a_report_begins_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, stops_at="report")
    assert machine.make(CERTIFY, REPORT) == 1
    machine.stops_at = ""
    there: list[bool] = []

    def watched(words: list[str]) -> int:
        there.append((tmp_path / "report").exists())
        return machine(words)

    assert make([CERTIFY, REPORT], tmp_path, Path("data"), watched, machine.said.append) == 0
    assert there == [False]


def test_other_results_before_are_other_results_after(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.make(CERTIFY, REPORT) == 0
    (tmp_path / "a.jsonl").write_text("edited")
    assert machine.make(CERTIFY, REPORT) == 0
    assert [words[0] for words in machine.ran] == ["certify", "report", "certify"]  # equal again, so the report stands
    assert "edited" not in (tmp_path / "a.jsonl").read_text()
    (tmp_path / "steps" / "a.jsonl.json").unlink()
    (tmp_path / "a.jsonl").unlink()

    def another(words: list[str]) -> int:
        status = machine(words)
        if words[0] == "certify":
            (tmp_path / "a.jsonl").write_text("another")
        return status

    assert make([CERTIFY, REPORT], tmp_path, Path("data"), another, machine.said.append) == 0
    assert machine.ran[-1][0] == "report"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: None, "was made by another step"),
        (lambda out: (out / "steps/a.jsonl.json").unlink(), "no step is known to have made it"),
        (lambda out: (out / "steps/a.jsonl.json").write_text("{"), "is damaged"),
    ],
)
def test_what_is_in_the_way_is_refused_and_kept(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    machine = Machine(tmp_path)
    assert machine.make(CERTIFY) == 0
    kept = (tmp_path / "a.jsonl").read_text()
    spoil(tmp_path)
    changed = Step("certify --n 6 --records {out}/a.jsonl", ("a.jsonl",))
    with pytest.raises(ValueError, match=message):
        machine.make(changed)
    assert (tmp_path / "a.jsonl").read_text() == kept
    assert len(machine.ran) == 1


@pytest.mark.parametrize("status", [1, 2, 143])
def test_the_status_is_that_of_the_command_that_stopped(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "make", lambda *args: status)
    assert main(["reproduce", "cohen-table-3", "--out", str(tmp_path)]) == status


def test_a_training_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    step = Step("fit --trainer.default_root_dir {out}/fit/x", ("fit/x/checkpoints/last.ckpt",))
    ran: list[list[str]] = []

    def stopped(words: list[str]) -> int:
        ran.append(words)
        last = tmp_path / "fit/x/checkpoints/last.ckpt"
        last.parent.mkdir(parents=True, exist_ok=True)
        last.write_text("state")
        return 1 if len(ran) == 1 else 0

    def again() -> int:
        return make([step], tmp_path, Path("data"), stopped, lambda line: None)

    assert again() == 1
    assert again() == 0
    assert ran[1] == [*ran[0], "--ckpt_path", str(tmp_path / "fit/x/checkpoints/last.ckpt")]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[{run: 'report {out}/b.jsonl --out {out}/r', makes: r}]", "reads b.jsonl, which no step before it makes"),
        ("[{run: 'remove {out}/b', makes: b}]", "must begin with one of"),
        ("[{run: 'report x'}]", "must be a mapping with makes, run and perhaps each, got"),
    ],
)
def test_bad_entries_are_refused(steps: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "folder", lambda kind: tmp_path)
    file = tmp_path / "reproduce/mine.yaml"
    file.parent.mkdir()
    body = f"{{note: n, steps: {steps}}}"
    file.write_text(f"source: s\nentries:\n  one:\n    shows: w\n    here: {body}\n    paper: {{note: n}}\n")
    with pytest.raises(ValueError, match=message):
        reproduce.entries()


def test_an_entry_is_made_interrupted_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certification that is stopped after some images, a report: through the real commands."""
    records = tmp_path / "records/a.jsonl"
    steps = [
        Step(
            "certify --ckpt_path digits_gaussian_0.25 --certifier.n 200 --data.max 6 --data.init_args.batch_size 2 "
            "--trainer.logger false --trainer.default_root_dir {out}/records --records {out}/records/a.jsonl",
            ("records/a.jsonl",),
        ),
        Step("report {out}/records/a.jsonl --out {out}/report --format csv", ("report",)),
    ]
    calls: list[str] = []

    def cut(words: list[str]) -> int:
        """Runs a command; the certification loses its second half, as if the process had been killed."""
        calls.append(words[0])
        status = main(words)
        if calls == ["certify"]:
            records.write_text("".join(records.read_text().splitlines(keepends=True)[:4]))
            return 1
        return status

    said: list[str] = []
    assert make(steps, tmp_path, Path("data"), cut, said.append) == 1
    first = records.read_text().splitlines()
    assert len(first) == 4
    assert make(steps, tmp_path, Path("data"), cut, said.append) == 0
    assert records.read_text().splitlines()[:4] == first  # what was there is kept
    assert len(records.read_text().splitlines()) == 7
    assert (tmp_path / "report" / "report.csv").is_file()
    assert make(steps, tmp_path, Path("data"), cut, said.append) == 0
    assert calls == ["certify", "certify", "report"]
    assert json.loads((tmp_path / "steps/report.json").read_text())["left"]
