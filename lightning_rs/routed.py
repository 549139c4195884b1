"""Classifiers made of several smoothed ones: a smoothed selector that chooses an expert, and cascades of noise levels.

Small noise certifies small radii for many images, large noise large radii for few. A routed classifier has both: it
asks, for every image, the expert that a smoothed selector names. The selector must be smoothed: a plain choice of sigma
by the image is not constant around it, and certificates of the chosen noise would be void.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_rs.certifier import Certifier
from lightning_rs.checks import check_alpha
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.records import ABSTAIN, Certification, Certifications
from lightning_rs.records.combination import Part, combine_records, selector_distances
from lightning_rs.session import image_shape
from lightning_rs.smoothed import SmoothedClassifier
from lightning_rs.statistics.binomial import clopper_pearson_lower, clopper_pearson_upper

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class AtSigma(nn.Module):
    """A network that is told the noise, at one noise: ``network(x, sigma)`` as ``f(x)``, to be an expert.

    Args:
        network: maps (m, *shape) and the noise of each row, (m,), to logits (m, C).
        sigma: the noise, in input units. It is part of the state, so that experts at different noise are different.
    """

    sigma: Tensor

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("sigma", torch.tensor(float(sigma)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the network at this noise, (m, C)."""
        return self.network(x, self.sigma.to(x.dtype).expand(len(x)))


@dataclass(frozen=True)
class RoutedPredictions:
    """The abstaining prediction of a routed classifier or a cascade.

    Attributes:
        prediction: class, (B,), or -1 where it abstains.
        route: the expert or level that answered, (B,), or -1 where that is not sure.
    """

    prediction: IntArray
    route: IntArray


class RoutedClassifier:
    """h(x) = g_{s(x)}(x): a smoothed selector s chooses among smoothed experts g_1, ..., g_K.

    Certified radius ``min_k max(R_k, d_k)`` (:func:`~lightning_rs.functional.routed_radius`), R_k the radius within
    which expert k gives the answer of the selected one, d_k the distance before which the selector cannot choose it.
    Experts have their own network and their own noise, or share one that is told the noise (:class:`AtSigma`). A plain
    ``nn.Module`` is an uncertified expert: R_k = 0, and images that are routed to it have no certificate (ACES, Horvath
    et al. 2022).

    alpha is shared before anything is sampled: by default three tenths for the selector, half for the expert that its
    selection samples name, the rest in equal parts for the other certified ones, asked or not. Experts that cannot
    matter, because the selector is far from choosing them, are not asked.

    Args:
        selector: smoothed by Gaussian noise; its class k is the k-th expert.
        experts: smoothed classifiers with an l2 certificate, or plain networks, one for each route.
        alpha: failure probability of the whole statement about one image.
        shares: of the selector, the selected expert and all others together; they sum to at most 1.

    Raises:
        ValueError: for fewer than two experts, no certified one, another noise than Gaussian, a certificate in another
            norm, a budget that only decides, a selector without fixed n, or shares that are not positive or exceed 1.
    """

    def __init__(
        self,
        selector: SmoothedClassifier,
        experts: Sequence[SmoothedClassifier | nn.Module],
        alpha: float = 0.001,
        shares: tuple[float, float, float] = (0.3, 0.5, 0.2),
    ) -> None:
        if len(experts) < 2 or not any(isinstance(expert, SmoothedClassifier) for expert in experts):
            raise ValueError(f"experts must be two or more, at least one of them smoothed, got {len(experts)}")
        if not (min(shares) > 0 and math.fsum(shares) <= 1 + 1e-12):
            raise ValueError(f"shares must be > 0 and sum to at most 1, got {shares}")
        _check_fixed(selector, "selector")
        for k, expert in enumerate(experts):
            if isinstance(expert, SmoothedClassifier):
                _check_l2(expert, f"experts[{k}]")
        self.selector, self.experts = selector, list(experts)
        self.alpha = float(check_alpha(alpha))
        self.shares = shares
        self._members: dict[tuple[int, float], SmoothedClassifier] = {}

    def certify(
        self,
        images: Tensor,
        labels: Sequence[int] | Tensor | None = None,
        indices: Sequence[int] | Tensor | None = None,
    ) -> Certifications:
        """Return one certification an image; ``extra["parts"]`` holds those of the selector and of the experts asked.

        Args:
            images: clean inputs, (B, *shape).
            labels: true classes, (B,), if known.
            indices: the data set's own indices, (B,); default 0, 1, ...

        Raises:
            ValueError: for bad images, or a selector with another number of classes than there are experts.
        """
        selector = self._member(-1, self.shares[0] * self.alpha)
        session = selector.session(image_shape(images))
        if session.prepared.num_classes != len(self.experts):
            raise ValueError(
                f"selector must have one class an expert, {len(self.experts)}, got {session.prepared.num_classes}"
            )
        part = _part(selector, selector.certify(images, labels, indices), image_shape(images))
        _, away = selector_distances(part)
        asked = _Asked(self, images, labels, indices, part.top)
        asked.ask_selected()
        asked.ask_others(away)
        experts = [Part(records) for records in asked.records]
        return Certifications(combine_records("routed", None, [part, *experts], self.alpha))

    def predict(
        self, images: Tensor, n: int = 1000, alpha: float = 0.001, seed: int | None = None
    ) -> RoutedPredictions:
        """Return the routed class, or ABSTAIN where the selector or the expert abstains.

        With probability at least 1 - alpha an image has ABSTAIN or the class of the exact routed classifier: half of
        alpha for either test (:meth:`lightning_rs.session.Session.predict`). The answer of an uncertified expert is its
        network's on the clean image.

        Args:
            images: clean inputs, (B, *shape).
            n: samples an image and classifier.
            alpha: failure probability an image.
            seed: names the random streams; None draws fresh entropy, which an adaptive attacker cannot foresee.
        """
        level = 0.5 * float(check_alpha(alpha))
        route = self.selector.predict(images, n, level, seed).prediction
        prediction = np.full(len(images), ABSTAIN, dtype=np.int64)
        for k, expert in enumerate(self.experts):
            (rows,) = np.nonzero(route == k)
            if not len(rows):
                continue
            chosen = images[torch.from_numpy(rows).to(images.device)]
            if isinstance(expert, SmoothedClassifier):
                prediction[rows] = expert.predict(chosen, n, level, None if seed is None else seed + 1).prediction
            else:
                prediction[rows] = _plain_answer(expert, chosen)
        return RoutedPredictions(prediction, route)

    def _member(self, k: int, alpha: float) -> SmoothedClassifier:
        """Return an expert, or the selector (-1), that certifies at a share of alpha."""
        if (k, alpha) not in self._members:
            own = self.selector if k < 0 else self.experts[k]
            assert isinstance(own, SmoothedClassifier)
            self._members[k, alpha] = _at(own, alpha)
        return self._members[k, alpha]

    def _certified(self, k: int) -> bool:
        return isinstance(self.experts[k], SmoothedClassifier)

    def _others(self, k: int) -> int:
        """Return how many certified experts there are beside one."""
        return sum(self._certified(other) for other in range(len(self.experts)) if other != k)


class _Asked:
    """Which experts were asked about which images, and what they said."""

    def __init__(
        self,
        routed: RoutedClassifier,
        images: Tensor,
        labels: Sequence[int] | Tensor | None,
        indices: Sequence[int] | Tensor | None,
        route: IntArray,
    ) -> None:
        self.routed, self.images, self.route = routed, images, route
        self.labels = None if labels is None else [int(label) for label in labels]
        self.indices = list(range(len(images))) if indices is None else [int(index) for index in indices]
        self.records: list[list[Certification | None]] = [[None] * len(images) for _ in routed.experts]

    def ask_selected(self) -> None:
        """Ask about every image the expert that the selector chose."""
        for k in range(len(self.routed.experts)):
            shares = self.routed.shares
            # Where nobody else can be asked, the share of the others is the selected one's.
            share = shares[1] + (0.0 if self.routed._others(k) else shares[2])
            self._ask(k, np.flatnonzero(self.route == k), share)

    def ask_others(self, away: FloatArray) -> None:
        """Ask the others in the order of their distance, while that is below what is certified so far."""
        chosen = [self.records[k][row] for row, k in enumerate(self.route.tolist())]
        radius = np.array([0.0 if record is None else record.radius for record in chosen])
        top = np.array([ABSTAIN if record is None else record.prediction for record in chosen])
        order = np.argsort(away, axis=1, kind="stable")
        for place in range(away.shape[1]):
            for k in range(away.shape[1]):
                distance = away[:, k]
                rows = np.flatnonzero((order[:, place] == k) & (self.route != k) & (distance < radius))
                share = self.routed.shares[2]
                for other in range(away.shape[1]):  # what an expert may spend depends on whom the selector chose
                    some = rows[self.route[rows] == other]
                    self._ask(k, some, share / max(1, self.routed._others(other)))
                for row in rows.tolist():
                    said = self.records[k][row]
                    own = said.radius if said is not None and said.prediction == top[row] else 0.0
                    radius[row] = min(radius[row], max(own, float(distance[row])))

    def _ask(self, k: int, rows: IntArray, share: float) -> None:
        if not len(rows) or not self.routed._certified(k):
            return
        member = self.routed._member(k, share * self.routed.alpha)
        images = self.images[torch.from_numpy(rows).to(self.images.device)]
        labels = None if self.labels is None else [self.labels[row] for row in rows.tolist()]
        indices = [self.indices[row] for row in rows.tolist()]
        for row, record in zip(rows.tolist(), member.certify(images, labels, indices), strict=True):
            self.records[k][row] = record


class CascadeClassifier:
    """Noise levels are tried in turn: the first whose top class exceeds p0 answers (Jeong and Shin 2023).

    Certified by :func:`~lightning_rs.functional.cascade_l2_radius`, about the cascade with exact probabilities, with
    bounds of all levels that hold together: alpha is shared by the levels in equal parts. An image whose probability is
    too near p0 to tell gets no certificate, and no prediction.

    Args:
        levels: smoothed classifiers with the same classes, in the order in which they are tried: usually falling noise.
        p0: acceptance threshold, in [1/2, 1).
        alpha: failure probability of the whole statement about one image.

    Raises:
        ValueError: for fewer than two levels, p0 outside [1/2, 1), another noise than Gaussian, or no fixed n.
    """

    def __init__(self, levels: Sequence[SmoothedClassifier], p0: float = 0.5, alpha: float = 0.001) -> None:
        if len(levels) < 2:
            raise ValueError(f"levels must be two or more, got {len(levels)}")
        if not 0.5 <= p0 < 1:
            raise ValueError(f"p0 must lie in [1/2, 1), got {p0!r}")
        for k, level in enumerate(levels):
            _check_fixed(level, f"levels[{k}]")
        self.alpha, self.p0 = float(check_alpha(alpha)), float(p0)
        self.levels = [_at(level, self.alpha / len(levels)) for level in levels]

    def certify(
        self,
        images: Tensor,
        labels: Sequence[int] | Tensor | None = None,
        indices: Sequence[int] | Tensor | None = None,
    ) -> Certifications:
        """Return one certification an image. Arguments as for :meth:`RoutedClassifier.certify`."""
        shape = image_shape(images)
        parts = [_part(level, level.certify(images, labels, indices), shape) for level in self.levels]
        return Certifications(combine_records("cascade", self.p0, parts, self.alpha))

    def predict(
        self, images: Tensor, n: int = 1000, alpha: float = 0.001, seed: int | None = None
    ) -> RoutedPredictions:
        """Return the cascade's class, or ABSTAIN where no level answers or a level is too near p0 to tell.

        With probability at least 1 - alpha an image has ABSTAIN or the class of the exact cascade. Each level spends
        alpha over their number: half of it on accepting, where a class that is chosen and bounded by the same samples
        needs twice the level, half on passing on.

        Args:
            images: clean inputs, (B, *shape).
            n: samples an image and level.
            alpha: failure probability an image.
            seed: names the random streams; None draws fresh entropy.
        """
        share = float(check_alpha(alpha)) / len(self.levels)
        prediction, route = (np.full(len(images), ABSTAIN, dtype=np.int64) for _ in range(2))
        open_rows = np.arange(len(images))
        for k, level in enumerate(self.levels):
            if not len(open_rows):
                break
            chosen = images[torch.from_numpy(open_rows).to(images.device)]
            accepted, passed, top = self._test(level, chosen, n, share, None if seed is None else seed + k)
            prediction[open_rows[accepted]], route[open_rows[accepted]] = top[accepted], k
            open_rows = open_rows[passed]
        return RoutedPredictions(prediction, route)

    def _test(
        self, level: SmoothedClassifier, images: Tensor, n: int, alpha: float, seed: int | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], IntArray]:
        """Return which images a level surely accepts, which it surely passes on, and their most frequent class."""
        session = level.session(image_shape(images))
        if session.lattice is not None:
            alpha = session.lattice.level(alpha, n, math.prod(image_shape(images)))
        found = session.predict(images, n, alpha, seed)
        assert found.doubtful is not None
        top = found.counts.argmax(axis=1)
        most = np.take_along_axis(found.counts, top[:, None], axis=1)[:, 0]
        sure, possible = np.maximum(most - found.doubtful, 0), np.minimum(most + found.doubtful, n)
        accepted = np.asarray(clopper_pearson_lower(sure, n, alpha / 4)) > self.p0
        passed = np.asarray(clopper_pearson_upper(possible, n, alpha / 2)) < self.p0
        return accepted, passed, top


def _at(own: SmoothedClassifier, alpha: float) -> SmoothedClassifier:
    """Return the smoothed classifier with a certifier at another alpha."""
    certifier = copy.copy(own.certifier.for_noise(own.noise))
    certifier.alpha = float(check_alpha(alpha))
    return SmoothedClassifier(own.network, own.noise, certifier=certifier, domain=own.domain, grid=own.grid)


def _part(own: SmoothedClassifier, records: Sequence[Certification], shape: tuple[int, ...]) -> Part:
    session = own.session(shape)
    rounded = session.lattice is not None and session.lattice.lattice.grid is None
    return Part(list(records), own.certifier.alpha, session.setting.alpha, own.noise.sigma, rounded)


def _check_l2(own: SmoothedClassifier, name: str) -> Certifier:
    certifier = own.certifier.for_noise(own.noise)
    if not isinstance(own.noise, GaussianNoise):
        raise ValueError(f"{name} must be smoothed by GaussianNoise, got noise {own.noise!r}")
    first = certifier.certificates[0]
    if (first.norm, first.ball) != ("l2", "open") or certifier.budget.mode == "decision":
        raise ValueError(f"{name} must certify radii in l2, got {first.name} ({first.norm}) by {certifier.budget!r}")
    return certifier


def _check_fixed(own: SmoothedClassifier, name: str) -> None:
    certifier = _check_l2(own, name)
    schemes = set(certifier.schemes)
    if certifier.budget.mode != "fixed" or schemes != {"iid"}:
        raise ValueError(
            f"{name} must take a fixed number of independent samples (FixedSamples), got mode "
            f"{certifier.budget.mode!r}, {', '.join(sorted(schemes))}"
        )


@torch.inference_mode()
def _plain_answer(network: nn.Module, images: Tensor) -> IntArray:
    was_training = network.training
    try:
        return network.eval()(images).argmax(dim=1).cpu().numpy()
    finally:
        network.train(was_training)
