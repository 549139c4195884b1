"""What binds a record file: the function beyond its weights, the images, the checkpoint that ran, the subspace."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn

from lightning_rs.certificates import (
    Certificate,
    FirstOrderSubspaceL2,
    LargestRadius,
    UniformBoxL1,
    UniformTwoClassL1,
    certificate_from_dict,
)
from lightning_rs.certificates.base import describe_certificate
from lightning_rs.certifier import Certifier
from lightning_rs.data import Digits, ImageFolder
from lightning_rs.engine.runtime import Runtime
from lightning_rs.networks import LowResolution, state_dict_sha256
from lightning_rs.networks.behaviour import behaviour
from lightning_rs.noise import GaussianNoise, UniformNoise
from lightning_rs.records import Header, RecordFile, merge, read_records
from lightning_rs.records.header import same_logits
from lightning_rs.report import report
from lightning_rs.stages.certification import checkpoint_source, network_sha256
from tests.data.formats import encoded, folder_images, write_folder
from tests.driving import certify, run, trained
from tests.fakes import certification, header
from tests.training import classifier, trainer

SHAPE = (1, 4, 4)


def dense() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)).eval()


def head(network: nn.Module) -> Header:
    certifier = Certifier(n=10, runtime=Runtime(micro_batch=8))
    described = certifier.session(network, GaussianNoise(0.25), SHAPE).describe()
    return Header.create(json.loads(json.dumps(described)), data={"name": "none"}, indices=range(3), informative={})


class Scaled(nn.Module):
    """The same weights, another function: the factor is in no state dict and changes no label."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.factor


class TestFunction:
    def test_the_same_weights_behind_another_pooling_do_not_resume(self, tmp_path: Path) -> None:
        net = dense()
        one, two = (LowResolution(net, pool) for pool in (1, 2))
        assert state_dict_sha256(one) == state_dict_sha256(two)
        # Average pooling by 2 and then to 2x2 is the same function; by 4 it is not.
        assert head(one).difference(head(two)) == []
        four = LowResolution(net, 4)
        with RecordFile(tmp_path / "run.jsonl", head(one)):
            pass
        with pytest.raises(ValueError, match=r"run\.jsonl was made with .*function\.logits: the network answers"):
            RecordFile(tmp_path / "run.jsonl", head(four))

    def test_a_factor_that_changes_no_label_is_another_function(self) -> None:
        assert head(Scaled(dense(), 1.0)).difference(head(Scaled(dense(), 1.01)))
        assert head(Scaled(dense(), 1.0)).difference(head(Scaled(dense(), 1.0 + 1e-5))) == []

    def test_another_class_is_another_function(self) -> None:
        (told,) = head(dense()).difference(head(Scaled(dense(), 1.0)))[-1:]
        assert "function.class: 'torch.nn.modules.container.Sequential' != 'tests.test_binding.Scaled'" in "".join(
            head(dense()).difference(head(Scaled(dense(), 1.0)))
        )
        assert told

    def test_other_processors_are_not_refused_at_a_rounding_edge(self) -> None:
        logits = behaviour(dense(), SHAPE)
        assert logits is not None
        assert (len(logits), len(logits[0])) == (8, 3)
        largest = max(abs(value) for row in logits for value in row)
        for share, same in ((1.1e-3, True), (3e-3, False)):  # one more unit of what is stored, and three
            moved = [[value + share * largest for value in row] for row in logits]
            assert same_logits(logits, moved) == same
        assert not same_logits(logits, None)
        assert same_logits(None, None)

    def test_looking_leaves_network_and_random_state_alone(self) -> None:
        network = dense().train()
        before, state = state_dict_sha256(network), torch.get_rng_state()
        behaviour(network, SHAPE)
        assert network.training
        assert state_dict_sha256(network) == before
        assert torch.equal(torch.get_rng_state(), state)

    def test_randomness_of_its_own_has_no_fingerprint(self) -> None:
        class Coin(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.rand(len(x), 3)

        assert behaviour(Coin(), SHAPE) is None

    def test_many_classes_are_summed(self) -> None:
        logits = behaviour(nn.Sequential(nn.Flatten(), nn.Linear(16, 1000)), SHAPE)
        assert logits is not None
        assert len(logits[0]) == 16


class TestCheckpoint:
    def test_a_file_is_named_by_its_hash_only_if_it_holds_what_ran(self, tmp_path: Path) -> None:
        network, path = dense(), tmp_path / "x.ckpt"
        torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}}, path)
        ran = checkpoint_source(path, state_dict_sha256(network))
        assert len(ran["sha256"]) == 64
        averaged = dense()
        with torch.no_grad():
            averaged[2].weight += 1e-3  # what a callback that averages puts in place
        other = checkpoint_source(path, state_dict_sha256(averaged))
        assert "sha256" not in other
        assert other["holds"] == state_dict_sha256(network)
        assert "not those that" in other["differs"]
        path.write_bytes(b"damaged")
        assert "sha256" not in checkpoint_source(path, state_dict_sha256(network))

    def test_after_an_averaging_callback_the_record_names_what_ran(self, tmp_path: Path) -> None:
        """Lightning saves the averaged weights beside the current ones, and puts averages in place when fit ends."""
        model, data = classifier("mlp", network_args={"hidden_sizes": [8]}), Digits(max=2)
        saved = ModelCheckpoint(dirpath=tmp_path, filename="last", save_weights_only=False)
        callbacks = [EMAWeightAveraging(decay=0.9), saved]
        fit = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, limit_train_batches=3)
        fit.fit(model, datamodule=data)
        path = Path(saved.best_model_path)
        held = network_sha256(path)
        # Lightning's callback and the file agree or do not, release by release: the record must say what ran.
        for ckpt_path in (path, None):
            records = tmp_path / f"{ckpt_path is None}.jsonl"
            fit.certify(model, data, Certifier(n0=8, n=32, runtime=Runtime(threads=1)), ckpt_path, records)
            head = read_records(records)[0]
            named, ran = head.informative["checkpoint"], head.binding["classifier"]
            assert ran == state_dict_sha256(model.network)
            assert ("sha256" in named) == (ckpt_path is not None and held == ran)
            assert ("differs" in named) == (ckpt_path is not None and held != ran)
            assert named.get("holds", held) == held
        # Other weights under the same name: what a callback that swaps on loading does.
        with torch.no_grad():
            next(model.network.parameters()).add_(1e-3)
        assert "differs" in checkpoint_source(path, state_dict_sha256(model.network))


class TestImages:
    def test_images_inverted_on_disk_are_another_experiment(self, tmp_path: Path) -> None:
        """More images than the data set's fingerprint looks at; the one that changes is recorded already."""
        root = write_folder(tmp_path / "images", folder_images(count=20, size=8))
        model = classifier("mlp", network_args={"hidden_sizes": [4]}, shape=(3, 8, 8), grid=255)

        def certify_folder() -> int:
            data = ImageFolder(root=root, image_size=8, max=40, num_workers=0)
            certifier = Certifier(n0=4, n=16, runtime=Runtime(threads=1))
            return len(trainer(tmp_path).certify(model, data, certifier, records=tmp_path / "run.jsonl"))

        assert certify_folder() == 40
        before = (tmp_path / "run.jsonl").read_bytes()
        (tmp_path / "run.jsonl").write_bytes(before[: before.rindex(b"\n", 0, -1) + 1])
        assert certify_folder() == 40, "the same images go on"
        assert (tmp_path / "run.jsonl").read_bytes() == before
        inverted = root / "test" / "dog" / "011.png"
        inverted.write_bytes(encoded(255 - np.asarray(Image.open(inverted)), "PNG"))
        with pytest.raises(ValueError, match=r"image 31 of images is another one now than the one recorded there"):
            certify_folder()
        assert (tmp_path / "run.jsonl").read_bytes() == before

    def test_other_images_on_disk_do_not_resume(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "run.jsonl"
        assert certify(out, n=50, max=3) == 0
        binding = read_records(out)[0].binding
        assert binding["function"]["arguments"]["network"] == "mlp"
        assert "sha256" in read_records(out)[0].informative["checkpoint"]
        assert certify(out, n=50, max=3) == 0, "the same images go on"
        index, image = [(r.index, r.image) for r in read_records(out)[1]][1]
        out.write_text(out.read_text().replace(image, "0" * 64))
        capsys.readouterr()
        assert certify(out, n=50, max=3) == 2
        error = capsys.readouterr().err
        assert f"{out}: image {index} of " in error
        assert "is another one now than the one recorded there" in error

    def test_predictions_name_what_predicted(self, tmp_path: Path) -> None:
        words = [f"--ckpt_path={trained()}", "--data.init_args.max=2", "--certifier.init_args.n=50"]
        assert run("predict", *words, f"--trainer.default_root_dir={tmp_path}") == 0
        with open(next(tmp_path.rglob("predictions.csv")), newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2
        for row in rows:
            assert len(row["classifier"]) == 64
            assert json.loads(row["noise"]) == {"class": "GaussianNoise", "sigma": 0.3}
            assert json.loads(row["runtime"])["precision"] == "32-true"

    def test_pairing_and_merging_see_other_images(self, tmp_path: Path) -> None:
        paths = []
        for name, image in (("a", "0" * 64), ("b", "1" * 64)):
            paths.append(tmp_path / f"{name}.jsonl")
            with RecordFile(paths[-1], header()) as file:
                file.append([certification(0, image=image)])
        with pytest.raises(ValueError, match=r"image 0 is in both .*, and another image there \(its SHA-256 differs\)"):
            merge(paths, tmp_path / "out.jsonl")
        with pytest.raises(ValueError, match=r"image 0 must be the same to be paired, but .*a\.jsonl and .*b\.jsonl"):
            report(paths, paired=True)


class TestCertificates:
    def test_a_subspace_is_bound_by_its_content(self, tmp_path: Path) -> None:
        def saved(name: str, rows: np.ndarray) -> FirstOrderSubspaceL2:
            np.save(tmp_path / name, rows)
            return FirstOrderSubspaceL2(str(tmp_path / name))

        one, copied, other = (saved(f"{i}.npy", np.eye(4)[i % 2 : i % 2 + 2]) for i in (0, 2, 1))
        assert one == copied
        assert describe_certificate(one) == describe_certificate(copied)
        assert one != other
        assert one.norm != other.norm
        assert one.name != other.name
        assert one.norm.startswith("l2:subspace-")
        again = certificate_from_dict(describe_certificate(one))
        assert again == one
        assert again.norm == one.norm
        # The file may change after the certificate was made: what was read is what counts.
        np.save(tmp_path / "0.npy", np.eye(4)[2:])
        assert one == copied

    def test_the_largest_radius_forwards_domain_and_ball(self) -> None:
        class Closed(UniformTwoClassL1):
            ball = "closed"
            norm = "l1:box"

        class Shut(UniformBoxL1):
            ball = "closed"

        parts: list[Certificate] = [Closed(), Shut()]
        joint = LargestRadius(parts)
        assert (joint.ball, joint.domain) == ("closed", (0.0, 1.0))
        with pytest.raises(ValueError, match=r"must lie in \[0"):
            Certifier([joint], n=10).certify(dense(), UniformNoise(1.0), torch.full((1, *SHAPE), 1.5))

        class Elsewhere(Closed):
            domain = (-1.0, 1.0)

        with pytest.raises(ValueError, match="certificates must share one domain"):
            LargestRadius([Shut(), Elsewhere()])


def test_the_header_of_a_record_is_whole() -> None:
    made: dict[str, Any] = dict(head(dense()).binding)
    assert made["function"].keys() == {"class", "logits"}
    assert dataclasses.replace(head(dense()), informative={"x": 1}).difference(head(dense())) == []
