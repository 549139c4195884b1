"""How images are attacked and certificates tested: the configuration, and what it does to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_rs.attacks.assertions import claimed, repeat, run_tests, shortened, verdict, within
from lightning_rs.attacks.base import Attack
from lightning_rs.attacks.directions import uphill_of_evidence
from lightning_rs.attacks.geometry import Geometry
from lightning_rs.attacks.gradient import PGD
from lightning_rs.attacks.pixels import PatchSearch, PixelBracket, PixelGeometry, PixelSearch
from lightning_rs.attacks.search import Search, Victim
from lightning_rs.attacks.splitting import SplittingMoves
from lightning_rs.certificates.subspace import FirstOrderSubspaceL2
from lightning_rs.checks import FloatArray, check_alpha, check_at_least, check_positive
from lightning_rs.engine.streams import fresh_seed
from lightning_rs.noise.ablation import AblationNoise, BandNoise, BlockNoise
from lightning_rs.noise.base import Noise
from lightning_rs.noise.splitting import DeterministicSplittingNoise
from lightning_rs.records import ABSTAIN, Certification
from lightning_rs.records.attacks import SLACK, AttackRecord, ValueTest
from lightning_rs.session import Session
from lightning_rs.smoothed import SmoothedClassifier

# Largest radius that is searched, in units of the noise's sigma, and for l-infinity divided by sqrt(d).
_REACH = {"l1": 40.0, "l2": 8.0, "linf": 16.0}


class Attacker:
    """Attacks certified images: a bracket for each, and a test of what its certificate asserts.

    Where the certificates rest on gradient evidence, such evidence is taken anew, and attacks begin where it points as
    well.

    Args:
        attacks: tried one after another at each radius; None: exact moves for deterministic splitting noise, patches
            for bands and blocks, exchanges of pixels for ablation, projected gradient ascent otherwise.
        copies: noisy copies m of the soft vote that the attacks see.
        rounds: radii tried after the first success, an image.
        max_radius: largest radius tried; None: 8 sigma for l2, 40 sigma for l1, 16 sigma / sqrt(d) for l-infinity, the
            shorter side of the image for patches, half of its pixels for l0.
        screen: votes of a screening.
        n: votes of each confirmation and of each test.
        beta: failure probability of all confirmations and tests of one image.
        rho: probability with which a sound set of certificates may be called contradicted; the ``shared_failure`` of
            its certificate is added to it.
        seed: of the attacks' randomness; confirmations take fresh entropy, which is recorded.
        bracket: look for the smallest adversarial distance; False only tests what certificates assert.
        tests: test what certificates assert: at the image, at random points and at adversarial points of its ball.
        basis: for certificates of a subspace that is not made of coordinates: the ``.npy`` file of its vectors, which
            records name by its content.

    Raises:
        ValueError: for copies, rounds, screen or n < 1, beta or rho outside (0, 1), or a radius that is not positive.
    """

    def __init__(
        self,
        attacks: Sequence[Attack] | None = None,
        copies: int = 32,
        rounds: int = 4,
        max_radius: float | None = None,
        screen: int = 500,
        n: int = 10_000,
        beta: float = 1e-6,
        rho: float = 1e-6,
        seed: int = 0,
        bracket: bool = True,
        tests: bool = True,
        basis: str | None = None,
    ) -> None:
        self.attacks = None if attacks is None else list(attacks)
        self.copies = check_at_least("copies", copies, 1)
        self.rounds = check_at_least("rounds", rounds, 1)
        self.max_radius = None if max_radius is None else float(check_positive("max_radius", max_radius))
        self.screen = check_at_least("screen", screen, 1)
        self.n = check_at_least("n", n, 1)
        self.beta = float(check_alpha(beta, "beta"))
        self.rho = float(check_alpha(rho, "rho"))
        self.seed = int(seed)
        self.bracket = bracket
        self.tests = tests
        self.basis = basis
        if self.attacks is not None and not self.attacks:
            raise ValueError("attacks must be one or more, got none")

    def describe(self) -> dict[str, Any]:
        """Return the configuration as plain values."""
        values = {name: value for name, value in vars(self).items() if name not in ("attacks", "basis")}
        return {**values, "attacks": None if self.attacks is None else [attack.describe() for attack in self.attacks]}

    def vectors(self, norm: str) -> FloatArray | None:
        """Return the vectors of the subspace that a norm names, from :attr:`basis`; None without one.

        Raises:
            ValueError: if the file holds another subspace.
        """
        if self.basis is None:
            return None
        found = FirstOrderSubspaceL2(self.basis)
        if found.norm != norm:
            raise ValueError(f"basis must hold the vectors of {norm!r}, got {self.basis}, which holds {found.norm!r}")
        return found.vectors

    def chosen(self, noise: Noise) -> list[Attack]:
        """Return the attacks for a noise."""
        if self.attacks is not None:
            return self.attacks
        if isinstance(noise, (BandNoise, BlockNoise)):
            return [PatchSearch()]
        if isinstance(noise, AblationNoise):
            return [PixelSearch()]
        return [SplittingMoves()] if isinstance(noise, DeterministicSplittingNoise) else [PGD()]

    def reach(self, noise: Noise, geometry: Geometry, dim: int) -> float:
        """Return the largest radius that is searched."""
        if self.max_radius is not None:
            return self.max_radius
        if isinstance(geometry, PixelGeometry):
            return geometry.reach
        return _REACH[geometry.norm] * noise.sigma / (dim**0.5 if geometry.norm == "linf" else 1.0)

    def victim(self, session: Session, network: torch.nn.Module, geometry: Geometry) -> Victim:
        """Return what is attacked: the network with gradients, the session that certified."""
        smoothed = SmoothedClassifier(
            network, session.noise, self.copies, self.seed, certifier=session.certifier, domain=session.domain,
            grid=session.grid,
        )  # fmt: skip
        return Victim(smoothed, session, geometry)

    def run(self, victim: Victim, records: Sequence[Certification], images: Tensor) -> list[AttackRecord]:
        """Return one attack record an image; those without any class to attack are only listed.

        Args:
            victim: what is attacked, see :meth:`victim`.
            records: the certificates, in the norm of the victim's geometry.
            images: the certified images, (B, *shape).

        Raises:
            ValueError: for a network without gradient, or a norm that an attack cannot search.
        """
        return [record for record, _ in self.run_with_points(victim, records, images)]

    def run_with_points(
        self, victim: Victim, records: Sequence[Certification], images: Tensor
    ) -> list[tuple[AttackRecord, dict[str, Tensor]]]:
        """Return the records and, of each, the points that contradict its certificate, by kind of test."""
        rows = [row for row, record in enumerate(records) if claimed(record) != ABSTAIN]
        found: list[tuple[AttackRecord, dict[str, Tensor]]] = [(_untouched(r), {}) for r in records]
        if not rows:
            return found
        chosen, x = [records[row] for row in rows], images[rows]
        for row, result in zip(rows, self._attacked(victim, chosen, x), strict=True):
            found[row] = result
        return found

    def _attacked(
        self, victim: Victim, records: list[Certification], x: Tensor
    ) -> list[tuple[AttackRecord, dict[str, Tensor]]]:
        session, geometry = victim.session, victim.geometry
        classes = torch.tensor([claimed(record) for record in records], device=x.device)
        radii = np.array([record.radius if record.target is None else record.target for record in records])
        attacks, dim = self.chosen(session.noise), int(x[0].numel())
        parts = 1 + 3 * self.tests
        uphill = uphill_of_evidence(session, x, classes, self.n, self.seed)
        points: dict[str, Tensor] = {}
        tests: list[list[ValueTest]] = [[] for _ in records]
        if self.tests:
            points = self._test_points(victim, x, classes, radii, attacks[0], uphill)
            for kind, at in points.items():
                made = run_tests(session, records, x, at, kind, geometry, self.n, self.beta / parts)
                for own, test in zip(tests, made, strict=True):
                    own.append(test)
        reach = self.reach(session.noise, geometry, dim)
        counted = isinstance(geometry, PixelGeometry)
        bracketing = PixelBracket if counted else Search
        search = bracketing(attacks, self.rounds, reach, self.screen, self.n, self.beta / parts)
        bracket = search.run(victim, x, classes, radii, self.seed, uphill) if self.bracket else None
        results = []
        for row, record in enumerate(records):
            distance = np.inf if bracket is None else float(bracket.distance[row])
            confirmation = None if bracket is None else bracket.confirmation[row]
            bad = {test.kind: points[test.kind][row] for test in tests[row] if test.failed}
            inside = bool(np.isfinite(distance)) and within(record, shortened(distance))
            # A point of the value test that left the class inside the ball is a success as well.
            if bracket is not None and inside:
                bad["found"] = bracket.points[row]
            says, certain = "", False
            repeated: tuple[ValueTest, ...] = ()
            if bad:
                point = next(reversed(bad.values()))
                says, certain = verdict(session, record, x[row], point, 10 * self.n, tests[row])
                repeated = repeat(session, record, x[row], point, geometry, self.n, self.beta / parts)
            results.append(
                (
                    AttackRecord(
                        index=record.index,
                        label=record.label,
                        prediction=claimed(record),
                        stated=record.prediction != ABSTAIN,
                        radius=float(radii[row]) if record.prediction != ABSTAIN else 0.0,
                        norm=record.norm,
                        ball=record.ball,
                        alpha=record.alpha,
                        attacked=float(distance * (1 + SLACK * (not counted))) if np.isfinite(distance) else None,
                        inside=inside,
                        searched=0.0 if bracket is None else float(bracket.searched[row]),
                        confirmation=confirmation,
                        tests=tuple(tests[row]),
                        repeated=repeated,
                        verdict=says,
                        certain=certain,
                    ),
                    {"image": x[row], **bad} if bad else {},
                )
            )
        return results

    def _test_points(
        self, victim: Victim, x: Tensor, classes: Tensor, radii: FloatArray, attack: Attack, uphill: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the points at which assertions are tested: just inside the ball, or at sigma / 2 without one."""
        session, geometry = victim.session, victim.geometry
        flat = x.flatten(1)
        reach = self.reach(session.noise, geometry, flat.shape[1])
        counted = isinstance(geometry, PixelGeometry)
        exact = session.noise.outcomes is not None or counted
        within_ball = radii if exact else radii * (1 - 1e-3)
        outside = max(1.0, 0.05 * reach) if counted else 0.05 * reach
        eps = torch.from_numpy(np.where(radii > 0, within_ball, outside)).to(x.device)
        if exact:
            eps = eps + 1e-9  # the ball is closed
        generator = torch.Generator(device=x.device).manual_seed(fresh_seed() % 2**31)
        spread = geometry.limited(geometry.random(flat, eps.to(flat), generator), flat, eps).view(x.shape)
        # The first attack suffices: the assertion must hold at every point.
        directed = attack(victim.smoothed, x, classes, eps, geometry, self.seed, uphill)
        return {"clean": x, "random": spread, "adversarial": directed}


def _untouched(record: Certification) -> AttackRecord:
    return AttackRecord(
        index=record.index, label=record.label, prediction=ABSTAIN, stated=False, radius=0.0, norm=record.norm,
        ball=record.ball, alpha=record.alpha, attacked=None, inside=False, searched=0.0,
    )  # fmt: skip
