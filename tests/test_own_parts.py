"""Parts of somebody else's, by class path: laws, theorems, objectives and budgets, from training to the report."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_rs import Certifier, GaussianNoise, LaplaceNoise, UniformNoise
from lightning_rs.budgets.base import describe_budget
from lightning_rs.certificates import GaussianL2, LaplaceL1, LecuyerL2
from lightning_rs.certificates.base import certificate_from_dict, certificate_to_dict, describe_certificate
from lightning_rs.certificates.natural import natural_certificate, usual_for
from lightning_rs.class_paths import class_named, to_dict
from lightning_rs.noise import Noise, noise_from_dict, noise_to_dict
from lightning_rs.records import read_records
from tests.driving import ONE_THREAD, Forks, run, said
from tests.helpers import HalfSpace
from tests.own_parts import MODULE, write


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, imported from a folder that is also the working directory."""
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop(MODULE, None)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


# --- the pair of noise and certificate ---


def test_a_certifier_without_certificates_takes_the_usual_one_of_each_noise() -> None:
    images = torch.full((1, 4), 0.6)
    network = HalfSpace(torch.ones(4), 2.0)
    for noise, wanted in ((LaplaceNoise(0.2), "LaplaceL1"), (UniformNoise(0.5), "UniformL1")):
        (record,) = Certifier(n=200, n0=20).certify(network, noise, images, [1])
        assert (record.certificate, record.norm) == (wanted, "l1")
    certifier = Certifier(n=200, n0=20)
    (record,) = certifier.certify(network, GaussianNoise(0.25), images, [1])
    assert record.certificate == "GaussianL2"
    assert certifier.certificates == ()  # the same certifier serves the next noise


def test_a_subclass_inherits_and_the_most_specific_law_decides() -> None:
    class Narrow(GaussianNoise):
        pass

    class Narrower(Narrow):
        pass

    assert natural_certificate(Narrower) is GaussianL2
    usual_for(Narrow)(LecuyerL2)
    assert natural_certificate(Narrower) is natural_certificate(Narrow) is LecuyerL2
    assert natural_certificate(GaussianNoise) is GaussianL2


def test_registering_twice_or_what_is_not_proved_is_an_error() -> None:
    with pytest.raises(ValueError, match="the usual certificate of GaussianNoise is GaussianL2 already, got LecuyerL2"):
        usual_for(GaussianNoise)(LecuyerL2)
    with pytest.raises(ValueError, match="certificate LaplaceL1 is not proved for GaussianNoise"):
        usual_for(GaussianNoise)(LaplaceL1)


def test_a_law_without_a_theorem_predicts_but_does_not_certify(own: Any) -> None:
    network, images = HalfSpace(torch.ones(4), 2.0), torch.full((1, 4), 0.9)
    session = Certifier(n=200).session(network, own.Bare(0.1), (4,))
    assert session.predict(images, n=200).prediction.tolist() == [1]
    for call in (lambda: list(session.certify(images)), session.describe):
        with pytest.raises(ValueError, match=r"certificates must be named for Bare, .*@usual_for\(Bare\)"):
            call()


# --- dictionaries ---


def test_foreign_classes_are_named_by_their_path_and_rebuilt(own: Any) -> None:
    noise, certificate = own.Softer(0.5), own.MyCertificate(0.75)
    assert noise_to_dict(noise) == {"class": "ownparts.Softer", "width": 0.5}
    assert noise_from_dict(json.loads(json.dumps(noise_to_dict(noise)))) == noise
    assert certificate_to_dict(certificate) == {"class": "ownparts.MyCertificate", "share": 0.75}
    assert certificate_from_dict(certificate_to_dict(certificate)) == certificate
    assert certificate_from_dict(describe_certificate(certificate)) == certificate
    assert natural_certificate(own.Softer) is own.MyCertificate
    assert noise_to_dict(GaussianNoise(0.25)) == {"class": "GaussianNoise", "sigma": 0.25}


def test_budgets_are_bound_with_their_class_and_arguments(own: Any) -> None:
    assert describe_budget(own.MyBudget("autumn")) == {
        "mode": "fixed",
        "ledger": "autumn",
        "class": "ownparts.MyBudget",
    }
    assert describe_budget(Certifier().budget) == {"mode": "fixed"}
    with pytest.raises(ValueError, match=r"ownparts.Forgetful must keep its argument 'ledger' as self.ledger"):
        describe_budget(own.Forgetful())


def test_values_that_files_cannot_hold_are_refused(own: Any) -> None:
    with pytest.raises(
        ValueError, match=r"ownparts.MyNoise must describe itself by plain values .* got float64 for 'width'"
    ):
        noise_to_dict(own.MyNoise(np.float64(0.5)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.MyNoise", r"noise 'nowhere.MyNoise': there is no module 'nowhere'; install it, or run where it lies"),
        ("nowhere.deep.MyNoise", "there is no module 'nowhere.deep'"),
        ("json.MyNoise", "module 'json' has no 'MyNoise'"),
        ("json.JSONDecoder", "noise must be a concrete subclass of Noise, got 'json.JSONDecoder'"),
        ("lightning_rs.noise.Noise", "noise must be a concrete subclass of Noise"),
        ("broken.MyNoise", "importing 'broken' failed: ZeroDivisionError: division by zero"),
        ("needy.MyNoise", "module 'needy' needs 'not_installed_here', which is missing"),
        ("Gausian", r"noise must be one of .*GaussianNoise.*, or a class path \(mymodule.MyClass\), got 'Gausian'"),
        (None, "got None"),
    ],
)
def test_what_is_missing_is_named(path: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import not_installed_here")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        noise_from_dict({"class": path})
    assert "\n" not in str(caught.value)


def test_nested_classes_and_full_paths_of_ours_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from lightning_rs.noise import GaussianNoise\nclass Outer:\n    class Inner(GaussianNoise): pass\n"
    (tmp_path / "nesting.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert class_named("nesting.Outer.Inner", Noise, "noise").__qualname__ == "Outer.Inner"  # type: ignore[type-abstract]
    assert class_named("lightning_rs.noise.GaussianNoise", Noise, "noise") is GaussianNoise  # type: ignore[type-abstract]
    assert to_dict(GaussianNoise(1.0), {}) == {"class": "GaussianNoise"}


# --- the command line ---

FIT = (
    "fit", "--model=ownparts.MyObjective", "--model.init_args.network=mlp", "--trainer.max_epochs=1",
    "--data.init_args.max=3", "--trainer.default_root_dir=runs",
)  # fmt: skip
CERTIFY = (
    "--certifier.init_args.n=100", "--certifier.init_args.n0=10", "--certifier.init_args.budget=ownparts.MyBudget",
    "--certifier.init_args.budget.init_args.ledger=autumn",
)  # fmt: skip


def test_own_parts_from_training_to_the_report(own: Any, tmp_path: Path, forks: Forks) -> None:
    """Training in this process; certifying and reporting in another one, which has not seen the module yet."""
    noise = ("--model.init_args.noise=ownparts.MyNoise", "--model.init_args.noise.init_args.width=0.4")
    assert run(*FIT, *noise, "--certifier=null") == 0
    path = str(next(Path("runs").rglob("*.ckpt")))
    folder = tmp_path / "processes"
    words = ["certify", f"--ckpt_path={path}", *CERTIFY, "--records=x.jsonl", "--data.init_args.max=3", *ONE_THREAD]
    assert forks.run(folder, words, ["report", "x.jsonl", "--alpha", "0.01"], cwd=tmp_path) == [0], said(folder)
    assert "MyCertificate, alpha = 0.01, n = 100" in said(folder)
    header, records = read_records(Path("x.jsonl"))
    assert header.binding["noise"] == {"class": "ownparts.MyNoise", "width": 0.4}
    assert header.informative["objective"] == {"class": "ownparts.MyObjective"}
    assert header.binding["budget"] == {"mode": "fixed", "ledger": "autumn", "class": "ownparts.MyBudget"}
    assert header.binding["certificates"][0]["class"] == "ownparts.MyCertificate"
    assert {record.certificate for record in records} == {"MyCertificate"}


def test_a_law_without_a_theorem_trains(own: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.warns(UserWarning, match="no certification at epoch ends: none is registered for Bare"),
        pytest.warns(UserWarning, match="not certified: no certificate is registered for Bare"),
    ):
        assert run(*FIT, "--model.init_args.noise=ownparts.Bare", "--trainer.max_epochs=1") == 0
    assert next(Path("runs").rglob("*.ckpt"))


def test_a_checkpoint_whose_module_is_gone_says_so(own: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            *FIT,
            "--model.init_args.noise=ownparts.Softer",
            "--model.init_args.noise.init_args.width=0.3",
            "--certifier=null",
        )
        == 0
    )
    path = next(Path("runs").rglob("*.ckpt"))
    contents = torch.load(path, weights_only=True)
    text = json.dumps(contents["lightning_rs"]).replace("ownparts", "goneparts")
    contents["lightning_rs"] = json.loads(text)
    torch.save(contents, path)
    capfd.readouterr()
    assert run("certify", "--ckpt_path", path) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "'goneparts'" in line
