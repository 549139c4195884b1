"""Constructors as people write them: what a checkpoint or a record file gives back is equal, or refused in one line."""

from __future__ import annotations

import dataclasses
import enum
import json
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from scipy.special import ndtri

from lightning_rs import Certifier, GaussianNoise
from lightning_rs.budgets import FixedSamples
from lightning_rs.budgets.base import describe_budget
from lightning_rs.certificates import TopVoteCertificate
from lightning_rs.certificates.base import certificate_from_dict, certificate_to_dict, describe_certificate
from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.noise import AdditiveNoise, Noise, noise_from_dict, noise_to_dict
from tests.helpers import HalfSpace


class Mode(enum.Enum):
    SOFT = 1
    HARD = 2


class Name(enum.StrEnum):
    MLP = "mlp"


@dataclasses.dataclass
class Inner:
    width: int = 3
    mode: Mode = Mode.SOFT


class Mixer:
    pass


TENSOR = torch.tensor([1.0, 2.0])


class KeywordOnly(NoiseAugmentation):
    def __init__(self, *, own: Any = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.own = own


class Child(KeywordOnly):
    def __init__(self, *args: Any, second: int = 2, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.second = second


class Positional(NoiseAugmentation):
    def __init__(self, own: float, network: str = "mlp", noise: Noise | None = None, **rest: Any) -> None:
        super().__init__(network, noise=noise, **rest)
        self.own = own


class Passing(Positional):
    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)


class ByPlace(NoiseAugmentation):
    def __init__(self, own: float, /, **rest: Any) -> None:
        super().__init__(**rest)


class Nameless(NoiseAugmentation):
    def __init__(self, *own: float, **rest: Any) -> None:
        super().__init__(**rest)


class Enumerated(NoiseAugmentation):
    def __init__(self, own: Mode | None = Mode.SOFT, inner: Inner | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self.own, self.inner = own, inner


class Typed(NoiseAugmentation):
    def __init__(self, own: tuple[int, int] = (1, 2), where: Path = Path("x"), **rest: Any) -> None:
        super().__init__(**rest)
        self.own, self.where = own, where


class Tensors(NoiseAugmentation):
    def __init__(self, own: Any = TENSOR, mixer: Mixer | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self.own, self.mixer = own, mixer


BASE: dict[str, Any] = {"network": "mlp", "noise": GaussianNoise(0.3)}


def saved(model: NoiseAugmentation, folder: Path) -> Path:
    """Save a checkpoint without training."""
    made = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    made.strategy.connect(model)
    made.save_checkpoint(folder / "x.ckpt")
    return folder / "x.ckpt"


@pytest.mark.parametrize(
    "made",
    [
        lambda: KeywordOnly(own=2.5, **BASE),
        lambda: KeywordOnly(own={1: "a", "b": [None, True]}, **BASE),
        lambda: KeywordOnly(own=np.float64(0.5), **BASE),
        lambda: Child(own=0.5, second=3, **BASE),
        lambda: Positional(0.25),
        lambda: Passing(0.25, "mlp", noise=GaussianNoise(0.4)),
        lambda: Enumerated(Mode.HARD, **BASE),
        lambda: Enumerated(None, Inner(5, Mode.HARD), **BASE),
        lambda: Enumerated(**BASE),
        lambda: Typed((3, 4), Path("elsewhere"), **BASE),
        lambda: Tensors(**BASE),
        lambda: KeywordOnly(num_classes=np.int64(10), grid=np.int64(16), **BASE),
        lambda: KeywordOnly(network=Name.MLP, network_args={"hidden_sizes": [np.int64(8)]}),
    ],
)
def test_a_checkpoint_gives_the_arguments_back(made: Any, tmp_path: Path) -> None:
    """Before: mappings with numbers came back with texts, enums and dataclasses as the class's defaults."""
    model = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = made()
    again = type(model).load_from_checkpoint(saved(model, tmp_path))
    for name in ("own", "second", "inner", "where", "noise", "num_classes", "grid"):
        there, here = getattr(again, name, None), getattr(model, name, None)
        assert there is here or there == here
    assert json.loads(json.dumps(model.objective)).keys() == model.objective.keys()


@pytest.mark.parametrize("make", [lambda: ByPlace(2.0, **BASE), lambda: Nameless(1.0, 2.0, **BASE)])
def test_arguments_without_a_name_are_refused(make: Any) -> None:
    """Before: those behind ``*own`` were lost without a word, and those before ``/`` when the checkpoint was read."""
    with pytest.raises(ValueError, match="must take its arguments by name, as a checkpoint gives them back") as caught:
        make()
    assert "\n" not in str(caught.value)
    assert isinstance(Nameless(**BASE), Nameless)


@pytest.mark.parametrize(
    "own", [TENSOR.clone(), {1, 2}, np.datetime64("2026-01-01"), torch.tensor(1j), Mixer(), [Mode.HARD], {(1, 2): 3}]
)
def test_what_a_checkpoint_cannot_hold_must_be_given_again(own: Any, tmp_path: Path) -> None:
    """Before: the class's default, without a word."""
    with pytest.warns(UserWarning, match="a checkpoint holds plain values only, so not own"):
        path = saved(Tensors(own, **BASE), tmp_path)
    with pytest.raises(ValueError, match=r"own must be given, load_from_checkpoint\(\.\.\., own=\.\.\.\)") as caught:
        Tensors.load_from_checkpoint(path)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="a checkpoint holds plain values only"):
        assert Tensors.load_from_checkpoint(path, own=own).own is own


# --- laws ---


class Law(AdditiveNoise):
    def __init__(self, width: float = 0.3) -> None:
        self.width = width

    def spec(self) -> dict[str, Any]:
        return {"width": self.width}

    @property
    def sigma(self) -> float:
        return self.width

    def draw_(self, out: torch.Tensor, generator: torch.Generator | None = None) -> None:
        out.normal_(0.0, self.width * getattr(self, "boost", 1.0), generator=generator)


class Forgetful(Law):
    def __init__(self, *, width: float = 0.3, boost: float = 1.0) -> None:
        self.width, self.boost = width, boost


class InOtherUnits(Law):
    def __init__(self, variance: float = 0.09) -> None:
        self.width = variance**0.5

    def spec(self) -> dict[str, Any]:
        return {"variance": self.width}


class LawByPlace(Law):
    def __init__(self, width: float, /) -> None:
        self.width = width


class Global(Law):
    def draw_(self, out: torch.Tensor, generator: torch.Generator | None = None) -> None:
        out.normal_(0.0, self.width)


LAWS: dict[str, tuple[Any, str]] = {
    "lost argument": (
        lambda: Forgetful(boost=2.0),
        r"must give the law back, but the one that it gives draws otherwise",
    ),
    "other units": (lambda: InOtherUnits(0.04), r"spec\(\) of .* must give the law back, got "),
    "by place": (lambda: LawByPlace(0.3), "does not take the parameters"),
    "no generator": (Global, "must draw from the generator that it is given"),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_that_its_description_does_not_give_back_is_refused(name: str) -> None:
    """Before: a checkpoint or a record file of the first two named another law than the one that was sampled."""
    make, message = LAWS[name]
    with pytest.raises(ValueError, match=message):
        NoiseAugmentation("mlp", noise=make())
    session = Certifier([Plain()], n=100, n0=10).session(HalfSpace(torch.ones(4), 2.0), make(), (4,))
    with pytest.raises(ValueError, match=message):
        session.describe()
    assert NoiseAugmentation("mlp", noise=Forgetful(width=0.4)).noise == Forgetful(width=0.4)


# --- theorems and budgets ---


class Plain(TopVoteCertificate):
    norm = "l2"
    noises = (Noise,)

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def radius_of_tail(self, q_upper: Any, setting: Any) -> Any:
        return self.share * setting.noise.sigma * np.maximum(-ndtri(q_upper), 0.0)


class PassingOn(Plain):
    def __init__(self, extra: int = 1, **rest: Any) -> None:
        super().__init__(**rest)
        self.extra = extra


class Fixed(Plain):
    def __init__(self, extra: int = 1, **rest: Any) -> None:
        super().__init__(share=0.5, **rest)
        self.extra = extra


class Shares(Plain):
    def __init__(self, *shares: float) -> None:
        super().__init__(min(shares, default=1.0))


class PlainByPlace(Plain):
    def __init__(self, share: float, /) -> None:
        super().__init__(share)


class Any_(Plain):
    def __init__(self, share: Any) -> None:
        self.share = share


class Outer:
    class Nested(Plain):
        pass


class Ledger(FixedSamples):
    def __init__(self, ledger: Any = "x", **kept: Any) -> None:
        self.ledger, self.kept = ledger, kept


class Plan(FixedSamples):
    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, ledger: Any = "x") -> None:
        self.ledger = ledger


@pytest.mark.parametrize("made", [PassingOn(2, share=0.5), Outer.Nested(0.5), Plain(0.5)])
def test_certificates_come_back_equal(made: Plain) -> None:
    """Before: what was passed on to a base class was lost, so that ``report --alpha`` had the default's radii."""
    for described in (certificate_to_dict(made), json.loads(json.dumps(describe_certificate(made)))):
        again = certificate_from_dict(described)
        assert type(again) is type(made)
        assert vars(again) == vars(made)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Fixed(), "does not take the parameters"),
        (Shares(0.5, 0.6), "does not take the parameters"),
        (PlainByPlace(0.5), "must take its argument 'share' by name, as files give it: leave out the '/'"),
        *((Any_(value), "must describe itself by plain values .* for 'share'") for value in (
            Mode.HARD, TENSOR, Path("x"), Inner(), np.float64(0.5), Name.MLP, {1: 2}, {1, 2}
        )),
    ],
)  # fmt: skip
def test_certificates_that_do_not_come_back_are_refused(made: Plain, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        describe_certificate(made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Ledger("x", n=3), r"Ledger must name each of its arguments, got \*kept: files give them back by name"),
        *((Plan(value), "must describe itself by plain values") for value in (Mode.HARD, Path("x"), TENSOR, Inner())),
    ],
)
def test_budgets_that_files_cannot_hold_are_refused(made: FixedSamples, message: str) -> None:
    """Before: lost without a word, or a TypeError when the header was written."""
    with pytest.raises(ValueError, match=message):
        describe_budget(made)
    assert describe_budget(Plan("y"))["ledger"] == "y"


def test_laws_of_ours_are_described_as_before() -> None:
    assert noise_from_dict(noise_to_dict(Law(0.5))) == Law(0.5)
    assert noise_to_dict(GaussianNoise(0.25)) == {"class": "GaussianNoise", "sigma": 0.25}
