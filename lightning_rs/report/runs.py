"""Runs: the statements of one certificate in one record file, and what can be said about all images together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_rs.metrics import certified_counts
from lightning_rs.records import Certification, Header, read_records
from lightning_rs.report.names import named_files
from lightning_rs.statistics.accuracy import Method, certified_accuracy_lower_bound

if TYPE_CHECKING:
    from lightning_rs.certificates.base import Certificate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """The statements of one certificate about the images of one record file.

    Attributes:
        name: how tables and legends call it.
        header: header of the file.
        certificate: name of the certificate.
        records: its statements, sorted by index.
        entry: what the header says of the certificate.
        primary: whether the records are its own, instead of listing it beside another one.
        alone: whether the file has no other certificate.
        path: the file.
        remarks: what a reader must know of its statements.
    """

    name: str
    header: Header
    certificate: str
    records: list[Certification]
    entry: Mapping[str, Any]
    primary: bool = True
    alone: bool = True
    path: Path = Path()
    remarks: Sequence[str] = ()
    _hits: dict[tuple[float, ...], IntArray] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def norm(self) -> str:
        """Norm of the radii."""
        return self.records[0].norm

    @property
    def sigma(self) -> float:
        """The scale by which tables list the noise."""
        spec = self.header.binding["noise"]
        known = self.header.informative.get("sigma")
        if known is not None or spec.get("class") == "GaussianNoise":
            return float(spec["sigma"] if known is None else known)
        from lightning_rs.noise import noise_from_dict  # here, because laws load torch

        try:
            return noise_from_dict(spec).sigma
        except ValueError:
            if "sigma" in spec:  # an imported file may name a law and its sigma only
                return float(spec["sigma"])
            raise

    @property
    def setting(self) -> str:
        """What every statement of the run rests on: certificate, alpha, samples, mode."""
        alphas = sorted({record.alpha for record in self.records})
        ends = f"{alphas[0]:g}" if len(alphas) == 1 else f"{alphas[0]:g} to {alphas[-1]:g}"
        level = "exact" if alphas == [0.0] else f"alpha = {ends}"
        first = self.records[0]
        return f"{self.certificate}, {level}, n = {first.n}, {first.mode} sampling"

    @property
    def target(self) -> float | None:
        """The radius that decision mode was asked about, or None."""
        return self.records[0].target

    @property
    def refusal(self) -> str | None:
        """Why Theorem 5 does not apply, or None: it needs independent failures of one probability."""
        alphas = sorted({record.alpha for record in self.records})
        if self.header.binding.get("shared_noise", False):
            return f"{self.name}: the images shared their noise, but Theorem 5 needs independent noise"
        if not self.header.independent:
            return (
                f"{self.name}: imported, and whether every image had noise of its own, which Theorem 5 needs, is "
                "unknown: import it with --assert-independent if it had"
            )
        if len(alphas) > 1:
            return f"{self.name}: alpha differs between images, from {alphas[0]!r} to {alphas[-1]!r}"
        return None

    @property
    def noise(self) -> str:
        """The law of the noise with its parameters, as it was written into the header."""
        spec = self.header.binding["noise"]
        parameters = ", ".join(f"{key}={value!r}" for key, value in spec.items() if key != "class")
        return f"{spec.get('class', 'unknown')}({parameters})"

    @property
    def tails(self) -> FloatArray | None:
        """Upper bounds of 1 - p for the label of each image, one where another class was chosen; None if unknown.

        p is the probability that the base classifier answers the label under noise. Exact and imported statements and
        decisions bound no p. Each bound has the share of alpha that the certificate gives it.
        """
        bare = self.primary or set(self.records[0].radii) == {self.certificate}
        names = [f"{self.certificate}.q_upper", *(["q_upper"] if bare else [])]
        found = [next((r.bounds[name] for name in names if name in r.bounds), None) for r in self.records]
        if self.target is not None or any(tail is None for tail in found):
            return None
        right = [record.top == record.label for record in self.records]
        return np.where(right, np.array(found, dtype=np.float64), 1.0)

    @property
    def smallest_tail(self) -> float | None:
        """The smallest upper bound of 1 - p that n votes can give at the run's alpha, or None if that varies.

        ``1 - alpha^(1/n)`` for a certificate that gives its lower bound of p all of alpha.
        """
        settings = {(record.n, record.alpha) for record in self.records}
        share = self.entry.get("alpha_split", {}).get("p_lower") if self.entry else None
        if len(settings) > 1 or share is None or self.records[0].mode != "fixed":
            return None
        (n, alpha), spent, tails = next(iter(settings)), self.header.alpha_noise, self.tails
        if tails is None or alpha <= spent:
            return None
        least = -math.expm1(math.log((alpha - spent) * share) / n)
        return None if (tails < least * (1 - 1e-9)).any() else least  # its bound comes from something else than n votes

    def hits(self, radii: Sequence[float]) -> IntArray:
        """Return how many images are right and certified at each radius."""
        key = tuple(radii)
        if key not in self._hits:
            self._hits[key] = certified_counts(self.records, radii)
        return self._hits[key]

    def accuracy(self, radii: Sequence[float]) -> FloatArray:
        """Return the certified accuracy at each radius; NaN beyond the target of decision mode."""
        return self._known(self.hits(radii) / len(self.records), radii)

    def lower_bound(self, radii: Sequence[float], rho: float, method: Method) -> FloatArray:
        """Return lower bounds on the true certified accuracy of these images (Cohen et al. 2019, Theorem 5).

        With probability at least 1 - rho over the sampling, at least this share of the images is truly classified
        right in the whole ball: at one radius fixed in advance, or with method "uniform" at all radii at once.
        Exact statements (alpha = 0) need no bound: the share itself is returned.

        Args:
            radii: radii in input units.
            rho: failure probability of the bound; the failure probability that the certificate's table shares
                among all images is taken off it.
            method: see :func:`lightning_rs.statistics.accuracy.certified_accuracy_lower_bound`.

        Raises:
            ValueError: if the images shared their noise, alpha differs between them, or ``rho`` does not exceed
                what the certificate's table has spent.
        """
        if self.refusal is not None:
            raise ValueError(self.refusal)
        shared = float(self.entry.get("shared_failure", 0.0))
        if shared >= rho:
            spent = f"{shared:g} of the table of {self.name}"
            raise ValueError(f"rho must exceed the failure probability {spent}, got {rho:g}")
        alpha = self.records[0].alpha
        if alpha == 0:
            return self.accuracy(radii)
        bound = certified_accuracy_lower_bound(self.hits(radii), len(self.records), alpha, rho - shared, method)
        return self._known(np.asarray(bound, dtype=np.float64), radii)

    def _known(self, values: FloatArray, radii: Sequence[float]) -> FloatArray:
        if self.target is None:
            return values
        return np.where(np.asarray(radii) <= self.target, values, np.nan)


def load_runs(paths: Sequence[str | Path], names: Sequence[str] | Mapping[str, str] = ()) -> list[Run]:
    """Return one run for each certificate of each file, in the order given.

    A file of several certificates gives runs named ``file:certificate``.

    Args:
        paths: record files, or folders of them, as :func:`lightning_rs.report.names.named_files` takes them.
        names: how runs are called; what is not named gets a readable name of its own.

    Raises:
        ValueError: if no file is given, one is given twice, has no records, or is corrupt; or if names do not fit.
        FileNotFoundError: if there is no such file.
    """
    runs = [run for file, name in named_files(paths, names).items() for run in _runs(file, name)]
    called = [run.name for run in runs]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"names must differ, got {twice!r} for a file and for a certificate of another one")
    return runs


def rebuild_certificate(run: Run) -> Certificate:
    """Return the certificate of a run, built from what the header says of it.

    Raises:
        ValueError: if it cannot be built here.
    """
    from lightning_rs.certificates import certificate_from_dict  # here, because theorems load torch

    if "class" not in run.entry:
        raise ValueError(f"{run.name}: the header does not say how to build certificate {run.certificate!r}")
    try:
        return certificate_from_dict(run.entry)
    except ValueError as error:
        raise ValueError(f"{run.name}: {error}") from error


def _runs(file: Path, name: str) -> list[Run]:
    header, records = read_records(file)
    if not records:
        raise ValueError(f"{file}: no image is recorded yet")
    entries = {entry.get("name", entry["class"]): entry for entry in header.binding["certificates"]}
    own = records[0].certificate
    first = Run(name, header, own, records, entries.get(own, {}), path=file)
    if len(records[0].radii) < 2 or not records[0].has_radius:
        return [first]
    runs = [replace(first, name=f"{name}:{own}", alone=False)]
    for other in (label for label in records[0].radii if label != own):
        run = Run(f"{name}:{other}", header, other, [], entries.get(other, {}), primary=False, alone=False, path=file)
        certificate = rebuild_certificate(run)
        alpha = 0.0 if certificate.exact else float(header.binding["alpha"])
        statements = [record.under(other, certificate.norm, certificate.ball, alpha) for record in records]
        runs.append(replace(run, records=statements))
    return runs
