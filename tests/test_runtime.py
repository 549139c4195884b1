"""How a network is prepared: what ran is what is described, and the original is left alone."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import PreparedNetwork, Probe, Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.evidence import Votes
from lightning_rs.networks.checkpoints import state_dict_sha256
from lightning_rs.networks.normalize import Normalize
from lightning_rs.noise.gaussian import GaussianNoise
from tests.helpers import HalfSpace, tiny_cnn

SHAPE = (2, 6, 6)


def images(count: int = 4) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def rows_of(prepared: PreparedNetwork, seed: int = 1) -> Tensor:
    """One micro-batch of noisy inputs in the engine's order."""
    noisy = torch.rand(prepared.micro_batch, *prepared.shape, generator=torch.Generator().manual_seed(seed))
    return prepared.flatten(noisy)


def probe(network: nn.Module, **runtime: Any) -> Probe:
    prepared = Runtime(**{"micro_batch": 64, **runtime}).prepare(network, SHAPE)
    return prepared.probe(network, rows_of(prepared))


class OverTheBatch(nn.Module):
    """Normalises over the batch, as BatchNorm does in training mode: a sample depends on its companions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return (logits - logits.mean(0)) / logits.std(0)


class ByPosition(nn.Module):
    """Adds a little to the last rows of a batch: a sample depends on where it stands."""

    def __init__(self, network: nn.Module, size: float = 1e-3) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits + self.size * (torch.arange(len(x)) >= len(x) - 3)[:, None] * torch.tensor([1.0, 0.0, 0.0])


class Shape(nn.Module):
    """Returns whatever a function makes of its input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class TestLogits:
    @pytest.mark.parametrize(("channels_last", "fold"), list(itertools.product([True, False], [True, False])))
    def test_layout_and_folding_do_not_change_what_is_computed(self, channels_last: bool, fold: bool) -> None:
        network = tiny_cnn()
        prepared = Runtime(micro_batch=8, channels_last=channels_last, fold=fold).prepare(network, SHAPE)
        x = images(8)
        torch.testing.assert_close(prepared.logits(prepared.flatten(x)), network(x), rtol=1e-4, atol=1e-4)
        assert prepared.labels(prepared.flatten(x)).tolist() == network(x).argmax(1).tolist()

    def test_normalisation_inside_the_network_is_folded_exactly(self) -> None:
        network = nn.Sequential(Normalize((0.4, 0.6), (0.2, 0.3)), tiny_cnn()).eval()
        prepared = Runtime(micro_batch=8).prepare(network, SHAPE)
        x = images(8)
        torch.testing.assert_close(prepared.logits(prepared.flatten(x)), network(x), rtol=1e-4, atol=1e-4)

    def test_flat_inputs_work(self) -> None:
        network = HalfSpace(torch.ones(5), offset=1.0)
        prepared = Runtime(micro_batch=4).prepare(network, (5,))
        x = torch.rand(4, 5)
        assert prepared.order is None
        assert not prepared.describe()["channels_last"]
        torch.testing.assert_close(prepared.logits(prepared.flatten(x)), network(x))

    def test_flatten_puts_coordinates_where_order_says(self) -> None:
        prepared = Runtime(micro_batch=4).prepare(tiny_cnn(), SHAPE)
        x = images(3)
        assert prepared.order is not None
        assert torch.equal(prepared.flatten(x), x.flatten(1)[:, prepared.order])
        assert torch.equal(prepared.flatten(x), x.permute(0, 2, 3, 1).flatten(1))

    def test_ties_go_to_the_lowest_class(self) -> None:
        prepared = Runtime(micro_batch=4).prepare(Shape(lambda x: x.new_zeros(len(x), 5)), (3,))
        assert prepared.labels(prepared.buffer()).tolist() == [0, 0, 0, 0]

    def test_bf16_runs_in_bf16(self) -> None:
        seen: list[torch.dtype] = []

        def record(x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return x[:, :2]

        for precision, dtype in (("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)):
            prepared = Runtime(precision=precision, micro_batch=4).prepare(Shape(record), (3,))  # type: ignore[arg-type]
            assert prepared.dtype == dtype
            assert seen[-1] == dtype
            assert prepared.logits(prepared.buffer()).dtype == torch.float32

    def test_bf16_mixed_multiplies_in_bf16(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
        x = images(4)
        exact, mixed = (
            prepared.logits(prepared.flatten(x))
            for prepared in (
                Runtime(precision=p, micro_batch=4).prepare(network, SHAPE) for p in ("32-true", "bf16-mixed")
            )  # type: ignore[arg-type]
        )
        with torch.autocast("cpu", torch.bfloat16):
            expected = network(x).float()
        assert torch.equal(mixed, expected)
        assert not torch.equal(mixed, exact)


class TestOriginal:
    @pytest.mark.parametrize("training", [True, False])
    def test_the_network_is_left_untouched(self, training: bool) -> None:
        network = tiny_cnn().train(training)
        before, layers = copy.deepcopy(network.state_dict()), [type(m) for m in network.modules()]
        runtime = Runtime(precision="bf16-true", micro_batch=16)
        Certifier(n0=10, n=50, runtime=runtime).certify(network, GaussianNoise(0.5), images())
        assert network.training == training
        assert all(module.training == training for module in network.modules())
        assert [type(m) for m in network.modules()] == layers
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
        after = network.state_dict()
        assert all(
            torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
        )
        assert network[0].weight.is_contiguous()

    def test_a_network_in_training_mode_is_run_in_evaluation_mode(self) -> None:
        network = nn.Sequential(nn.Dropout(0.9), tiny_cnn()).train()
        prepared = Runtime(micro_batch=8).prepare(network, SHAPE)
        x = prepared.flatten(images(8))
        assert torch.equal(prepared.logits(x), prepared.logits(x))
        torch.testing.assert_close(prepared.logits(x), tiny_cnn()(images(8)), rtol=1e-4, atol=1e-4)

    def test_later_training_does_not_reach_the_prepared_copy(self) -> None:
        network = tiny_cnn()
        prepared = Runtime(micro_batch=4).prepare(network, SHAPE)
        before = prepared.logits(prepared.flatten(images()))
        with torch.no_grad():
            network[0].weight.zero_()
        assert torch.equal(prepared.logits(prepared.flatten(images())), before)

    def test_the_global_generator_and_the_thread_count_are_left_alone(self) -> None:
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        Certifier(n0=10, n=50).certify(tiny_cnn(), GaussianNoise(0.5), images())
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads


class TestProbe:
    def test_fp32_agrees_with_itself(self) -> None:
        assert probe(tiny_cnn(), channels_last=False, fold=False) == Probe(0.0, True, 0.0, 64)

    @pytest.mark.parametrize("runtime", [{}, {"fold": False}, {"channels_last": False}])
    def test_folding_and_layout_change_no_label_here(self, runtime: dict[str, Any]) -> None:
        seen = probe(tiny_cnn(), **runtime)
        assert seen.changed == 0
        assert seen.invariant
        assert seen.rows == 64

    def test_the_share_of_changed_labels_is_what_a_direct_comparison_gives(self) -> None:
        # Logits that differ by less than bf16 can tell: many labels change.
        network = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
        with torch.no_grad():
            network[1].weight[1] = network[1].weight[0] + 1e-3 * torch.randn(
                72, generator=torch.Generator().manual_seed(0)
            )
            network[1].bias.zero_()
        prepared = Runtime(precision="bf16-true", micro_batch=256).prepare(network, SHAPE)
        rows = rows_of(prepared)
        assert prepared.order is not None
        chw = torch.empty_like(rows).index_copy_(1, prepared.order, rows).view(-1, *SHAPE)
        expected = (network(chw).argmax(1) != prepared.labels(rows.bfloat16())).float().mean()
        seen = prepared.probe(network, rows)
        assert seen.changed == pytest.approx(float(expected))
        assert 0.01 < seen.changed < 0.9

    def test_companions_that_matter_are_detected(self) -> None:
        with pytest.raises(ValueError, match=r"one fixed function of one row, but its logits move by .* companions"):
            probe(OverTheBatch(tiny_cnn()))

    @pytest.mark.parametrize("size", [4e-5, 1e-5])
    def test_positions_that_matter_are_detected_and_measured(self, size: float) -> None:
        seen = probe(ByPosition(tiny_cnn(), size))
        assert not seen.invariant
        assert seen.deviation == pytest.approx(size, rel=0.1)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_logits_that_are_not_finite_are_refused(self, value: float) -> None:
        network = tiny_cnn()
        with torch.no_grad():
            network[4].bias[1] = value
        with pytest.raises(ValueError, match="the network gives NaN or infinite logits at precision 32-true"):
            probe(network)
        certifier = Certifier(n0=10, n=20)
        with pytest.raises(ValueError, match="NaN or infinite logits"):
            certifier.certify(network, GaussianNoise(0.5), images())
        with pytest.raises(ValueError, match="NaN or infinite logits"):
            certifier.session(network, GaussianNoise(0.5), SHAPE).predict(images(), n=20)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_logits_that_stop_being_finite_are_refused(self, threads: int) -> None:
        class FailsOnBright(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = tiny_cnn()

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x) / (x.mean((1, 2, 3)) < 50)[:, None]

        session = Certifier(n0=10, n=200, runtime=Runtime(threads=threads)).session(
            FailsOnBright(), GaussianNoise(0.1), SHAPE, domain=(0.0, 100.0)
        )
        assert len(list(session.certify(images(2)))) == 2
        bright = torch.full((1, *SHAPE), 100.0)
        with pytest.raises(ValueError, match="the network gives NaN or infinite logits at precision 32-true"):
            list(session.certify(bright, indices=[2]))
        with pytest.raises(ValueError, match="NaN or infinite logits"):
            session.predict(bright, n=20)
        assert len(list(session.certify(images(2)))) == 2, "the session can go on"

    def test_a_device_is_asked_once_a_group(self) -> None:
        session = Certifier(n0=10, n=20).session(tiny_cnn(), GaussianNoise(0.1), SHAPE)
        session.probe(images())
        session.prepared._finite.fill_(False)  # what a GPU notes without being waited for
        with pytest.raises(ValueError, match="NaN or infinite logits"):
            list(session.certify(images(1)))
        with pytest.raises(ValueError, match="NaN or infinite logits"):
            session.predict(images(1), n=20)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"precision": "64-true"}, "precision must be one of '32-true', .* got '64-true'"),
            ({"precision": "bf16"}, "precision must be one of .* got 'bf16'"),
            ({"micro_batch": 1}, "micro_batch must be a whole number >= 2, got 1"),
            ({"micro_batch": "large"}, "micro_batch must be one of 'auto', 'tune', got 'large'"),
            ({"micro_batch": 2.5}, "micro_batch must be a whole number >= 2, got 2.5"),
            ({"threads": 0}, "threads must be a whole number >= 1, got 0"),
        ],
    )
    def test_unknown_settings(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Runtime(**arguments)

    @pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
    def test_precisions_that_the_device_does_not_support(self, precision: Any) -> None:
        with pytest.raises(ValueError, match=f"precision '{precision}' is not supported on the CPU: use 32-true, bf16"):
            Runtime(precision=precision).prepare(tiny_cnn(), SHAPE)

    @pytest.mark.parametrize(
        "network", [tiny_cnn(), nn.Linear(3, 2), nn.Sequential(nn.Flatten(), nn.BatchNorm2d(7), nn.Linear(7, 2))]
    )
    def test_inputs_of_a_shape_that_the_network_does_not_take(self, network: nn.Module) -> None:
        with pytest.raises(ValueError, match=r"the network does not accept inputs of shape \(1, 5, 5\)"):
            Runtime(fold=False).prepare(network, (1, 5, 5))

    @pytest.mark.parametrize(
        ("function", "seen"),
        [
            (lambda x: x.view(len(x), 1, -1), r"shape \(2, 1, 4\)"),
            (lambda x: x.sum(), r"shape \(\)"),
            (lambda x: x.view(-1, 2), r"shape \(4, 2\)"),
            (lambda x: x[:1], r"shape \(1, 4\)"),
            (lambda x: x[:, :1], r"shape \(2, 1\)"),
            (lambda x: (x, x), "tuple"),
            (lambda x: {"logits": x}, "dict"),
        ],
    )
    def test_outputs_that_are_not_logits(self, function: Callable[[Tensor], Any], seen: str) -> None:
        with pytest.raises(
            ValueError, match=rf"must map \(m, \*shape\) to logits \(m, C\), C >= 2, got {seen} for m = 2"
        ):
            Runtime().prepare(Shape(function), (4,))


class TestCompile:
    def test_a_failure_falls_back_with_one_warning_and_is_recorded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no C++ compiler found\nand a long trace")

        self._falls_back(broken, monkeypatch, "no C++ compiler found")

    def test_a_failure_at_the_first_call_falls_back_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(network: nn.Module, **_: Any) -> Any:
            def fail(_: Tensor) -> Tensor:
                raise AssertionError

            return fail

        self._falls_back(broken, monkeypatch, "AssertionError")

    def _falls_back(self, broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
        monkeypatch.setattr(torch, "compile", broken)
        with pytest.warns(UserWarning, match="torch.compile failed and the network runs eagerly") as caught:
            prepared = Runtime(compile=True, micro_batch=8).prepare(tiny_cnn(), SHAPE)
        assert len(caught) == 1
        assert str(caught[0].message).endswith(reason)
        assert prepared.remarks == [f"compile failed, running eagerly: {reason}"]
        assert prepared.describe()["compiled"] is False
        eager = Runtime(micro_batch=8).prepare(tiny_cnn(), SHAPE)
        x = prepared.flatten(images(8))
        assert torch.equal(prepared.logits(x), eager.logits(x))
        assert prepared.describe() == eager.describe()

    def test_success_is_recorded_and_its_result_is_what_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shapes: list[tuple[int, ...]] = []

        def compiler(network: nn.Module, fullgraph: bool, dynamic: bool) -> Callable[[Tensor], Tensor]:
            assert not dynamic

            def run(x: Tensor) -> Tensor:
                shapes.append(tuple(x.shape))
                return network(x) * (1 + 2**-12)  # as rounding may move it

            return run

        monkeypatch.setattr(torch, "compile", compiler)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepared = Runtime(compile=True, micro_batch=8).prepare(tiny_cnn(), SHAPE)
        eager = Runtime(micro_batch=8, fuse=False).prepare(tiny_cnn(), SHAPE)
        x = prepared.flatten(images(8))
        assert prepared.describe() == {**eager.describe(), "compiled": True}
        assert torch.equal(prepared.logits(x), eager.logits(x) * (1 + 2**-12))
        assert set(shapes) == {(8, *SHAPE)}  # one shape: nothing is compiled twice

    def test_what_compiling_would_change_runs_eagerly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "compile", lambda network, **_: lambda x: -network(x))
        with pytest.warns(UserWarning, match="torch.compile failed .* it must give the same logits"):
            prepared = Runtime(compile=True, micro_batch=8).prepare(tiny_cnn(), SHAPE)
        assert not prepared.compiled

    @pytest.mark.slow
    def test_the_real_compiler_gives_the_same_labels(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepared = Runtime(compile=True, micro_batch=64).prepare(tiny_cnn(), SHAPE)
        if not prepared.compiled:
            pytest.skip(prepared.remarks[-1])
        seen = prepared.probe(tiny_cnn(), rows_of(prepared))
        assert seen.changed == 0
        assert seen.invariant

    def test_a_remark_about_something_else_does_not_deny_compilation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)
        prepared = Runtime(compile=True, micro_batch=8, fold=False).prepare(tiny_cnn(), SHAPE)
        prepared.remarks.append("not folded, since torch.fx cannot trace a compiled layer")
        assert prepared.describe()["compiled"] is True


class TestMicroBatch:
    @pytest.mark.parametrize(("asked", "size"), [(2, 2), (7, 8), (64, 64)])
    def test_is_even_so_that_pairs_stay_together(self, asked: int, size: int) -> None:
        assert Runtime(micro_batch=asked).prepare(tiny_cnn(), SHAPE).micro_batch == size
        assert Runtime().prepare(tiny_cnn(), SHAPE, micro_batch=asked).micro_batch == size

    def test_auto_depends_on_the_input_size_only(self) -> None:
        sizes = {
            shape: Runtime().prepare(Shape(lambda x: x.flatten(1)[:, :2]), shape).micro_batch
            for shape in ((2,), (1, 28, 28), (3, 32, 32), (3, 224, 224))
        }
        assert sizes == {(2,): 2048, (1, 28, 28): 256, (3, 32, 32): 64, (3, 224, 224): 32}

    def test_tune_takes_the_fastest_candidate_and_records_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried: list[int] = []

        def rate(self: PreparedNetwork, size: int) -> float:
            tried.append(size)
            return -abs(size - 250)

        monkeypatch.setattr(PreparedNetwork, "_rate", rate)
        prepared = Runtime(micro_batch="tune").prepare(tiny_cnn(), SHAPE)
        assert len(tried) > 3
        assert prepared.micro_batch == prepared.describe()["micro_batch"] == 256
        # A record that is resumed dictates its size; nothing is timed again.
        tried.clear()
        assert Runtime(micro_batch="tune").prepare(tiny_cnn(), SHAPE, micro_batch=64).micro_batch == 64
        assert not tried

    def test_tune_really_times(self) -> None:
        prepared = Runtime(micro_batch="tune").prepare(HalfSpace(torch.ones(3)), (3,))
        assert prepared.micro_batch in (32, 64, 128, 256, 512, 1024, 2048, 4096)

    def test_tune_survives_a_candidate_that_does_not_fit(self) -> None:
        def hungry(x: Tensor) -> Tensor:
            if len(x) > 100:
                raise torch.OutOfMemoryError
            return x[:, :2]

        assert Runtime(micro_batch="tune").prepare(Shape(hungry), (3,)).micro_batch <= 64

    def test_the_network_only_ever_sees_one_shape(self) -> None:
        seen: list[int] = []

        def spy(x: Tensor) -> Tensor:
            seen.append(len(x))
            return x[:, :2]

        prepared = Runtime(micro_batch=16).prepare(Shape(spy), (3,))
        seen.clear()
        sampler = Sampler(prepared, GaussianNoise(1.0), "x", 0)
        found = sampler.collect(torch.zeros(3, 3), range(3), "estimation", 21, [Votes])[Votes]
        assert isinstance(found, Votes)
        assert set(seen) == {16}
        assert found.counts.sum(1).tolist() == [21, 21, 21]  # padding is not counted

    def test_padding_does_not_change_counts(self) -> None:
        # 3 x 21 samples leave padding in the last micro-batch; the stale rows there all vote for class 2.
        network = HalfSpace(torch.ones(3), offset=0.3)
        prepared = Runtime(micro_batch=16).prepare(network, (3,))
        clean, dirty = Sampler(prepared, GaussianNoise(1.0), "x", 0), Sampler(prepared, GaussianNoise(1.0), "x", 0)
        for slot in dirty._slots:
            slot.inputs.fill_(1e6)
        counts = []
        for sampler in (clean, dirty):
            found = sampler.collect(torch.zeros(3, 3), range(3), "estimation", 21, [Votes])[Votes]
            assert isinstance(found, Votes)
            counts.append(found.counts.tolist())
        assert counts[0] == counts[1]


class TestDescription:
    @pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
    def test_says_what_ran(self, precision: Any) -> None:
        prepared = Runtime(precision=precision, micro_batch=10, threads=1).prepare(tiny_cnn(), SHAPE)
        fusible = precision == "32-true" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert prepared.describe() == {
            "precision": precision,
            "channels_last": True,
            "folded": True,
            "fused": fusible,
            "compiled": False,
            "micro_batch": 10,
            "device": "cpu",
        }
        assert any("layers not fused" in remark for remark in prepared.remarks) == (not fusible)

    def test_threads_are_not_part_of_it_because_results_do_not_depend_on_them(self) -> None:
        one, two = (Runtime(threads=t, micro_batch=8).prepare(tiny_cnn(), SHAPE) for t in (1, 2))
        assert one.describe() == two.describe()
        assert (one.workers.count, two.workers.count) == (1, 2)

    def test_the_fingerprint_is_that_of_the_original(self) -> None:
        network = tiny_cnn()
        session = Certifier(n0=5, n=10).session(network, GaussianNoise(0.5), SHAPE)
        assert session.classifier == state_dict_sha256(network)


@pytest.mark.parametrize("precision", ["32-true", "int8"])
def test_a_session_of_another_micro_batch_is_the_one_that_begins_with_it(precision: Any) -> None:
    made = Certifier(n0=20, n=500, runtime=Runtime(precision=precision, threads=1))
    small, right = (
        made.session(tiny_cnn(), GaussianNoise(0.25), SHAPE, micro_batch=size, grid=255) for size in (2, 64)
    )
    list(small.certify(torch.full((1, *SHAPE), 0.2)))  # what was prepared and probed before is forgotten
    small.resize(64)
    assert small.describe() == right.describe()
    x = torch.randint(256, (3, *SHAPE), generator=torch.Generator().manual_seed(1)) / 255
    records = [[record.to_json() for record in session.certify(x)] for session in (small, right)]
    assert records[0] == records[1]
    assert small.probed == right.probed
