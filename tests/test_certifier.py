"""The certifier: three lines, one answer for one seed, whatever the batch; every bad input one clear error."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

import lightning_rs
from lightning_rs.budgets import FixedSamples, RandomizedBound, StagedSamples
from lightning_rs.certificates.base import Certificate
from lightning_rs.certificates.dipole import DipoleGradientL2, DipoleL2
from lightning_rs.certificates.gaussian_l2 import GaussianL1, GaussianL2, GaussianLinf, GaussianTwoClassL2
from lightning_rs.certificates.second_order import SecondOrderL2
from lightning_rs.certificates.splitting import DeterministicSplittingL1, SplittingL1
from lightning_rs.certificates.subspace import ChannelL2
from lightning_rs.certificates.uniform import UniformBoxL1, UniformL1
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Probe, Runtime
from lightning_rs.engine.streams import Streams
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise, SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.records import Certification, Header, RecordFile
from lightning_rs.report import load_runs, recompute
from lightning_rs.session import Session
from tests.helpers import HalfSpace, tiny_cnn

SHAPE = (2, 6, 6)
NOISE = GaussianNoise(2.0)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def certifier(**arguments: Any) -> Certifier:
    return Certifier(**{"n0": 20, "n": 300, "alpha": 0.01, "runtime": Runtime(micro_batch=64), **arguments})


def run(arguments: dict[str, Any] | None = None, **call: Any) -> list[Certification]:
    return certifier(**(arguments or {})).certify(**{"network": tiny_cnn(), "noise": NOISE, "images": images(), **call})


class TestRecords:
    def test_three_lines_are_enough(self) -> None:
        network, x, labels = tiny_cnn(), images(3), torch.tensor([0, 1, 2])
        records = lightning_rs.Certifier(n=1000).certify(network, lightning_rs.GaussianNoise(sigma=0.25), x, labels)
        assert [record.index for record in records] == [0, 1, 2]
        assert [record.label for record in records] == [0, 1, 2]
        for record in records:
            assert "image" in repr(record)
            assert record.alpha == 0.001
            assert record.certificate == "GaussianL2"
            assert (record.norm, record.ball) == ("l2", "open")

    def test_counts_and_bounds_are_consistent(self) -> None:
        records = run(images=images(24))
        for record in records:
            assert sum(record.counts) == record.n == record.n_used == 300
            assert sum(record.counts0) == 20
            assert record.top == int(np.argmax(record.counts0))
            assert record.runner_up != record.top
            assert record.bounds["q_upper"] == pytest.approx(1 - record.bounds["p_lower"])
            # The one-sided bound, against SciPy.
            k = record.counts[record.top]
            expected = scipy.stats.beta.ppf(0.01, k, 300 - k + 1) if k else 0.0
            assert record.bounds["p_lower"] == pytest.approx(expected, rel=1e-9)
            if expected > 0.5:
                assert record.status == "certified"
                assert record.prediction == record.top
                radius = NOISE.sigma * scipy.stats.norm.ppf(expected) - record.bounds["rounding"]
                assert record.radius == pytest.approx(radius, rel=1e-8)  # alpha less the error of the noise law
                assert record.radius <= radius * (1 + 1e-12)
            else:
                assert (record.status, record.prediction, record.radius) == ("abstain", -1, 0.0)
        assert {record.status for record in records} == {"certified", "abstain"}

    def test_the_same_seed_gives_the_same_records_and_another_seed_others(self) -> None:
        assert run() == run()
        assert [r.to_json() for r in run()] == [r.to_json() for r in run()]
        assert [r.counts for r in run()] != [r.counts for r in run({"seed": 1})]

    def test_another_classifier_gets_other_noise(self) -> None:
        counts = []
        for margin in (0.0, 1e-12):  # the same function, another fingerprint
            network = nn.Sequential(nn.Flatten(), HalfSpace(torch.cat([torch.ones(71), torch.tensor([1 + margin])])))
            network.register_buffer("mark", torch.tensor(margin))
            counts.append([r.counts for r in run(network=network, images=torch.zeros(6, *SHAPE))])
        assert counts[0] != counts[1]

    def test_order_and_batches_of_images_do_not_matter(self) -> None:
        x = images(7)
        together = run(images=x, indices=range(10, 17))
        assert run(images=x.flip(0), indices=range(16, 9, -1))[::-1] == together
        session = certifier().session(tiny_cnn(), NOISE, SHAPE)
        apart = []
        for first, last in ((0, 3), (3, 4), (4, 7)):
            apart += session.certify(x[first:last], indices=range(10 + first, 10 + last))
        assert apart == together

    def test_groups_of_images_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        together = run()
        monkeypatch.setattr(Session, "_group_size", lambda self, images: 2)
        assert run() == together

    @pytest.mark.parametrize("certificate", [GaussianL2(), SecondOrderL2(), DipoleGradientL2()])
    def test_the_number_of_threads_does_not_matter(self, certificate: Certificate) -> None:
        one, two = (run({"certificates": [certificate], "runtime": Runtime(micro_batch=64, threads=t)}) for t in (1, 2))
        torch.set_num_threads(1)
        assert one == two

    def test_the_index_names_the_noise(self) -> None:
        x = images(1).expand(2, *SHAPE)
        first, second = run(images=x, indices=[3, 4])
        assert first.counts != second.counts
        assert run(images=x[:1], indices=[4])[0] == second

    def test_the_stages_never_share_noise(self) -> None:
        records = []
        for stage in ("final", "epoch-end"):
            session = certifier().session(tiny_cnn(), NOISE, SHAPE, stage=stage)  # type: ignore[arg-type]
            records.append(list(session.certify(images())))
        for name in ("counts", "counts0"):
            assert [getattr(r, name) for r in records[0]] != [getattr(r, name) for r in records[1]]

    def test_all_keys_of_streams_are_different(self, monkeypatch: pytest.MonkeyPatch) -> None:
        keys: list[bytes] = []
        original = Streams.key
        monkeypatch.setattr(Streams, "key", lambda self, *a: keys.append(original(self, *a)) or original(self, *a))
        certificates = [GaussianL2(), SecondOrderL2(), DipoleL2()]
        session = certifier(certificates=certificates, separate_passes=True).session(tiny_cnn(), NOISE, SHAPE)
        list(session.certify(images(3)))
        staged = certifier(budget=StagedSamples(first=30)).session(tiny_cnn(), NOISE, SHAPE)
        list(staged.certify(images(3), indices=[5, 6, 7]))
        assert len(keys) > 30
        probes = [key for key in keys if b"'probe'" in key]
        assert len(set(keys)) == len(keys) - len(probes) + len(set(probes))

    def test_labels_may_be_tensors_lists_or_missing(self) -> None:
        assert run(labels=torch.arange(6)) == run(labels=list(range(6)))
        assert all(record.label is None for record in run())
        assert all(not record.correct for record in run())

    def test_no_images_give_no_records(self) -> None:
        assert run(images=images(0)) == []

    def test_float64_and_non_contiguous_images_are_taken(self) -> None:
        x = images()
        assert run(images=x.double()) == run(images=x)
        assert run(images=x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)) == run(images=x)

    def test_the_noise_may_be_given_to_the_certifier(self) -> None:
        assert run({"noise": NOISE}, noise=None) == run()
        assert run({"noise": GaussianNoise(0.1)}) == run()  # the call's own comes first

    def test_samples_are_counted_for_progress(self) -> None:
        seen: list[int] = []
        session = certifier().session(tiny_cnn(), NOISE, SHAPE, on_samples=seen.append)
        list(session.certify(images()))
        assert sum(seen) == 6 * (20 + 300) == 6 * session.samples_per_image
        assert session.measure(images(), seconds=0.01) > 0


class TestSeveralCertificates:
    def test_one_pass_gives_all_of_them(self) -> None:
        certificates = [GaussianL2(), GaussianLinf(), GaussianL1(), GaussianTwoClassL2(), SecondOrderL2()]
        alone = {c.name: run({"certificates": [c]}) for c in certificates}
        for i, record in enumerate(run({"certificates": certificates})):
            assert record.certificate == "GaussianL2"
            assert record.radii == {name: records[i].radius for name, records in alone.items()}
            assert record.counts == alone["GaussianL2"][i].counts
            assert record.bounds["SecondOrderL2.gradient_upper"] == alone["SecondOrderL2"][i].bounds["gradient_upper"]

    def test_the_first_one_is_the_records_own(self) -> None:
        record = run({"certificates": [GaussianLinf(), GaussianL2()]})[0]
        assert (record.certificate, record.norm) == ("GaussianLinf", "linf")
        assert record.radius == record.radii["GaussianLinf"]

    def test_different_schemes_need_separate_passes(self) -> None:
        message = "samples of one scheme.* got iid: GaussianL2; antithetic: DipoleL2.* separate_passes"
        with pytest.raises(ValueError, match=message):
            certifier(certificates=[GaussianL2(), DipoleL2()])
        records = run({"certificates": [GaussianL2(), DipoleL2()], "separate_passes": True})
        assert [r.radius for r in records] == [r.radius for r in run()]
        assert all(set(record.radii) == {"GaussianL2", "DipoleL2"} for record in records)
        both, one = (np.array(records[0].extra[name]) for name in ("both", "exactly_one"))
        assert (2 * both + one).sum() == 300
        assert (2 * both + one != records[0].counts).any()  # samples of their own

    def test_antithetic_counts_are_kept(self) -> None:
        for record in run({"certificates": [DipoleL2()]}):
            both, one = np.array(record.extra["both"]), np.array(record.extra["exactly_one"])
            assert (2 * both + one == record.counts).all()
            assert sum(record.counts) == 300

    def test_regions_are_told_apart_in_records_and_reports(self, tmp_path: Path) -> None:
        certificates = [GaussianL2(), ChannelL2(0), ChannelL2(1)]
        session = certifier(certificates=certificates).session(tiny_cnn(), NOISE, SHAPE)
        records = list(session.certify(images(), labels=[0] * 6))
        runs = load_runs([saved(tmp_path / "r.jsonl", session, records)])
        assert [r.certificate for r in runs] == ["GaussianL2", "ChannelL2:0", "ChannelL2:1"]
        for run_, name in zip(runs, ("GaussianL2", "ChannelL2:0", "ChannelL2:1"), strict=True):
            assert [r.radius for r in run_.records] == [r.radii[name] for r in records]


def saved(path: Path, session: Session, records: list[Certification]) -> Path:
    header = Header.create(session.describe(), data={"name": "random"}, indices=[r.index for r in records])
    with RecordFile(path, header) as file:
        file.append(records)
    return path


class TestRecomputation:
    def test_from_raw_counts_is_certification_at_another_alpha(self, tmp_path: Path) -> None:
        certificates = [GaussianL2(), GaussianTwoClassL2()]
        session = certifier(certificates=certificates).session(tiny_cnn(), NOISE, SHAPE)
        path = saved(tmp_path / "r.jsonl", session, list(session.certify(images())))
        strict = run({"certificates": certificates, "alpha": 1e-4})
        for run_, name in zip(load_runs([path]), ("GaussianL2", "GaussianTwoClassL2"), strict=True):
            again = recompute(run_, 1e-4)
            assert [r.radius for r in again.records] == [r.radii[name] for r in strict]
            assert [r.alpha for r in again.records] == [1e-4] * 6

    @pytest.mark.parametrize("budget", [StagedSamples(first=30), RandomizedBound()])
    def test_is_refused_where_it_would_be_void(self, budget: Any, tmp_path: Path) -> None:
        session = certifier(budget=budget).session(tiny_cnn(), NOISE, SHAPE)
        path = saved(tmp_path / "r.jsonl", session, list(session.certify(images())))
        with pytest.raises(ValueError, match=f"alpha cannot be changed in mode '{budget.mode}'"):
            recompute(load_runs([path])[0], 0.05)


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"alpha": 0.0}, r"alpha must lie in \(0, 1\), got 0.0"),
    ({"alpha": 1.0}, r"alpha must lie in \(0, 1\), got 1.0"),
    ({"alpha": -0.5}, r"alpha must lie in \(0, 1\), got -0.5"),
    ({"alpha": math.nan}, "alpha must not be NaN"),
    ({"n": 0}, "n must be a whole number >= 1, got 0"),
    ({"n": -3}, "n must be a whole number >= 1, got -3"),
    ({"n": 1.5}, "n must be a whole number >= 1, got 1.5"),
    ({"n0": 0}, "n0 must be a whole number >= 1, got 0"),
    ({"certificates": []}, r"certificates must be one or more, of different names, got \[\]"),
    ({"certificates": [GaussianL2(), GaussianL2()]}, r"of different names, got \['GaussianL2', 'GaussianL2'\]"),
    (
        {"certificates": [GaussianTwoClassL2(), GaussianTwoClassL2("grouped")]},
        r"different names, got \['GaussianTwoClassL2', 'GaussianTwoClassL2'\]",
    ),
    ({"certificates": [DipoleL2()], "n": 301}, "n must be even for the antithetic pairs of DipoleL2, got 301"),
]


def with_value(value: float, row: int = 4, where: tuple[int, int, int] = (1, 0, 2)) -> Tensor:
    x = torch.round(images() * 16) / 16
    x[(row, *where)] = value
    return x


BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"images": with_value(math.nan)}, "images must be finite, got NaN at coordinate 38 of image 4"),
    ({"images": with_value(math.inf)}, "images must be finite, got inf at coordinate 38 of image 4"),
    (
        {"images": with_value(1.5), "domain": (0.0, 1.0)},
        r"images must lie in \[0, 1\], got 1.5 at coordinate 38 of image 4",
    ),
    ({"images": with_value(-0.25), "domain": (0.0, 1.0)}, r"images must lie in \[0, 1\], got -0.25 at coordinate 38"),
    (
        {"images": with_value(0.3), "grid": 16},
        "images must be multiples of 1/16, got 0.3.* at coordinate 38 of image 4",
    ),
    ({"images": images().numpy()}, r"images must be a tensor \(B, \*shape\), got ndarray"),
    ({"images": torch.zeros(5)}, r"images must be a tensor \(B, \*shape\), got shape \(5,\)"),
    ({"images": torch.zeros(2, 3, 6, 6)}, r"the network does not accept inputs of shape \(3, 6, 6\)"),
    ({"labels": [1, 2]}, r"labels must have one entry an image \(6\), got 2"),
    ({"labels": [0.5] * 6}, "labels must be whole numbers, got 0.5"),
    ({"indices": range(7)}, r"indices must have one entry an image \(6\), got 7"),
    ({"indices": torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.5])}, "indices must be whole numbers, got 5.5"),
    ({"indices": [0, 1, 2, 3, 4, -1]}, "indices must be >= 0, got -1"),
    ({"noise": None}, r"noise must be given to certify\(\) or to the Certifier, got None"),
]


class TestBadInput:
    @pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=lambda v: str(v)[:40])
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            certifier(**arguments)

    @pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=[message[:50] for _, message in BAD_CALLS])
    def test_calls(self, call: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run(**call)

    def test_a_bad_image_stops_before_the_first_sample(self) -> None:
        seen: list[int] = []
        session = certifier().session(tiny_cnn(), NOISE, SHAPE, on_samples=seen.append)
        with pytest.raises(ValueError, match="images must be finite"):
            list(session.certify(with_value(math.nan)))
        assert seen == []

    def test_a_session_takes_one_shape(self) -> None:
        session = certifier().session(tiny_cnn(), NOISE, SHAPE)
        for method in (lambda x: list(session.certify(x)), lambda x: session.predict(x, n=20)):
            with pytest.raises(ValueError, match=r"each image must have shape \(2, 6, 6\), got \(2, 6, 5\)"):
                method(torch.zeros(2, 2, 6, 5))

    def test_an_unknown_stage(self) -> None:
        with pytest.raises(ValueError, match="stage must be one of 'final', 'preview', 'epoch-end', got 'middle'"):
            certifier().session(tiny_cnn(), NOISE, SHAPE, stage="middle")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("certificate", "noise"), [(UniformBoxL1(), UniformNoise(0.5)), (SplittingL1(), SplittingNoise(0.5))]
    )
    def test_the_domain_of_a_theorem_or_a_law(self, certificate: Certificate, noise: Noise) -> None:
        with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got 1.5 at coordinate 38 of image 4"):
            run({"certificates": [certificate]}, noise=noise, images=with_value(1.5))

    def test_the_shape_and_grid_of_a_fixed_v(self) -> None:
        noise = DeterministicSplittingNoise(1.0, shape=(3, 6, 6), q=16)
        with pytest.raises(ValueError, match=r"images must have the shape \(3, 6, 6\) of v, got \(2, 6, 6\)"):
            run({"certificates": [DeterministicSplittingL1()]}, noise=noise)
        noise = DeterministicSplittingNoise(1.0, shape=SHAPE, q=16)
        with pytest.raises(
            ValueError, match=r"images must be multiples of 1/16, got 0.3.* at coordinate 38 of image 4"
        ):
            run({"certificates": [DeterministicSplittingL1()]}, noise=noise, images=with_value(0.3))

    @pytest.mark.parametrize(
        ("certificate", "n"), [(SecondOrderL2(), 1), (DipoleGradientL2(), 2), (SecondOrderL2("levine"), 1)]
    )
    def test_too_few_samples_for_a_gradient(self, certificate: Certificate, n: int) -> None:
        with pytest.raises(ValueError, match=f"n must .*got {n}"):
            run({"certificates": [certificate], "n": n})


class TestEdges:
    def test_one_sample_certifies_nothing(self) -> None:
        for record in run({"n": 1, "n0": 1}):
            assert (record.prediction, record.radius) == (-1, 0.0)

    def test_a_constant_classifier_gets_the_largest_radius(self) -> None:
        network = HalfSpace(torch.ones(72), offset=-1e6)
        record = run({"n": 1000}, network=network)[0]
        assert record.counts == (0, 1000)
        expected = -NOISE.sigma * scipy.stats.norm.ppf(-math.expm1(math.log(0.01) / 1000)) - record.bounds["rounding"]
        assert record.radius == pytest.approx(expected, rel=1e-9)
        assert record.radius <= expected * (1 + 1e-12)

    def test_an_undecidable_image_abstains(self) -> None:
        record = run(network=HalfSpace(torch.ones(72), offset=36.0), images=torch.full((1, *SHAPE), 0.5))[0]
        assert (record.prediction, record.radius, record.status) == (-1, 0.0, "abstain")

    def test_selection_ties_go_to_the_lower_class(self) -> None:
        network = nn.Sequential(nn.Flatten(), Constant([0.0, 1.0, 1.0, 0.0]))
        record = run({"n0": 10}, network=network)[0]
        assert (record.top, record.runner_up) == (1, 0)

    def test_small_tails_are_not_lost(self) -> None:
        # p = 1 - 1.4e-5: computed from p, the radius would lose digits; from the tail it does not.
        arguments = {"n": 400_000, "alpha": 0.001, "runtime": Runtime(micro_batch=1024)}
        record = run(arguments, network=HalfSpace(torch.ones(2), offset=-1e6), images=torch.zeros(1, 2))[0]
        tail = -math.expm1(math.log(0.001) / 400_000)
        # Of alpha = .001 the noise law's own error takes 1e-9.
        assert record.bounds["q_upper"] == pytest.approx(tail, rel=1e-6)
        radius = -NOISE.sigma * scipy.stats.norm.ppf(tail) - record.bounds["rounding"]
        assert record.radius == pytest.approx(radius, rel=1e-6)


class Constant(nn.Module):
    """Returns the same logits for everything."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.values.expand(len(x), -1)


class TestDescription:
    def test_holds_everything_that_decides_the_records(self) -> None:
        session = certifier(certificates=[GaussianL2(), ChannelL2(0)]).session(tiny_cnn(), NOISE, SHAPE)
        described = session.describe()
        assert described["noise"] == {"class": "GaussianNoise", "sigma": 2.0}
        assert [entry["name"] for entry in described["certificates"]] == ["GaussianL2", "ChannelL2:0"]
        assert [entry["class"] for entry in described["certificates"]] == ["GaussianL2", "ChannelL2"]
        assert described["certificates"][1]["norm"] == "l2:0"
        assert all(math.fsum(e["alpha_split"].values()) == pytest.approx(1) for e in described["certificates"])
        assert {key: described[key] for key in ("n0", "n", "alpha", "seed", "num_classes", "shape")} == {
            "n0": 20, "n": 300, "alpha": 0.01, "seed": 0, "num_classes": 3, "shape": [2, 6, 6],
        }  # fmt: skip
        assert described["budget"] == FixedSamples().describe()
        assert described["runtime"]["micro_batch"] == 64
        assert len(described["classifier"]) == 64

    @pytest.mark.parametrize(
        "change",
        [
            lambda: certifier(n=301),
            lambda: certifier(n0=21),
            lambda: certifier(alpha=0.02),
            lambda: certifier(seed=1),
            lambda: certifier(certificates=[GaussianLinf()]),
            lambda: certifier(budget=StagedSamples()),
            lambda: certifier(runtime=Runtime(micro_batch=32)),
            lambda: certifier(runtime=Runtime(micro_batch=64, precision="bf16-true")),
            lambda: certifier(runtime=Runtime(micro_batch=64, channels_last=False)),
        ],
    )
    def test_changes_with_everything_that_decides_the_records(self, change: Callable[[], Certifier]) -> None:
        def describe(made: Certifier, noise: Noise = NOISE) -> dict[str, Any]:
            return made.session(tiny_cnn(), noise, SHAPE).describe()

        assert describe(certifier()) == describe(certifier())
        assert describe(change()) != describe(certifier())
        assert describe(certifier(), GaussianNoise(0.25)) != describe(certifier())

    def test_a_certificate_that_is_not_proved_for_the_noise(self) -> None:
        wanted = r"certificate GaussianL2 is proved for GaussianNoise, got noise UniformNoise\(lam=0.5\)"
        with pytest.raises(ValueError, match=wanted):
            Certifier([GaussianL2()]).certify(HalfSpace(torch.ones(4)), UniformNoise(0.5), torch.zeros(1, 4))

    def test_repr(self) -> None:
        assert repr(certifier()) == "Certifier(n0=20, n=300, alpha=0.01)"
        assert repr(Certifier([GaussianL2()], n=300)).startswith("Certifier(certificates=[GaussianL2()], n0=100, n=300")


class TestPredict:
    @pytest.fixture
    def session(self) -> Session:
        return certifier().session(HalfSpace(torch.ones(4)), NOISE, (4,))

    def test_returns_the_class_where_it_is_clear_and_abstains_near_ties(self, session: Session) -> None:
        x = torch.stack([torch.full((4,), v) for v in (1.0, -1.0, 0.0, 1e-4)])
        found = session.predict(x, n=200, seed=1)
        assert found.prediction.tolist() == [1, 0, -1, -1]
        assert found.counts.sum(1).tolist() == [200] * 4
        for counts, p_value in zip(found.counts, found.p_value, strict=True):
            expected = scipy.stats.binomtest(int(counts.max()), 200, 0.5).pvalue
            assert p_value == pytest.approx(expected, rel=1e-9)

    def test_fresh_entropy_differs_between_calls_and_is_recorded(self, session: Session) -> None:
        x = torch.zeros(3, 4)
        first, second = session.predict(x, n=50), session.predict(x, n=50)
        assert first.seed != second.seed
        assert first.seed.bit_length() > 32
        assert (first.counts != second.counts).any()
        again = session.predict(x, n=50, seed=first.seed)
        assert (again.counts == first.counts).all()
        assert again.seed == first.seed

    def test_does_not_share_noise_with_certification(self, session: Session) -> None:
        x = torch.zeros(1, 4)
        predicted = session.predict(x, n=300, seed=0).counts[0].tolist()
        (record,) = session.certify(x)
        assert predicted != list(record.counts)

    def test_alpha_decides(self, session: Session) -> None:
        x = torch.full((1, 4), 0.04)
        found = session.predict(x, n=200, alpha=0.999, seed=3)
        p_value = float(found.p_value[0])
        assert 1e-9 < p_value < 0.999
        assert found.prediction[0] >= 0
        # At most alpha; the noise law's own error takes a little of it.
        assert session.predict(x, n=200, alpha=p_value + 1e-9, seed=3).prediction[0] >= 0
        assert session.predict(x, n=200, alpha=p_value * 0.999, seed=3).prediction[0] == -1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"alpha": 0.0}, r"alpha must lie in \(0, 1\), got 0.0"),
            ({"n": 0}, "n must be a whole number >= 1, got 0"),
            ({"images": torch.full((1, 4), torch.nan)}, "images must be finite, got NaN at coordinate 0 of image 0"),
        ],
    )
    def test_bad_input(self, session: Session, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            session.predict(**{"images": torch.zeros(1, 4), **arguments})

    def test_is_exact_for_enumerated_noise(self) -> None:
        session = dssn_session(HalfSpace(torch.ones(72), offset=30.0))
        x = grid_images()
        found = session.predict(x, n=1)
        records = list(session.certify(x))
        assert found.prediction.tolist() == [record.prediction for record in records]
        assert found.counts.tolist() == [list(record.counts) for record in records]
        assert found.p_value.tolist() == [0.0] * len(x)

    def test_no_images(self, session: Session) -> None:
        assert session.predict(torch.zeros(0, 4), n=10).prediction.shape == (0,)


DSSN = DeterministicSplittingNoise(1.5, shape=SHAPE, q=16, seed=1)


def grid_images(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(17, (count, *SHAPE), generator=generator) / 16


def dssn_session(network: nn.Module, **runtime: Any) -> Session:
    made = certifier(certificates=[DeterministicSplittingL1()], runtime=Runtime(**{"micro_batch": 32, **runtime}))
    return made.session(network, DSSN, SHAPE)


class ByPosition(nn.Module):
    """A network whose logits depend a little on the position in the batch, as on some accelerators."""

    def __init__(self, network: nn.Module, size: float) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.size * (torch.arange(len(x)) % 2)[:, None] * torch.tensor([1.0, 0.0])


class Coarse(nn.Module):
    """A half space whose score is rounded to whole numbers: many inputs lie on its boundary exactly."""

    def forward(self, x: Tensor) -> Tensor:
        score = torch.round(x.flatten(1).sum(1) - 36.0)
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Level(nn.Module):
    """Both classes have the logit 1, everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 2)


class TestDeterministicSplitting:
    def test_counts_are_those_of_all_outcomes_and_the_statement_is_exact(self) -> None:
        network = HalfSpace(torch.ones(72), offset=36.0)
        session, x = dssn_session(network), grid_images()
        for record, image in zip(session.certify(x), x, strict=True):
            noisy = torch.empty(DSSN.size, 72)
            DSSN.split(image.flatten(), torch.arange(DSSN.size), noisy)
            labels = network(noisy).argmax(1)
            assert list(record.counts) == torch.bincount(labels, minlength=2).tolist()
            assert (record.alpha, record.n, record.n_used) == (0.0, 48, 48)
            assert (record.ball, record.grid) == ("closed", 16)
            assert (record.top, record.runner_up, record.counts0) == (-1, -1, ())
            zero, one = record.counts
            assert record.prediction == (one > zero)
            # One step turns at most one vote, which moves the difference by two; ties go to class 0.
            assert record.steps == ((zero - one) // 2 if zero >= one else (one - zero - 1) // 2)
            assert record.radius == record.steps / 16
            assert record.extra == {"doubtful": 0, "rechecked": 3}
            assert "exactly" in repr(record)

    def test_the_statement_holds_for_every_neighbour(self) -> None:
        network = HalfSpace(torch.linspace(-1, 2, 72), offset=18.0)
        session = dssn_session(network)
        (record,) = session.certify(grid_images(1))
        steps = round(record.radius * 16)
        assert 0 < steps < 40
        generator, neighbours = torch.Generator().manual_seed(0), []
        for _ in range(200):
            whole = (grid_images(1)[0].flatten() * 16).round().int()
            for _ in range(steps):
                i = int(torch.randint(72, (), generator=generator))
                step = (
                    1
                    if whole[i] == 0
                    else -1
                    if whole[i] == 16
                    else 2 * int(torch.randint(2, (), generator=generator)) - 1
                )
                whole[i] += step
            neighbours.append(whole.view(SHAPE) / 16)
        assert (session.predict(torch.stack(neighbours), n=1).prediction == record.prediction).all()

    def test_seeds_and_sample_sizes_do_not_matter(self) -> None:
        network = HalfSpace(torch.ones(72), offset=36.0)
        first = list(dssn_session(network).certify(grid_images()))
        made = certifier(certificates=[DeterministicSplittingL1()], n=7, n0=3, seed=9, alpha=0.5)
        assert list(made.session(network, DSSN, SHAPE).certify(grid_images())) == first
        assert made.session(network, DSSN, SHAPE).samples_per_image == DSSN.size

    def test_votes_that_floating_point_could_turn_cost_a_step_each(self) -> None:
        network, x, size = Coarse(), grid_images(), 2e-4
        session = dssn_session(ByPosition(network, size))
        records = list(session.certify(x))
        assert session.probed is not None
        assert not session.probed.invariant
        assert session.probed.deviation == pytest.approx(size, rel=1e-3)
        assert session.sampler.tolerance == 4 * session.probed.deviation
        seen = 0
        for record, image in zip(records, x, strict=True):
            noisy = torch.empty(DSSN.size, 72)
            DSSN.split(image.flatten(), torch.arange(DSSN.size), noisy)
            doubtful = record.extra["doubtful"]
            assert doubtful == int((network(noisy)[:, 1] == 0).sum())
            seen += doubtful
            zero, one = record.counts
            distance = (zero - one) // 2 if zero >= one else (one - zero - 1) // 2
            assert record.radius == max(distance - doubtful, 0) / 16
            assert (record.prediction == -1) == (distance < doubtful)
            if doubtful:
                assert f"{doubtful} votes within the logit margin" in record.note
        assert seen > 0

    def test_too_much_doubt_means_abstaining(self) -> None:
        session = dssn_session(ByPosition(Level(), 5e-5))
        for record in session.certify(grid_images()):
            assert record.extra["doubtful"] == 48
            assert (record.prediction, record.radius, record.status) == (-1, 0.0, "abstain")

    def test_what_moves_by_more_than_rounding_is_refused(self) -> None:
        session = dssn_session(ByPosition(HalfSpace(torch.ones(72), offset=36.0), 0.05))
        with pytest.raises(ValueError, match=r"function of one row, but its logits move by 0\.05 .* position"):
            list(session.certify(grid_images()))

    def test_doubtful_votes_of_sampled_noise_count_against_the_class(self) -> None:
        def run(network: nn.Module) -> list[Certification]:
            made = certifier(certificates=[UniformL1()], n=500)
            return list(made.session(network, UniformNoise(0.5), SHAPE, grid=16).certify(grid_images()))

        doubted, sure = run(ByPosition(Coarse(), 2e-4)), run(Coarse())
        assert sum(record.extra.get("doubtful", 0) for record in doubted) > 0
        for one, other in zip(doubted, sure, strict=True):
            assert sum(one.counts) == 500
            assert one.top == other.top  # both draw the same selection samples, none of which decides a tie
            assert one.counts[one.top] <= other.counts[other.top]
            assert one.radius <= other.radius
            assert "doubtful" not in other.extra

    def test_votes_of_sampled_certificates_cannot_share_the_pass(self) -> None:
        with pytest.raises(ValueError, match="iid: GaussianL2; enumerated: DeterministicSplittingL1"):
            certifier(certificates=[GaussianL2(), DeterministicSplittingL1()])


class TestProbe:
    def test_is_done_once_and_kept(self) -> None:
        session = certifier().session(tiny_cnn(), NOISE, SHAPE)
        assert session.probed is None
        list(session.certify(images()))
        assert session.probed == Probe(0.0, True, 0.0, 64)
        assert session.sampler.tolerance == 0

    def test_does_not_change_the_records(self) -> None:
        session = certifier().session(tiny_cnn(), NOISE, SHAPE)
        session.probe(images(1))
        assert list(session.certify(images())) == run()

    def test_reports_what_low_precision_changes(self) -> None:
        session = certifier(runtime=Runtime(micro_batch=256, precision="bf16-true")).session(tiny_cnn(), NOISE, SHAPE)
        probed = session.probe(images())
        assert 0 <= probed.changed < 0.1
        assert probed.rows == 256
