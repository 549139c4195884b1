"""The package as people install it: built from the source distribution, run in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lightning_rs import shipped
from lightning_rs.cli.configs import with_shipped
from tests.driving import ONE_THREAD, PLAIN, ROOT

_FOLDERS = ("lightning_rs", "configs", "checkpoints", "tests", "benchmarks", "docs")
_BUILD = "import sys, setuptools.build_meta as build; print(build.build_sdist(sys.argv[1]))"


def python(*words: str, cwd: Path, path: Path | None = None) -> str:
    """Run Python in a folder, with nothing of this checkout on its path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def readme_commands() -> list[list[str]]:
    """Return every command line of the README that starts the program."""
    lines = [line.partition("#")[0].split() for line in (ROOT / "README.md").read_text().splitlines()]
    return [line[3:] for line in lines if line[:3] == ["python", "-m", "lightning_rs"]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package: sdist of a copy of the checkout, unpacked, then a wheel of that."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*(n for n in _FOLDERS if (ROOT / n).exists()), *(p.name for p in ROOT.iterdir() if p.is_file())):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    sdist = python("-c", _BUILD, str(folder), cwd=folder / "source").splitlines()[-1]
    with tarfile.open(folder / sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    tests = {path.name for path in (unpacked / "tests").iterdir()}
    assert {"test_wheel.py", "oracles.json"} <= tests  # a source distribution tests itself
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target")
    python(*install, str(folder / "site"), str(unpacked), cwd=folder)
    return folder / "site"


def test_the_wheel_holds_what_the_checkout_holds(site: Path) -> None:
    def files(root: Path) -> dict[str, bytes]:
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    for kind in ("configs", "checkpoints"):
        assert files(site / "lightning_rs" / kind) == files(ROOT / kind)
    sources = {path.relative_to(ROOT) for path in (ROOT / "lightning_rs").rglob("*.py")}
    assert all((site / source).is_file() for source in sources)
    assert (site / "lightning_rs/py.typed").is_file()
    assert not (site / "tests").exists()


def test_the_installed_package_certifies_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    """One process for all, because importing torch takes its time: names of configurations and of checkpoints."""
    few = ["--certifier.init_args.n=50", "--data.init_args.max=2", *PLAIN, *ONE_THREAD]
    commands = [
        ["configs"],
        ["configs", "certify/cohen", "--to", "mine"],
        ["certify", "-c", "certify/cohen", "--ckpt_path", "digits_gaussian_0.25", "--records=a.jsonl", *few],
        ["certify", "-c", "mine/certify/cohen.yaml", "--ckpt_path", "checkpoints/digits_gaussian_0.25.ckpt",
         "--records=b.jsonl", *few],
        ["report", "a.jsonl", "b.jsonl"],
    ]  # fmt: skip
    script = (
        "import json, sys, lightning_rs\n"
        "from lightning_rs.cli import main\n"
        f"print(json.dumps([lightning_rs.__file__, *(main(words) for words in {commands!r})]))\n"
    )
    said = python("-c", script, cwd=tmp_path, path=site).splitlines()[-1]
    where, *statuses = json.loads(said)
    assert Path(where).is_relative_to(site)
    assert statuses == [0] * len(commands)
    assert (tmp_path / "a.jsonl").read_text().splitlines()[1:] == (tmp_path / "b.jsonl").read_text().splitlines()[1:]


@pytest.mark.slow
def test_every_line_of_the_readme_is_understood_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    parsed = [words for words in readme_commands() if words[0] in ("fit", "certify") and "X.ckpt" not in words]
    assert len(parsed) >= 5
    script = (
        "from lightning_rs.cli import main\n"
        f"for words in {parsed!r}: assert main([*words, '--print_config']) == 0, words\n"
    )
    assert python("-c", script, cwd=tmp_path, path=site).count("class_path: ") > len(parsed)


def test_files_that_the_readme_names_are_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in readme_commands():
        for word in with_shipped([word for word in words if "NAME" not in word]):
            assert not word.startswith(("configs/", "checkpoints/")), word


def test_names_mean_the_users_file_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fast = str(ROOT / "configs/certify/fast.yaml")
    assert [shipped.config_path(name) for name in ("certify/fast", "configs/certify/fast.yaml")] == [fast, fast]
    mine = tmp_path / "configs/certify/fast.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    assert shipped.config_path("configs/certify/fast.yaml") == "configs/certify/fast.yaml"
    assert shipped.config_path("certify/fast") == fast
    assert with_shipped(["--config=certify/fast", "-c", "{trainer: null}"]) == [
        f"--config={fast}",
        "-c",
        "{trainer: null}",
    ]
    assert shipped.checkpoint_path("last") == "last"
    with pytest.raises(FileNotFoundError, match=r"got 'certify/fats'; did you mean certify/fast"):
        shipped.config_path("certify/fats")


def test_configs_are_copied_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_rs.cli.configs import configs_main

    assert configs_main(["noise/gaussian", "trainer", "--to", str(tmp_path)]) == 0
    copied = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.yaml")}
    assert copied == {"noise/gaussian.yaml", *(f"trainer/{name}.yaml" for name in ("cpu", "ddp", "gpu"))}
    assert configs_main(["noise/gaussian", "--to", str(tmp_path)]) == 1
    assert "must not overwrite" in capsys.readouterr().err
    assert configs_main(["noise/gausian"]) == 1
    assert "did you mean noise/gaussian" in capsys.readouterr().err
