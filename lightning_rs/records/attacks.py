"""What attacking one image found: the smallest confirmed distance, and every test of what its certificate asserts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lightning_rs.records.certification import from_line, to_line
from lightning_rs.records.rounding import complement, round_down, round_up
from lightning_rs.records.units import change, counts_pixels

# Distances are computed in float64 from the numbers that were fed; what is left of rounding is far below this share.
SLACK = 1e-6
_TESTS = ("tests", "repeated")


@dataclass(frozen=True, kw_only=True)
class ValueTest:
    """A certificate asserts a smoothed probability at a point; fresh votes were compared with it.

    Attributes:
        kind: where: "clean", "random", "adversarial", or "found" for the confirmed adversarial point.
        distance: norm of the perturbation in the certificate's norm, rounded down.
        lower: asserted lower bound of the class's probability; for exact certificates of its number of votes.
        count: votes for the class.
        n: number of votes.
        upper: upper confidence bound of the class's probability at level ``beta``; for exact certificates the count.
        prediction: the abstaining prediction from the same votes.
        counts: votes of all classes.
        seed: entropy of the votes.
        row: position of the point in the batch of votes, which the key of its noise names as well.
        beta: failure probability of this test.
        failed: the assertion is contradicted: ``upper < lower``, or another class inside the radius.
    """

    kind: str
    distance: float
    lower: float | None
    count: int
    n: int
    upper: float
    prediction: int
    counts: tuple[int, ...]
    seed: int
    beta: float
    failed: bool
    row: int = 0

    def __str__(self) -> str:
        """Return the comparison as words."""
        asserted = "nothing is asserted" if self.lower is None else f"asserted are at least {self.lower:.6g}"
        return (
            f"{self.kind} point at distance {self.distance:.6g}: {self.count} of {self.n} votes for the class, at most "
            f"{self.upper:.6g} at level {self.beta:g}, {asserted} (seed {self.seed})"
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class AttackRecord:
    """One image under attack. ``repr`` prints the sentence.

    Attributes:
        index: the data set's own index of the image.
        label: true class, or None if unknown.
        prediction: the class that was to be left: the certified one, or the most frequent where nothing is certified.
        stated: whether a certificate states that class.
        radius: certified radius, 0.0 where nothing is stated.
        norm: norm of all distances.
        ball: whether the certified ball contains its boundary.
        alpha: failure probability of the certificate.
        attacked: norm of the smallest confirmed adversarial perturbation, rounded up; None if none was found.
        inside: whether that perturbation lies inside the certified ball, by its norm rounded down.
        searched: largest radius at which the attacks did not succeed, beyond which nothing smaller was found.
        confirmation: the votes that confirm ``attacked``: counts, n, beta, seed, prediction, and how many tries.
        tests: tests of the certificate's assertions.
        repeated: where something is contradicted, tests on fresh votes at the image, half way and at the point.
        verdict: "" if nothing is contradicted; else what re-certification with a new key says.
        certain: whether that excludes chance, up to an event that all images share.
        failure: file with everything that repeats a contradiction, "" if there is none.

    Raises:
        ValueError: if the fields contradict each other.
    """

    index: int
    label: int | None
    prediction: int
    stated: bool
    radius: float
    norm: str
    ball: str
    alpha: float
    attacked: float | None
    inside: bool
    searched: float
    confirmation: dict[str, Any] | None = None
    tests: tuple[ValueTest, ...] = ()
    repeated: tuple[ValueTest, ...] = ()
    verdict: str = ""
    certain: bool = False
    failure: str = ""

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        for holds, what in (
            (self.index >= 0, "index must be >= 0"),
            (math.isfinite(self.radius) and self.radius >= 0, "radius must be finite and >= 0"),
            (self.attacked is None or (math.isfinite(self.attacked) and self.attacked >= 0), "attacked must be >= 0"),
            ((self.attacked is None) == (self.confirmation is None), "attacked and confirmation go together"),
            (self.attacked is not None or not self.inside, "inside needs an attack"),
        ):
            if not holds:
                raise ValueError(f"{what}, got {self.index}, {self.radius}, {self.attacked}, {self.inside}")

    @property
    def contradicted(self) -> bool:
        """Whether any observation contradicts the certificate."""
        return self.inside or any(test.failed for test in self.tests)

    @property
    def correct(self) -> bool:
        """Whether the class that was attacked is the label."""
        return self.label is not None and self.prediction == self.label

    @property
    def bracket(self) -> tuple[float, float]:
        """Certified up to, broken from; minus infinity where nothing is stated, infinity where no attack succeeded.

        0 and 0 where the class is not the label.
        """
        if not self.correct:
            return 0.0, 0.0
        return self.radius if self.stated else -math.inf, math.inf if self.attacked is None else self.attacked

    def to_json(self) -> str:
        """Return one line, floats at full precision."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {name: [dataclasses.asdict(test) for test in getattr(self, name)] for name in _TESTS}
        return to_line({**values, **lists})

    @classmethod
    def from_json(cls, line: str, where: str = "attack") -> AttackRecord:
        """Read a line of :meth:`to_json`; raise ``ValueError`` naming ``where`` if it is none."""
        values = from_line(line, where)
        try:
            numbers = {name: float(values[name]) for name in ("radius", "searched", "alpha")}
            tests = {name: tuple(map(_value_test, values.get(name, ()))) for name in _TESTS}
            return cls(**{**values, **numbers, **tests})
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{where}: {error}") from error

    def __repr__(self) -> str:
        """Return the bracket as a sentence, the certified radius rounded down and the attacked one up."""
        label = "" if self.label is None else f" (label {self.label})"
        less = "<" if self.ball == "open" else "<="
        if self.stated:
            sure = f"with probability >= {complement(self.alpha)}" if self.alpha else "exactly"
            ball = f"{self.norm} norm {less} {round_down(self.radius, 4)}"
            if counts_pixels(self.norm):
                ball = f"every {change(self.norm, less, f'{self.radius:g}')}"
            certified = f"{sure} class {self.prediction} holds for {ball}"
        else:
            certified = f"class {self.prediction} is not certified"
        found = "no attack succeeded" if self.attacked is None else f"broken at {round_up(self.attacked, 4)}"
        bad = f" CONTRADICTED: {self.contradiction}" if self.contradicted else ""
        return f"image {self.index}{label}: {certified}; {found}{bad}"

    @property
    def contradiction(self) -> str:
        """What contradicts the certificate, what that means, and where everything that repeats it is kept."""
        seen = [str(test) for test in self.tests if test.failed]
        if self.inside:
            seen.append(f"broken inside, at {self.attacked}, by {self.confirmation}")
        kept = [f"kept in {self.failure}"] if self.failure else []
        return "; ".join([*seen, *([self.verdict] if self.verdict else []), *kept])


def _value_test(values: dict[str, Any]) -> ValueTest:
    return ValueTest(**{**values, "counts": tuple(values["counts"])})
