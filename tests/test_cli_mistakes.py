"""Mistakes that people make: before (version 0.1.0), and what happens now, case by case.

Each is one line on standard error and exit status 2 unless the case says otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_rs.announce
from lightning_rs.announce import announced
from lightning_rs.callbacks.epoch_end import EpochEndCertification, affordable
from lightning_rs.certificates import GaussianL2, LaplaceL1
from lightning_rs.certifier import Certifier
from lightning_rs.checks import naming, without_unsafe_advice
from lightning_rs.cli import main
from lightning_rs.cli.numbers import whole
from lightning_rs.cli.runs import own_folder, run_of
from lightning_rs.cli.words import with_whole_numbers
from lightning_rs.data import Digits
from lightning_rs.noise import GaussianNoise
from lightning_rs.records import RecordFile, read_records
from lightning_rs.stages.power import smallest_n_to_certify, smallest_n_to_predict
from lightning_rs.trainer import check_checkpoint
from tests.driving import ONE_THREAD, PLAIN, ROOT, certify, run, trained
from tests.fakes import certification, header
from tests.training import classifier, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.* is resumed although git")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


@pytest.mark.parametrize("stage", ["certify", "predict", "validate", "test"])
def test_no_checkpoint(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: random weights were certified, status 0. Now: an error, unless --untrained true says that it is meant."""
    assert "needs the trained classifier, --ckpt_path FILE; with --untrained true" in refusal(capsys, stage)
    few = ("--certifier.n=50", "--data.max=1") if stage in ("certify", "predict") else ("--data.max=1",)
    assert run(stage, "--untrained=true", *few) == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.init_args.num_classes=5", "model.num_classes follows from the data, which say 10, got 5"),
        ("--model.num_classes=5", "model.num_classes follows from the data, which say 10, got 5"),
        ("--model.grid=255", "model.grid follows from the data, which say 16, got 255"),
        ("--model.shape=[3,32,32]", "model.shape follows from the data, which say [1, 8, 8], got [3, 32, 32]"),
    ],
)
def test_what_follows_from_the_data(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: silently ignored. Now: what contradicts the data is refused, in files as in words."""
    assert said in refusal(capsys, "fit", option)
    name, _, value = option.removeprefix("--model.").removeprefix("init_args.").partition("=")
    told = {"class_path": "lightning_rs.classifiers.NoiseAugmentation", "init_args": {name: yaml.safe_load(value)}}
    Path("c.yaml").write_text(yaml.safe_dump({"model": told}))
    assert said in refusal(capsys, "fit", "-c", "c.yaml")
    assert main(["fit", "--model.num_classes=10", *PLAIN, "--trainer.fast_dev_run=true", "--certifier=null"]) == 0


def test_whole_numbers_in_any_usual_writing() -> None:
    """Before: ``n: 1e5`` was refused, "expected int". Now: any usual writing of a whole number is one."""
    writings = ("100000", "1e5", "1E5", "1e+5", "1.0e5", "100_000", "100,000", "100000.0", "10.0e4", "+1e5")
    assert {whole(text) for text in writings} == {100_000}
    assert [whole(text) for text in ("1.5", "1e-5", "1.5e0", "x", "1,00", "-5", "", "nan", "1e99")] == [None] * 9
    assert [whole(text) for text in ("1.0", "0.0")] == [None, None]  # all batches, no batch: shares, not counts
    words = ["fit", "--certifier.n=1e3", "--data.max", "1e2", "--records", "1e5", "--data.root=1e5", "--x.lr=1e-2"]
    assert with_whole_numbers(words) == [
        "fit", "--certifier.n=1000", "--data.max", "100", "--records", "1e5", "--data.root=1e5", "--x.lr=1e-2",
    ]  # fmt: skip


def test_whole_numbers_in_words_and_files(tmp_path: Path) -> None:
    Path("c.yaml").write_text(
        "certifier:\n  class_path: lightning_rs.Certifier\n  init_args:\n    n: 1e2\n    n0: 2.0e+1\n    alpha: 1e-2\n"
    )
    out = tmp_path / "r.jsonl"
    assert run("certify", "--ckpt_path", trained(), "-c", "c.yaml", "--data.max=2.0e0", f"--records={out}") == 0
    binding = read_records(out)[0].binding
    assert (binding["n"], binding["n0"], binding["alpha"]) == (100, 20, 0.01)
    assert certify(tmp_path / "s.jsonl", "--certifier.n=1.5e2", max=1) == 0
    assert read_records(tmp_path / "s.jsonl")[0].binding["n"] == 150


NEAR = {
    "--certifier.nn=5": "did you mean certifier.n or certifier.n0",
    "--certifier.init_args.alhpa=0.1": "did you mean certifier.alpha",
    "--certifier.runtime.thread=1": "did you mean certifier.runtime.threads",
    "--modle.network=mlp": "did you mean model.network",
    "--model.netwrok=mlp": "did you mean model.network",
    "--model.noise.sgima=1": "did you mean model.noise.sigma",
    "--model.noise=GausianNoise": "did you mean GaussianNoise",
    "--data=Digit": "did you mean Digits",
    "--data.bach_size=5": "did you mean data.batch_size",
    "--trainer.callbacks=EpochEndCertificatio": "did you mean EpochEndCertification",
    "--trainer.max_epohcs=5": "did you mean trainer.max_epochs",
    "--certifier.certificates=[GaussianL3]": "did you mean GaussianL",
    "--certifier.certificates=GaussianL3": "did you mean GaussianL",
    "--certifier.budget=StagedSample": "did you mean StagedSamples",
    "--certifier=Certifer": "did you mean Certifier",
    "--certifier.noise.sigma=1": "name the law before its arguments, for instance --certifier.noise=GaussianNoise",
    "--verison": "did you mean version",
}


@pytest.mark.parametrize("word", NEAR)
def test_near_matches(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: "Option 'nn' is not accepted", "Expected a dot import path string". Now: with what was probably meant."""
    assert NEAR[word] in refusal(capsys, "fit", word)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("fti", "fit"),
        ("certfy", "certify"),
        ("raport", "report"),
        ("train", "fit"),
        ("version", "--version"),
    ],
)
def test_near_commands(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: a list of choices. Now: the command that was probably meant, without loading torch."""
    assert main([word]) == 2
    assert f"got '{word}'; did you mean {said}" in capsys.readouterr().err


def test_one_certificate_needs_no_list(tmp_path: Path) -> None:
    """Before: ``--certifier.certificates LaplaceL1`` was refused, "expected collections.abc.Sequence"."""
    law = ("--certifier.noise=LaplaceNoise", "--certifier.noise.scale=0.2")
    with pytest.warns(UserWarning, match="smoothing with LaplaceNoise"):
        assert certify(tmp_path / "r.jsonl", *law, "--certifier.certificates", "LaplaceL1", max=1) == 0
    assert [c["class"] for c in read_records(tmp_path / "r.jsonl")[0].binding["certificates"]] == ["LaplaceL1"]
    assert Certifier(LaplaceL1()).certificates == Certifier([LaplaceL1()]).certificates


def test_weights_alone_do_not_continue_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: KeyError 'loops' with a traceback."""
    contents = torch.load(trained(), weights_only=True)
    for name in ("loops", "optimizer_states", "lr_schedulers"):
        contents.pop(name, None)
    torch.save(contents, tmp_path / "weights.ckpt")
    assert "holds weights only (no loops, optimizer_states, lr_schedulers)" in refusal(
        capsys, "fit", "--ckpt_path", tmp_path / "weights.ckpt"
    )
    check_checkpoint(tmp_path / "weights.ckpt")  # enough to certify


def test_a_folder_is_no_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """Before: "does not exist". Now: it is a folder, and these are the checkpoints in it."""
    folder = trained().parent
    for stage in ("certify", "fit"):
        line = refusal(capsys, stage, "--ckpt_path", folder)
        assert f"got '{folder}', which is a folder; in it lie {trained()}" in line


class Unsafe:
    """Something that a checkpoint should not hold."""


def test_advice_to_load_unsafely_is_not_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: torch's "Re-running torch.load with weights_only set to False will likely succeed"."""
    torch.save({"state_dict": {}, "spy": Unsafe()}, tmp_path / "x.ckpt")
    line = refusal(capsys, "certify", "--ckpt_path", tmp_path / "x.ckpt")
    assert "Unsafe, which would run code" in line
    assert "weights_only" not in line
    assert "Re-running" not in line
    assert without_unsafe_advice("n must be >= 1") == "n must be >= 1"
    said = without_unsafe_advice(
        "a.ckpt: Weights only load failed. In PyTorch 2.6, we changed ... Re-running `torch.load`"
    )
    assert said.startswith("a.ckpt: it is cut short, or holds more")


def test_weights_and_biases_without_an_account(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: wandb's UsageError with a traceback. Now: its line, and what needs no account."""
    from wandb.errors import UsageError

    def login(words: list[str]) -> int:
        raise UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr("lightning_rs.cli.program._run", login)
    assert main(["fit"]) == 2
    line = capsys.readouterr().err
    assert "No API key configured" in line
    assert "without an account: --trainer.logger.init_args.offline true" in line


def test_devices_are_no_record_files(capsys: pytest.CaptureFixture[str]) -> None:
    """Before: ``--records /dev/full`` was read until the memory was full, 86 s."""
    line = refusal(capsys, "certify", "--ckpt_path", trained(), "--records", "/dev/full", "--data.max=1")
    assert "records must be a file, got /dev/full, which is a device" in line
    os.mkfifo("pipe")
    for path, kind in (("pipe", "a pipe"), (".", "a folder"), ("/dev/zero", "a device")):
        with pytest.raises(ValueError, match=f"which is {kind}"):
            RecordFile(path, header())


def test_a_full_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: "[Errno 28] No space left on device". Now: with the file."""
    write = os.write

    def full(fd: int, data: Any) -> int:
        if bytes(data[:9]) == b'{"index":':
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    capsys.readouterr()
    assert certify(tmp_path / "r.jsonl", max=2) == 2
    assert f"No space left on device: '{tmp_path / 'r.jsonl'}'" in capsys.readouterr().err
    monkeypatch.undo()
    # What Python buffers meets the full disk when the file is closed.
    with pytest.raises(OSError, match=r"'table\.csv'"), naming("table.csv"), open("/dev/full", "w") as file:
        file.write("x")
    with pytest.raises(FileNotFoundError, match="'elsewhere'"), naming("table.csv"):
        Path("elsewhere").read_text()  # an error that names its file keeps it


def test_a_full_disk_under_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = classifier(), trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    made.fit(model, datamodule=Digits())

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(made.strategy, "save_checkpoint", full)
    with pytest.raises(OSError, match=r"No space left on device: 'x\.ckpt'"):
        made.save_checkpoint("x.ckpt")


def records_in(folder: Path) -> Path:
    with RecordFile(folder / "certify" / "r.jsonl", header()) as file:
        file.append([certification(index) for index in header().expected or range(5)])
    (folder / "other.jsonl").write_text('{"not": "records"}\n')
    return folder


def test_folders_of_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: "Is a directory". Now: report and merge take all record files in it."""
    folder = records_in(tmp_path / "runs")
    assert main(["report", str(folder)]) == 0
    assert "GaussianL2" in capsys.readouterr().out
    assert main(["merge", str(folder), "--out", str(tmp_path / "merged.jsonl")]) == 0
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "no record file in the folder" in capsys.readouterr().err


MISTAKES = {
    "report RECORDS --alhpa 0.1": "did you mean --alpha",
    "report RECORDS --xyzzy": "--xyzzy is no option",
    "report": "the following arguments are required: RECORDS",
    "report RECORDS --alpha 0,001": "argument --alpha: must be a number (0.001, 1e-3), got '0,001'",
    "report RECORDS --method exat": "argument --method: invalid choice: 'exat'",
    "report RECORDS --out RECORDS": "out must be a folder, got RECORDS, which is a file",
    "report RECORDS --sigma 0.25": "RECORDS are no tables: leave them out",
    "import t.tsv --ot x": "did you mean --out",
    "import t.tsv --out x --sigma 1 --alpha 0.1 --n 1e-3": "must be a whole number (100000, 1e5, 100_000), got '1e-3'",
    "import t.tsv --out x --sigma 1 --alpha 0.1 --n 0x10": "must be a whole number (100000, 1e5, 100_000), got '0x10'",
    "merge RECORDS --out /dev/null": "out must be the name of a new file, got /dev/null, which is a device",
    "merge RECORDS --out .": "out must be the name of a new file, got ., which is a folder",
    "merge RECORDS --out other.txt": "other.txt exists and is no record file; it is never overwritten",
    "export RECORDS --out other.txt": "other.txt exists; it is never overwritten: choose another name",
    "combine RECORDS --out x --selctor y": "did you mean --selector",
    "configs --too x": "did you mean --to",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_commands_on_records_say_one_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: seven lines of usage, without what was probably meant; "File exists" of the system."""
    path = str(records_in(tmp_path / "runs") / "certify" / "r.jsonl")
    Path("other.txt").write_text("mine")
    capsys.readouterr()
    assert main([path if word == "RECORDS" else word for word in line.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert MISTAKES[line].replace("got RECORDS", f"got {path}") in said
    assert Path("other.txt").read_text() == "mine"


@pytest.mark.parametrize("n", ["100000", "1e5", "100_000", "100,000", "100000.0", "1E5"])
def test_whole_numbers_of_commands_on_records(n: str) -> None:
    """Before: ``import --n 1e5`` was refused."""
    Path("log.tsv").write_text("idx\tlabel\tpredict\tradius\n0\t1\t1\t0.5\n")
    assert main(["import", "log.tsv", "--out", "x.jsonl", "--sigma", ".25", "--n", n, "--alpha", "1e-3"]) == 0
    assert read_records(Path("x.jsonl"))[0].binding["n"] == 100_000


def started(words: list[str], output: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lightning_rs", *words]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)


READ = [["report", "RECORDS"], ["--help"], ["report", "--help"], ["export", "RECORDS", "--out", "t"]]


@pytest.mark.parametrize("words", READ)
def test_readers_may_leave(words: list[str], tmp_path: Path) -> None:
    """Before: ``report | head`` ended with "error: [Errno 32] Broken pipe". Now: quiet, status 0."""
    path = records_in(tmp_path / "runs") / "certify" / "r.jsonl"
    reading, writing = os.pipe()
    os.close(reading)  # the reader has left before the first line
    done = started([str(path) if word == "RECORDS" else word for word in words], writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    path = records_in(tmp_path / "runs") / "certify" / "r.jsonl"
    with open("/dev/full", "w") as full:
        done = started(["report", str(path)], full)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device: 'standard output'" in done.stderr


def test_the_smallest_useful_number_of_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: everything abstained without a word. Now: the least n that can certify, or predict, is said."""
    noise = GaussianNoise(0.25)
    for alpha in (0.05, 0.001, 1e-6):
        least = smallest_n_to_certify(Certifier(alpha=alpha), noise, (1, 8, 8), 10)
        # All of n agree: p_lower = alpha^(1/n) must exceed 1/2.
        assert alpha ** (1 / least) > 0.5 >= alpha ** (1 / (least - 1))
        predicting = smallest_n_to_predict(alpha)
        assert 2 * 0.5**predicting <= alpha < 2 * 0.5 ** (predicting - 1)
    assert smallest_n_to_certify(Certifier(alpha=0.001), noise, (1, 8, 8), 10) == 10
    assert certify(tmp_path / "r.jsonl", n=9, max=1) == 0
    assert "the smallest useful n is 10" in capsys.readouterr().err
    assert certify(tmp_path / "s.jsonl", n=10, max=1) == 0
    assert "smallest useful" not in capsys.readouterr().err
    assert run("predict", "--ckpt_path", trained(), "--certifier.n=10", "--data.max=1") == 0
    assert "the smallest useful n is 11" in capsys.readouterr().err


INTERRUPTING = """
import pytorch_lightning as pl

class Interrupting(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt
"""


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:.*You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("logger", ["none", "wandb"])
def test_an_interrupted_training_says_how_it_goes_on(
    logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: "interrupted", and going on made another folder and another W&B run."""
    import signal

    Path("interrupting.py").write_text(INTERRUPTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    plain = [word for word in PLAIN if "logger" not in word]
    chosen = ["--trainer.logger=false"] if logger == "none" else []
    words = ["fit", "--trainer.max_epochs=4", "--certifier=null", *plain, *chosen]
    saving = "{class_path: ModelCheckpoint, init_args: {save_last: true}}"
    stopping = f"--trainer.callbacks=[{saving}, interrupting.Interrupting]"
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main([*words, stopping]) == 1
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    said = capsys.readouterr().err
    assert "interrupted in epoch 2; the training goes on, in the same folder, with" in said
    (command,) = [line.split() for line in said.splitlines() if "python -m lightning_rs fit -c" in line]
    folders = sorted(str(path) for path in Path().rglob("checkpoints"))
    assert len(folders) == 1
    assert main([*command[3:], *plain, f"--trainer.callbacks=[{saving}]"]) == 0
    assert sorted(str(path) for path in Path().rglob("checkpoints")) == folders
    assert len(list(Path().rglob("fit.yaml"))) == 1
    last = torch.load(Path(folders[0]) / "last.ckpt", weights_only=True)
    assert last["epoch"] == 3
    if logger == "wandb":
        ids = {path.name.rpartition("-")[2] for path in Path("runs/wandb").glob("offline-run-*")}
        assert ids == {run_of(Path(folders[0]) / "last.ckpt").name}  # type: ignore[union-attr]


def test_runs_without_a_logger_have_a_folder_each(tmp_path: Path) -> None:
    """Before: a second run wrote over the first one's configuration, figures and predictions."""
    words = ("--ckpt_path", trained(), "--certifier.n=20", "--data.max=1", "--trainer.default_root_dir=r", *ONE_THREAD)
    for _ in range(3):
        assert run("predict", *words) == 0
    assert sorted(str(path) for path in Path("r").rglob("predictions.csv")) == [
        "r/predict_1/predictions.csv", "r/predict_2/predictions.csv", "r/predictions.csv",
    ]  # fmt: skip
    assert len(list(Path("r").rglob("predict.yaml"))) == 3
    assert run("predict", *words, "--data.indices=[9999]") == 2
    assert not Path("r/predict_3").exists()  # what failed leaves no folder
    assert own_folder("r", "fit") == Path("r/fit_1")
    assert own_folder("new", "fit") == Path("new")
    assert own_folder("new", "fit") == Path("new/fit_1")


class Timer:
    """A timer that tests set off."""

    def __init__(self, seconds: float, action: Any) -> None:
        assert seconds == lightning_rs.announce.PATIENCE
        self.action, self.state = action, "new"
        Timer.last = self

    last: Timer

    def start(self) -> None:
        self.state = "started"

    def cancel(self) -> None:
        self.state = "cancelled"


def test_long_work_announces_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Before: 178 s without a line."""
    kind: Any = Timer
    with announced("loading", timer=kind):
        assert Timer.last.state == "started"
        Timer.last.action()
    assert capsys.readouterr().err == "loading ...\n"
    assert Timer.last.state == "cancelled"
    with announced("loading", quiet=True, timer=kind):
        assert Timer.last.state == "new"
    assert isinstance(threading.Timer(1, print), threading.Thread)


def test_what_a_share_of_an_epoch_pays_for() -> None:
    """Images are given up first, down to eight, then samples, down to a hundred."""
    certifier = Certifier(n0=64, n=1000)
    assert affordable(1e6, 64, 1064, certifier) == (64, 1000)
    assert affordable(20 * 1064, 64, 1064, certifier) == (20, 1000)
    assert affordable(8 * 564, 64, 1064, certifier) == (8, 500)
    assert affordable(10, 64, 1064, certifier) == (8, 100)
    assert affordable(10, 5, 1064, certifier) == (5, 100)


@pytest.mark.parametrize(("share", "images", "n"), [(0.1, 8, 100), (0.9, 8, 302), (None, 16, 1000)])
def test_the_preview_keeps_to_its_share(
    share: float | None, images: int, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Before: a preview took as long as it took. Now: at most a share, with validation."""
    seen: list[tuple[int, int]] = []
    certify_images = EpochEndCertification._certify

    def counted(self: EpochEndCertification, *args: Any) -> Any:
        records = certify_images(self, *args)
        seen.append((len(records), records[0].n))
        return records

    monkeypatch.setattr(EpochEndCertification, "_certify", counted)
    now = iter(range(0, 1000, 100))  # an epoch of 200 s, the last 100 of which are validation
    monkeypatch.setattr(EpochEndCertification, "_clock", staticmethod(lambda: float(next(now))))
    monkeypatch.setattr("lightning_rs.session.Session.measure", lambda *_: 36.64)  # 80 s are 2931 samples
    callback = EpochEndCertification(images=16, certifier=Certifier(GaussianL2(), n0=64, n=1000), share=share)
    made = trainer(tmp_path, callbacks=[callback], max_epochs=2)
    made.fit(classifier(), datamodule=Digits())
    assert seen == [(images, n)] * 2  # settled once
    said = capsys.readouterr().err
    assert (f"certification at epoch ends: {images} of 16 images, n = {n}" in said) == (share is not None)
    again = EpochEndCertification(images=16)
    again.load_state_dict(callback.state_dict())
    assert again._size == callback._size


def test_completion_is_a_script_that_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion"]) == 0
    script = capsys.readouterr().out
    ask = "COMP_WORDS=(lightning_rs {}); COMP_CWORD={}; _lightning_rs; echo ${{COMPREPLY[@]}}"
    for words, position, expected in (
        ("cer", 1, "certify"),
        ("certify --rec", 2, "--records"),
        ("--ver", 1, "--version"),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{ask.format(words, position)}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [expected], done


def test_options_of_the_short_help_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_rs.cli.help import _OPTIONS, _RUN

    for command, text in _OPTIONS.items():
        main([command, "--help", "all"])
        known = capsys.readouterr().out
        for line in (text + _RUN).splitlines():
            option = line.strip().split()[0] if line.startswith("  -") else ""
            if option.count(".") == 0 and option.startswith("--"):
                assert option in known, option
