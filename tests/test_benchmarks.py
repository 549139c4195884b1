"""The benchmarks run and say what they say they measure; nothing here is timed."""

from __future__ import annotations

import json
import sys
import threading
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks import (
    before,
    common,
    denoised_faces,
    first_order,
    l1_cost,
    lattice,
    one_pass,
    routed,
    samples,
    scaling,
    splitting,
    throughput,
    training,
    training_table,
)
from lightning_rs.budgets import FixedSamples, Group, StagedSamples
from lightning_rs.certificates import GaussianL1, GaussianLinf
from lightning_rs.certifier import Certifier
from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.data import Digits
from lightning_rs.engine.runtime import Runtime
from lightning_rs.networks import Normalize
from lightning_rs.noise import GaussianNoise
from lightning_rs.records import Certification
from tests.data.formats import write_idx
from tests.fakes import certification
from tests.helpers import HalfSpace
from tests.reported import SIGMA, from_votes, save


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained classifier of 8x8 digits in a checkpoint of ours."""
    torch.manual_seed(0)
    model = NoiseAugmentation(noise=GaussianNoise(0.25), mean=[0.3], std=[0.4], grid=16)
    model.data_spec = {"class_path": "lightning_rs.data.Digits", "init_args": {"skip": 7}}
    held: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(held)
    path = tmp_path_factory.mktemp("checkpoint") / "digits.ckpt"
    torch.save(held, path)
    return path


def written(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "throughput.json"
    found = throughput.main(["--quick", "--plain", "--device", "cpu", "--rounds", "2", "--out", str(out)])
    rows = written(out)["throughput"]
    assert [row["runtime"]["precision"] for row in rows] == ["32-true", "bf16-true", "int8", "32-true", "bf16-true"]
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # without these instructions layers stay apart
    assert [row["runtime"]["fused"] for row in rows] == [True, bf16, True, False, False]
    assert all(len(rates) == 2 and min(rates) > 0 for row in rows for rates in row["rates"].values())
    assert found["environment"]["torch"] == torch.__version__
    assert "| ours / reference" in capsys.readouterr().out


def test_whole_numbers_beside_floating_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lattice.json"
    lattice.main(["--quick", "--out", str(out)])
    rows = written(out)["lattice"]
    assert [row["what"] for row in rows] == ["draw, add, scale: numbers", "digits_cnn, 32-true"]
    assert all(min(rates) > 0 and len(rates) == 3 for row in rows for rates in row["rates"].values())
    assert "| lattice / float" in capsys.readouterr().out


@pytest.mark.slow
def test_another_checkout_takes_turns(tmp_path: Path) -> None:
    out = tmp_path / "before.json"
    before.main([str(Path(__file__).parents[1]), "--quick", "--out", str(out)])
    (row,) = written(out)["before"]
    assert {name: len(turns) for name, turns in row["turns"].items()} == {"before": 2, "now": 2}
    assert all(turn["cpu"] > 0 for turns in row["turns"].values() for turn in turns)


def test_the_interval_of_a_median_holds_it_in_95_of_100() -> None:
    assert common.median_interval([3.0, 1.0, 2.0]) == "2.00 (1.00-3.00)"
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        interval = common.median_interval(generator.normal(10, 1, size=41), 6).split(" ")[1]
        low, high = map(float, interval.strip("()").split("-"))
        inside += low <= 10 <= high
    assert 370 <= inside <= 400


def test_the_contenders_evaluate_what_they_are_told() -> None:
    seen: list[int] = []
    network = throughput.network_of("digits_cnn", (1, 8, 8))
    network.register_forward_hook(lambda _, rows, __: seen.append(len(rows[0])))
    image = torch.rand(1, 1, 8, 8)
    assert throughput.reference_loop(network, image, 10, batch=30)(100) == 120
    assert seen == [30, 30, 30, 30]
    prepared = Runtime(micro_batch=16, threads=2, fuse=False, fold=False).prepare(network, (1, 8, 8))
    seen.clear()
    assert throughput.forward_only(prepared)(100) == 128
    assert seen == [16] * 8  # a whole number of micro-batches on each of two threads


def test_splitting(tmp_path: Path) -> None:
    out = tmp_path / "splitting.json"
    splitting.main(
        ["--quick", "--device", "cpu", "--sigmas", "0.25", "1", "--precisions", "32-true", "--out", str(out)]
    )
    rows = written(out)["splitting"]
    assert [(row["sigma"], row["levels"]) for row in rows] == [(0.25, 220), (1.0, 883)]
    assert all(len(row[name]) == 2 and min(row[name]) > 0 for row in rows for name in ("forward", "gaussian", "dssn"))


def test_l1_cost(tmp_path: Path) -> None:
    out = tmp_path / "l1_cost.json"
    l1_cost.main(["--quick", "--device", "cpu", "--precision", "32-true", "--out", str(out)])
    rows = written(out)["l1_cost"]
    assert [(row["noise"], row["samples"]) for row in rows] == [("uniform", 600), ("SSN", 600), ("DSSN 0.25", 220)]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)


def test_whole_enumerations_are_timed() -> None:
    image = splitting.gray_image((1, 8, 8))
    law = splitting.DeterministicSplittingNoise(sigma=0.25, shape=(1, 8, 8))
    law.check_input(image, (0.0, 1.0))
    network = throughput.network_of("digits_cnn", (1, 8, 8))
    sampler = splitting.Sampler(Runtime(micro_batch=32).prepare(network, (1, 8, 8)), law, "benchmark", 0)
    assert [splitting.enumeration(sampler, image)(samples) for samples in (1, 220, 221)] == [220, 220, 440]


def test_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "one_pass.json"
    one_pass.main(["--quick", "--device", "cpu", "--threads", "1", "--out", str(out)])
    (row,) = written(out)["one_pass"]
    assert all(len(rates) == 2 and min(rates) > 0 for rates in row["rates"].values())
    assert set(row["rates"]) == {"votes", "five"}
    assert "| cost of five" in capsys.readouterr().out
    names = [certificate.name for certificate in one_pass.certificates((3, 8, 8))["five"]]
    assert names == ["GaussianL2", "SecondOrderL2", "FirstOrderL1", "FirstOrderLinf", "ChannelL2:red"]


def test_one_pass_takes_the_samples_it_is_told_to_take() -> None:
    shape = (1, 8, 8)
    five = one_pass.certificates(shape)["five"]
    certifier = Certifier(five, n0=10, n=10, runtime=Runtime(micro_batch=16, threads=1))
    session = certifier.session(throughput.network_of("digits_cnn", shape), GaussianNoise(0.5), shape)
    assert [one_pass.one_image(session, torch.rand(1, *shape))(samples) for samples in (20, 33)] == [20, 34]
    assert one_pass.solving(five, (3, 4, 4), 2) > 0


@pytest.fixture(scope="module")
def gradient_records(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Records of configs/certify/mohapatra.yaml's certificates for five images of a half space, at two noise levels."""
    folder, shape = tmp_path_factory.mktemp("gradients"), (1, 4, 4)
    images = torch.linspace(0.45, 0.75, 5).view(5, 1, 1, 1).expand(5, *shape).contiguous()
    own = [*one_pass.certificates(shape)["five"], GaussianL1(), GaussianLinf()]
    paths = []
    for sigma in (0.5, 0.25):
        certifier = Certifier(own, n0=50, n=20_000, runtime=Runtime(micro_batch=500))
        session = certifier.session(HalfSpace(torch.ones(16), offset=7.6), GaussianNoise(sigma), shape)
        records = list(session.certify(images, labels=[1, 1, 1, 0, 1]))
        paths.append(save(folder / f"{sigma}.jsonl", records, **session.describe()))
    return paths


def test_first_order(gradient_records: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "figure.png"
    found = first_order.main([*map(str, gradient_records), "--figure", str(picture)])
    assert picture.stat().st_size > 10_000
    assert "Radius with gradients over radius without" in capsys.readouterr().out
    rows = found["averages"]
    norms = ["l1", "l2", "linf", "l2 (top)"]
    assert [(row["norm"], row["noise"]) for row in rows] == [(n, f"sigma {s}") for n in norms for s in (0.25, 0.5)]
    runs = first_order.sorted_runs(gradient_records)
    without, with_it = (runs["l1"][kind]["sigma 0.5"].records for kind in first_order.KINDS)
    assert [record.radius for record in with_it] == [record.radii["FirstOrderL1"] for record in without]
    row = next(row for row in rows if (row["norm"], row["noise"]) == ("l1", "sigma 0.5"))
    gains = [b.radius - a.radius for a, b in zip(without, with_it, strict=True) if a.correct]
    assert (row["larger"], row["smaller"]) == (sum(g > 0 for g in gains), sum(g < 0 for g in gains))
    assert float(row["ACR with"]) - float(row["ACR without"]) == pytest.approx(sum(gains) / 5, abs=2e-5)
    envelope = next(row for row in found["accuracies"] if row["noise"].startswith("envelope"))
    assert envelope["r0"] == "0: 0.60 -> 0.60"


def test_first_order_refuses_other_records(gradient_records: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"records must differ in their noise, got sigma 0.5 twice"):
        first_order.sorted_runs([gradient_records[0]] * 2)
    certifier = Certifier(n0=10, n=100)
    session = certifier.session(HalfSpace(torch.ones(16)), GaussianNoise(0.5), (1, 4, 4))
    records = list(session.certify(torch.full((1, 1, 4, 4), 0.5), labels=[0]))
    other = save(tmp_path / "other.jsonl", records, **session.describe())
    with pytest.raises(ValueError, match=r"must hold the certificates of mohapatra\.yaml, .*FirstOrderL1.* missing"):
        first_order.sorted_runs([other])


def test_profile(capsys: pytest.CaptureFixture[str]) -> None:
    network = throughput.network_of("digits_cnn", (1, 8, 8))
    throughput.where_time_goes("digits_cnn", network, Runtime(threads=1, micro_batch=8), torch.rand(1, 1, 8, 8), "cpu")
    assert "mkldnn::_convolution_pointwise" in capsys.readouterr().out


def test_samples(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.json"
    samples.main(["--quick", "--checkpoint", str(checkpoint), "--device", "cpu", "--out", str(out)])
    found = written(out)
    assert [row["r / sigma"] for row in found["decisions"]] == list(samples.SIGMAS)
    assert all(0 < row["median samples"] <= 1000 for row in found["decisions"])
    fixed, *staged = found["staged"]
    assert (fixed["mean samples"], fixed["ACR lost"]) == (1000, 0)
    used = [row["mean samples"] for row in staged]
    assert used == sorted(used, reverse=True)
    assert used[0] <= 1000


def test_a_checkpoint_without_its_data_needs_a_dataset(checkpoint: Path, tmp_path: Path) -> None:
    held = torch.load(checkpoint, weights_only=True)
    held["lightning_rs"]["data"] = None
    torch.save(held, tmp_path / "nameless.ckpt")
    with pytest.raises(ValueError, match=r"dataset must be given, since checkpoint .* does not name its data"):
        samples.load(tmp_path / "nameless.ckpt", None, 3)
    assert len(samples.load(tmp_path / "nameless.ckpt", None, 3, "lightning_rs.data.Digits")[2].labels) == 3


def test_replayed_stages_are_what_the_budget_would_have_drawn(checkpoint: Path) -> None:
    network, noise, images = samples.load(checkpoint, None, 6)
    data = Digits(max=6)
    data.setup("predict")
    assert images.indices == [int(sample["index"]) for sample in data.certification_subset()]
    session = Certifier(n0=50, n=2000, alpha=0.01).session(network, noise, (1, 8, 8))
    some = images.first(6)
    selection, budget = samples.select(session, some), StagedSamples(0.02)
    replay: Any = samples.Replay(some.indices, samples.draw_stages(session, some, budget))
    group = Group(some.images, some.indices, some.labels)
    real = budget.run(session.task, group, selection)
    again = budget.run(samples.replace(session.task, sampler=replay), group, selection)
    assert (real.used == again.used).all()
    assert (real.counts == again.counts).all()
    assert samples.average_radius(real, some.labels) == samples.average_radius(again, some.labels)
    assert isinstance(session.certifier.budget, FixedSamples)


def test_stages_of_finished_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    votes = [[0, 990, 10], [300, 700, 0], [480, 520, 0], [0, 1000, 0]]
    path = save(tmp_path / "run.jsonl", [from_votes(i, 1, v, 0.001) for i, v in enumerate(votes)])
    found = samples.main(["--records", str(path)])
    fixed, *staged = found["staged"]
    expected = np.mean([from_votes(0, 1, v, 0.001).radius for v in votes])
    assert fixed["ACR"] == pytest.approx(expected, rel=1e-9)
    assert fixed["sigma"] == SIGMA
    assert staged[0]["ACR"] <= fixed["ACR"]
    assert staged[-1]["mean samples"] < 1000
    task, group, _, parts = samples.recorded(path)
    assert sum(parts).tolist() == votes  # nothing is drawn anew
    assert (task.setting.n, group.labels) == (1000, [1] * 4)
    with pytest.raises(ValueError, match="must hold labelled records of GaussianL2 with all counts of a fixed n"):
        samples.recorded(save(tmp_path / "none.jsonl", [certification(0, radius=0.1)]))
    assert "Staged Clopper-Pearson" in capsys.readouterr().out


def test_average_radius_counts_only_correct_images(checkpoint: Path) -> None:
    class Said:
        radius, prediction = np.array([1.0, 2.0, 0.0]), np.array([3, 4, -1])

    outcome: Any = type("Outcome", (), {"radii": {"x": Said}})
    assert samples.average_radius(outcome, [3, 5, 1]) == pytest.approx(1 / 3)


def test_scaling(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    scaling.main(["--quick", "--network", "digits_cnn", "--ranks", "--large", "--device", "cpu", "--out", str(out)])
    found = written(out)
    assert [row["n"] for row in found["n"]] == [50, 100]
    assert [row["images"] for row in found["images"]] == [1, 3]
    assert [row["side"] for row in found["size"]] == [8, 12]
    assert all(row["seconds"] > 0 for key in ("n", "images", "size") for row in found[key])


@pytest.mark.slow
def test_scaling_over_ranks() -> None:
    found = scaling.main(
        ["--quick", "--network", "digits_cnn", "--ranks", "1", "2", "--large", "32", "--device", "cpu"]
    )
    assert [row["ranks"] for row in found["ranks"]] == [1, 2]
    assert [row["n"] for row in found["large"]] == [32]
    # Preparing the network may have needed as much as so few samples.
    assert all(row["peak MiB"] >= row["MiB before sampling"] > 100 for row in found["large"])


_STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not _STATUS.exists() or "VmHWM" not in _STATUS.read_text(), reason="only Linux tells it")
def test_the_peak_of_a_process_is_its_own() -> None:
    """getrusage's is that of its parent, too, until it is exceeded."""
    ours = np.ones(2**27)  # 1 GiB beside all that the child imports, which this process has imported, too
    with ProcessPoolExecutor(1, get_context("spawn")) as own:
        theirs = own.submit(scaling.peak_memory).result()
    assert 10 < theirs < scaling.peak_memory() - ours.nbytes / 2**21


def test_turns_alternate_and_a_rate_counts_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    clock = [0.0]

    def work(name: str, batch: int, rate: float) -> Any:
        def run(size: int) -> int:
            turns.append(name)
            done = -(-size // batch) * batch
            clock[0] += done / rate
            return done

        return run

    monkeypatch.setattr(common.time, "perf_counter", lambda: clock[0])
    rates = common.alternate({"a": work("a", 1000, 50.0), "b": work("b", 1, 2.0)}, seconds=4, rounds=3)
    assert turns[-6:] == ["a", "b"] * 3
    assert rates == {"a": pytest.approx([50.0] * 3), "b": pytest.approx([2.0] * 3)}


def test_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "training.json"
    training.main(["--quick", "--device", "cpu", "--out", str(out)])
    found = written(out)
    (row,) = found["training"]
    assert set(row["rates"]) == {"fit", "published", "alone"}
    assert all(len(rates) == 2 and min(rates) > 0 for rates in row["rates"].values())
    (share,) = found["shares"]
    parts = [share[part] for part in ("validation", "certification", "checkpoints")]
    assert min(parts) > 0
    assert sum(parts) < share["seconds"]
    said = capsys.readouterr().out
    assert "| fit / published" in said
    assert "| together" in said


def test_the_training_contenders_do_the_steps_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    forward = nn.Sequential.forward

    def counted(self: nn.Sequential, rows: torch.Tensor) -> torch.Tensor:
        if isinstance(self[0], Normalize) and len(rows) > 1:  # one row when the network is built
            batches.append(len(rows))
        return forward(self, rows)

    monkeypatch.setattr(nn.Sequential, "forward", counted)
    args: Any = Namespace(device="cpu", precision="32-true", compile=False, cpu_time=True)
    for work in (
        training.fitting("digits_cnn", args, str(tmp_path)),
        training.published_loop("digits_cnn", args),
        training.passes_alone("digits_cnn", args),
    ):
        batches.clear()
        assert work(2 * training.BATCH + 1)[0] == 3 * training.BATCH
        assert batches == [training.BATCH] * 3


def test_a_contender_of_another_process_answers_until_its_orders_end() -> None:
    mine, theirs = Pipe()
    made: list[tuple[str, Any]] = []

    def make(name: str, args: Any) -> Any:
        made.append((name, args))
        return lambda images: (2 * images, 0.5)

    args = Namespace(threads=torch.get_num_threads())
    serving = threading.Thread(target=training._serve, args=(theirs, make, "digits_cnn", args))
    serving.start()
    mine.send(3)
    assert mine.recv() == (6, 0.5)
    mine.send(5)
    assert mine.recv() == (10, 0.5)
    mine.close()
    serving.join()
    assert made == [("digits_cnn", args)]


def test_routed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx(tmp_path, train=64, test=16)
    out = tmp_path / "routed.json"
    routed.main(
        ["mnist_lenet_gaussian_0.25", "mnist_lenet_gaussian_1.0", "--root", str(tmp_path), "--quick", "--out", str(out)]
    )
    found = written(out)
    assert [row["system"] for row in found["routed"]] == [
        "sigma 0.25", "sigma 1", "cascade 0.5", "cascade 0.9", "routed, selector 0.5"
    ]  # fmt: skip
    for row in found["routed"]:
        accuracies = list(row["accuracy"].values())
        assert accuracies == sorted(accuracies, reverse=True)
        assert 0 <= row["ACR"] <= 2
    assert found["n"] == 200
    assert "| - sigma 0.25 |" in capsys.readouterr().out


def test_denoised_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # The packages are installed apart: two networks of which one knows more, on images that need no package.
    rows = torch.zeros(200, 1, 25, 25)
    rows[:100] = 0.6
    networks: dict[str, nn.Module] = {"alone": Brightness(0.3), "behind": Brightness(0.5)}
    monkeypatch.setattr(denoised_faces, "images", lambda: (rows, (torch.arange(200) < 100).long()))
    monkeypatch.setattr(denoised_faces, "networks", lambda sigma: networks)
    out = tmp_path / "faces.json"
    denoised_faces.main(["--quick", "--out", str(out)])
    found = written(out)
    assert [row["network"] for row in found["denoised_faces"]] == ["alone", "behind"]
    assert all(row["images"] == 4 for row in found["denoised_faces"])
    assert all(row["right without noise"] == row["certified"] == 1.0 for row in found["denoised_faces"])
    assert found["n"] == 100
    assert "same images: " in capsys.readouterr().out


class Brightness(nn.Module):
    """Class 1 above a mean grey level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = x.flatten(1).mean(1) - self.level
        return torch.stack([-above, above], 1)


def test_the_training_table_pairs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def row(index: int, hits: int, label: int = 1) -> Certification:
        return from_votes(index, label, [1000 - hits, hits, 0], 0.001)

    votes = {"first": [row(0, 900), row(1, 800), row(2, 800)], "second": [row(0, 950), row(1, 900), row(2, 990, 2)]}
    files = [save(tmp_path / f"{name}.jsonl", records) for name, records in votes.items()]
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"second": {"passes": "2 + 2"}}))
    small, large = votes["first"][0].radius, votes["second"][0].radius
    rows = training_table.main([*map(str, files), "--radii", str(small), "--costs", str(costs)])
    assert [row["passes"] for row in rows] == ["", "2 + 2"]
    gains = [large - small, small - votes["first"][1].radius, -votes["first"][2].radius]
    half = 4.302652729911275 * np.std(gains, ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert [row["less the first"] for row in rows] == ["", f"{np.mean(gains):+.4f} ± {half:.4f}"]
    assert [row[f"at {small:g}"] for row in rows] == ["0.333", "0.667"]
    assert rows[1]["ACR"].startswith(f"{(large + small) / 3:.4f} ±")  # the wrong image counts as 0
    assert "3 images" in capsys.readouterr().out
    other = save(tmp_path / "other.jsonl", votes["first"][:1])
    with pytest.raises(ValueError, match="other must hold the images of first: 1 and 3 records"):
        training_table.read([files[0], other])
