"""The record of one image: the certificate as a sentence, and everything it was computed from."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from html import escape
from numbers import Integral
from typing import Any, Literal

from lightning_rs.checks import check_choice
from lightning_rs.records.contradictions import contradiction
from lightning_rs.records.rounding import complement, round_down
from lightning_rs.records.units import change

Ball = Literal["open", "closed"]
Status = Literal["certified", "abstain", "undecided", "decided"]
Mode = Literal["fixed", "staged", "decision", "randomized"]
ABSTAIN = -1
DIGITS = 4
# What a perturbation does not do, where that is not to change the smoothed prediction.
_CLAIMS = {
    "TopK": "takes class {prediction} out of the {argument} most probable ones",
    "LabelSets": "takes the smoothed prediction out of label set {prediction}",
    "Routed": "changes the prediction {prediction} of the routed classifier",
    "Cascade": "changes the prediction {prediction} of the cascade",
}
_TEXT = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


@dataclass(frozen=True, kw_only=True, repr=False)
class Certification:
    """A statistical statement about one image.

    With probability at least 1 - ``alpha`` over the sampling, no perturbation in the ball of this radius
    and norm changes the smoothed prediction. ``repr`` prints the sentence.

    Attributes:
        index: the data set's own index of the image.
        label: true class, or None if unknown.
        image: SHA-256 of the image as certified (shape and float32 numbers); empty where it is not known: imported
            records, and those of version 0.1.
        prediction: certified class, or ``ABSTAIN`` = -1 where nothing is stated (abstained or undecided).
        radius: in input units; 0.0 where nothing is stated and in decision mode, which has no radius.
        norm: norm of the ball: "l1", "l2", "linf" or a named variant such as "l2:red".
        certificate: name of the certificate that ``prediction``, ``radius`` and ``norm`` belong to.
        alpha: failure probability of this statement; 0.0 for exact ones. Stating the largest of several
            ``radii`` at once fails with up to their number times alpha.
        n: number of estimation samples that were planned.
        n_used: number that was taken; less than ``n`` after early stopping.
        ball: whether the ball contains its boundary.
        grid: number q of steps if the statement holds only for inputs k/q, else None.
        top: class chosen on the selection samples, -1 if the law needs none.
        runner_up: second class on the selection samples, -1 if there is none.
        counts: raw counts of all classes from the estimation samples; empty in imported records.
        counts0: raw counts of all classes from the selection samples.
        bounds: confidence bounds that were used, by name.
        radii: one radius for each certificate of the pass, by name.
        status: "certified" (a radius), "abstain", and in decision mode "decided" (the target is reached)
            or "undecided" (the samples ran out first).
        mode: how samples were spent: "fixed" n, "staged", "decision" or "randomized".
        target: the radius that decision mode was asked about.
        note: remark, for instance that a bound was infeasible.
        extra: facts of the mode: stages, how alpha was split, the drawn U.

    Raises:
        ValueError: if the fields contradict each other.
    """

    index: int
    label: int | None
    prediction: int
    radius: float
    norm: str
    certificate: str
    alpha: float
    n: int
    n_used: int
    ball: Ball = "open"
    grid: int | None = None
    top: int = -1
    runner_up: int = -1
    counts: tuple[int, ...] = ()
    counts0: tuple[int, ...] = ()
    bounds: dict[str, float] = field(default_factory=dict)
    radii: dict[str, float] = field(default_factory=dict)
    status: Status = "certified"
    mode: Mode = "fixed"
    target: float | None = None
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    image: str = ""

    def __post_init__(self) -> None:
        """Refuse contradictions, so that a corrupt line cannot become a claim."""
        check_choice("ball", self.ball, ("open", "closed"))
        check_choice("status", self.status, ("certified", "abstain", "undecided", "decided"))
        check_choice("mode", self.mode, ("fixed", "staged", "decision", "randomized"))
        for name in ("index", "label", "prediction", "top", "runner_up", "n", "n_used"):
            value = getattr(self, name)
            if not (isinstance(value, Integral) or (name == "label" and value is None)):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name in ("norm", "certificate", "note", "image"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}")
        deciding, stated = not self.has_radius, self.status in ("certified", "decided")
        statuses = ("decided", "undecided", "abstain") if deciding else ("certified", "abstain")
        for holds, name, right in (
            (self.status in statuses, "status", f"be one of {', '.join(statuses)} in mode {self.mode!r}"),
            (self.index >= 0, "index", "be >= 0"),
            (math.isfinite(self.radius) and self.radius >= 0, "radius", "be finite and >= 0"),
            (self.radius == 0 or self.status == "certified", "radius", f"be 0.0 with status {self.status!r}"),
            (0 <= self.alpha < 1, "alpha", "lie in [0, 1)"),
            (self.grid is None or self.grid >= 1, "grid", "be None or >= 1"),
            (
                self.prediction >= 0 if stated else self.prediction == ABSTAIN,
                "prediction",
                f"be {'a class' if stated else ABSTAIN} with status {self.status!r}",
            ),
            (deciding == (self.target is not None), "target", "be given in decision mode and only there"),
            (self.target is None or 0 <= self.target < math.inf, "target", "be finite and >= 0"),
        ):
            if not holds:
                raise ValueError(f"{name} must {right}, got {getattr(self, name)!r}")

    @property
    def has_radius(self) -> bool:
        """Whether a radius was asked for; decision mode asks about its target only."""
        return self.mode != "decision"

    @property
    def steps(self) -> int | None:
        """Number D of grid steps that the ball holds, or None where the radius is a real number.

        Closed l1 and l-infinity balls on a grid have one: there, all distances are multiples of 1/q.
        """
        return _floor((self.grid or 0) * self.radius) if self._counts_steps else None

    @property
    def _counts_steps(self) -> bool:
        return self.grid is not None and self.ball == "closed" and self.norm.partition(":")[0] in ("l1", "linf")

    @property
    def correct(self) -> bool:
        """Whether the stated prediction is the label; false where nothing is stated."""
        return self.label is not None and self.prediction == self.label != ABSTAIN

    def certified_at(self, r: float) -> bool:
        """Return whether the image is correct and certified at radius ``r`` >= 0, in input units.

        That is radius >= r; where the radius counts D = :attr:`steps` of a grid, it is floor(q r) <= D. A decided
        image counts up to its target; beyond it nothing is known, and it does not count.

        Raises:
            ValueError: if ``r`` is negative or NaN.
        """
        if not r >= 0:
            raise ValueError(f"r must be >= 0, got {r!r}")
        if not self.correct:
            return False
        if self.status == "decided":
            assert self.target is not None
            if self._counts_steps and math.isfinite(r):
                assert self.grid is not None
                return _floor(self.grid * r) <= _floor(self.grid * self.target)
            return r <= self.target
        if self.grid is not None and self.steps is not None and math.isfinite(r):
            return _floor(self.grid * r) <= self.steps
        return self.radius >= r

    def under(self, certificate: str, norm: str, ball: Ball, alpha: float) -> Certification:
        """Return the statement of another certificate of the same pass, which has its own norm, ball and alpha.

        Raises:
            ValueError: if the pass had no such certificate.
        """
        if certificate == self.certificate:
            return self
        check_choice("certificate", certificate, self.radii)
        radius = self.radii[certificate]
        stated = radius > 0 or ball == "closed"
        top = self.prediction if self.top < 0 else self.top
        return dataclasses.replace(
            self, certificate=certificate, norm=norm, ball=ball, alpha=alpha, radius=radius,
            prediction=top if stated else ABSTAIN, status="certified" if stated else "abstain",
        )  # fmt: skip

    def to_json(self) -> str:
        """Return one line: keys in the order of the fields, floats at full precision."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return to_line(values)

    @classmethod
    def from_json(cls, line: str, where: str = "record") -> Certification:
        """Read a line of :meth:`to_json`; nothing in it is believed that another part of it contradicts.

        Args:
            line: the text.
            where: file and line number, for the error.

        Raises:
            ValueError: naming ``where``, if the line is not JSON, a field is missing, unknown or invalid, or two
                fields contradict each other: see :mod:`lightning_rs.records.contradictions`.
        """
        values = {"image": "", **from_line(line, where)}  # version 0.1 did not name images
        names = [f.name for f in dataclasses.fields(cls)]
        wrong = sorted(set(names) ^ set(values))
        if wrong:
            raise ValueError(f"{where}: fields missing or unknown in the record: {', '.join(wrong)}")
        try:
            values["counts"], values["counts0"] = (_whole(name, values[name]) for name in ("counts", "counts0"))
            for name in ("bounds", "radii"):
                values[name] = {key: float(_TEXT.get(v, v)) for key, v in values[name].items()}
            record = cls(**values)
            wrong_here = contradiction(record)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where}: {error}") from error
        if wrong_here is not None:
            raise ValueError(f"{where}: {wrong_here}")
        return record

    def __repr__(self) -> str:
        """Return the whole statement as a sentence; radii are rounded down."""
        label = "" if self.label is None else f" (label {self.label})"
        tail = f" [{self.note}]" if self.note else ""
        exact = f"; {self.extra['arithmetic']}" if self.extra.get("arithmetic") else ""
        return f"image {self.index}{label}: {self._statement()} ({self.certificate}, n = {self.n_used}{exact}){tail}"

    def _repr_html_(self) -> str:
        """Return the sentence for notebooks; nothing in a record is markup."""
        return f"<p>{escape(repr(self))}</p>"

    def _statement(self) -> str:
        level = f"alpha = {self.alpha!r}"
        if self.status == "undecided":
            return f"undecided whether the {self.norm} radius reaches {self.target!r} at {level}"
        if self.status == "abstain" and self.target is not None and not self.alpha:
            return f"exactly: {self.norm} radius {self.target!r} is not certified"
        if self.status == "abstain" and self.target is not None:
            return f"abstains: {self.norm} radius {self.target!r} could not be certified at {level}"
        if self.status == "abstain":
            return f"abstains: no {self.norm} radius could be certified at {level}"
        sure = f"with probability >= {complement(self.alpha)} over the sampling" if self.alpha else "exactly"
        less = "<" if self.ball == "open" else "<="
        radius = round_down(self.radius if self.target is None else self.target, DIGITS)
        grid = "" if self.grid is None else f" between images on the grid {{0, 1/{self.grid}, ..., 1}}"
        kind, _, argument = self.certificate.partition(":")
        claim = _CLAIMS.get(kind, "changes the smoothed prediction {prediction}")
        told = claim.format(prediction=self.prediction, argument=argument)
        return f"{sure}, no {change(self.norm, less, radius)}{grid} {told}"


def to_line(value: Any) -> str:
    """Return ``value`` as one line of JSON; non-finite floats become strings, nested keys are sorted."""
    return json.dumps(_plain(value, top=True), allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def from_line(line: str, where: str) -> dict[str, Any]:
    """Read a JSON object; raise ``ValueError`` naming ``where`` if it is not one."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: must be a JSON object, got {type(values).__name__}")
    return values


def _plain(value: Any, top: bool = False) -> Any:
    if isinstance(value, dict):
        keys = value if top else sorted(value, key=str)
        return {str(key): _plain(value[key]) for key in keys}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "tolist"):  # numpy and torch numbers and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _whole(name: str, counts: Any) -> tuple[int, ...]:
    whole = tuple(int(count) for count in counts)
    if whole != tuple(counts):
        raise ValueError(f"{name} must be whole numbers, got {counts!r}")
    return whole


def _floor(scaled: float) -> int:
    """Return the floor of q r, where 3/q in floating point may be a hair below three steps."""
    return math.floor(round(scaled, 9))
