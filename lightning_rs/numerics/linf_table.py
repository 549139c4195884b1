"""l-infinity radii for every probability from Monte Carlo done once for each noise, kept on disk.

The discrepancy between a law and its shifted copy has nothing to do with images. By weak duality with multiplier
e^-m and by symmetry of pi_0, for every number m fixed before the draws,

    1 - p*(r)  >=  e^m (E_0[min(1, e^(L_r - m))] - 1/2),

with equality at the median of L_r. So m comes from a pilot; on fresh draws an empirical Bernstein bound at level
beta / J for each of J radii makes all J right-hand sides lower bounds q_j, together, with probability 1 - beta. An
image is certified at the largest r_j with 1 - p_lower <= q_j: that one q_j covers the whole ball, because p* grows
with r. beta is shared by all images certified with the table: it belongs to rho, not to their alpha.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from lightning_rs.checks import FloatArray
from lightning_rs.numerics.linf_statistics import (
    CornerFamily,
    CornerStatistics,
    MixedCorner,
    PureCorner,
    sign_patterns,
)
from lightning_rs.numerics.tail_bounds import one_step_tail_lower

FORMAT = 1
#: The radii span Phi^-1(p) from 0.02 to 0.25 coarsely and from there to 5.2 in steps of about 1 %.
ROUGH_TAILS = (0.492, 0.4, 1e-7)
COARSE, FINE = 64, 320
AT_A_TIME = 32_000_000  # coordinates of the pilot in memory, 256 MB
LAW_ERROR = 1e-6  # more than the total variation error of the tabulated law of ||z||_inf
CACHE = "LIGHTNING_RS_CACHE"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableSettings:
    """Everything that a table depends on; a stored table with other settings is another table.

    Attributes:
        family: "mixed" or "pure".
        dim: number d >= 2 of coordinates.
        k_inf: power of ||z||_inf.
        k_2: power of ||z||_2; 0 for "pure".
        beta: failure probability of the whole table.
        draws: number of independent draws.
        patterns: sign patterns averaged within each draw ("pure": always z and -z).
        seed: seed of the generator.
        device: where it is drawn; other devices give other, equally valid draws.
    """

    family: str
    dim: int
    k_inf: float
    k_2: float = 0.0
    beta: float = 1e-4
    draws: int = 100_000
    patterns: int = 16
    seed: int = 0
    device: str = "cpu"

    @property
    def law(self) -> CornerFamily:
        """The law at sigma = 1."""
        if self.family == "mixed":
            return MixedCorner(self.dim, self.k_inf, self.k_2)
        return PureCorner(self.dim, self.k_inf)


@dataclass(frozen=True)
class LinfTable:
    """Certified radii.

    Attributes:
        radii: increasing l-infinity radii in units of sigma, shape (J,).
        tails: non-increasing lower bounds on 1 - p*(r_j), shape (J,).
    """

    radii: FloatArray
    tails: FloatArray

    def radius(self, tail: FloatArray) -> FloatArray:
        """Return the largest r_j that a tail 1 - p_lower certifies, 0 if none; infinite for a tail of 0."""
        certified = len(self.tails) - np.searchsorted(self.tails[::-1], tail, side="left")
        radius = np.concatenate([[0.0], self.radii])[certified]
        return np.where(tail == 0.0, np.inf, radius)


@lru_cache(maxsize=32)
def linf_table(settings: TableSettings) -> LinfTable:
    """Return the table, from memory, from the cache directory, or built and stored there.

    The directory is ``$LIGHTNING_RS_CACHE`` or ``~/.cache/lightning_rs``. A file that does not hold exactly these
    settings, or whose hash is wrong, is reported and replaced. A directory that cannot be written is not used.
    """
    path = cache_path(settings)
    table = read_table(path, settings)
    if table is None:
        table = build_table(settings)
        write_table(path, settings, table)
    return table


def build_table(settings: TableSettings) -> LinfTable:
    """Draw and bound. About 25 s of one CPU core at d = 3,072 with 10^5 draws; the cost grows with d * draws."""
    log.info("building the l-infinity table of %s", settings)
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    law = settings.law
    signs = sign_patterns(settings.dim, settings.patterns, generator)
    pilot = law.draw_in_parts(min(4000, max(1000, settings.draws // 20)), signs, generator, AT_A_TIME)
    first, middle, last = (_rough_radius(law, pilot, tail) for tail in ROUGH_TAILS)
    radii = np.concatenate([np.geomspace(first, middle, COARSE, endpoint=False), np.geomspace(middle, last, FINE)])
    medians = np.array([float(law.log_ratio(pilot, r).median()) for r in radii])
    mean, variance = _means(settings, radii, medians, signs, generator)
    mean = np.maximum(mean - LAW_ERROR, 0.0)
    tails = one_step_tail_lower(mean, variance, settings.draws, settings.beta / len(radii), medians) * (1.0 - 1e-9)
    # p* grows with r, so what holds at a larger radius holds at a smaller one.
    return LinfTable(radii * (1.0 - 1e-9), np.maximum.accumulate(tails[::-1])[::-1])


def cache_path(settings: TableSettings) -> Path:
    """Return the file of these settings."""
    home = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "lightning_rs")
    key = _digest(asdict(settings))[:16]
    return home / "linf_tables" / f"{settings.family}-d{settings.dim}-{key}.json"


def write_table(path: Path, settings: TableSettings, table: LinfTable) -> None:
    """Store a table with its settings and hash, atomically."""
    content = _content(settings, table)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({**content, "sha256": _digest(content)}))
        part.replace(path)
    except OSError as error:
        log.warning("the l-infinity table could not be stored in %s (%s); it will be built again", path, error)


def read_table(path: Path, settings: TableSettings) -> LinfTable | None:
    """Return the stored table, or None if there is none or the file is not a faithful copy of it."""
    try:
        stored = json.loads(path.read_text())
        table = LinfTable(*(np.array(stored[name], dtype=np.float64) for name in ("radii", "tails")))
        if stored.pop("sha256") == _digest(stored) and stored == _content(settings, table):
            return table
        reason = "its hash or its settings do not match"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = repr(error)
    log.warning("the l-infinity table %s is not usable (%s); it is built again", path, reason)
    return None


def _content(settings: TableSettings, table: LinfTable) -> dict[str, object]:
    numbers = {"radii": table.radii.tolist(), "tails": table.tails.tolist()}
    return {"format": FORMAT, "settings": asdict(settings), **numbers}


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _means(
    settings: TableSettings, radii: FloatArray, medians: FloatArray, signs: torch.Tensor, generator: torch.Generator
) -> tuple[FloatArray, FloatArray]:
    """Return mean and unbiased variance over draws of the pattern means of min(1, e^(L - m)), each of shape (J,)."""
    law, left = settings.law, settings.draws
    chunk = max(1, min(2000, 8_000_000 // settings.dim))
    total, square = torch.zeros(2, len(radii), dtype=torch.float64, device=signs.device)
    while left > 0:
        seen = law.draw(min(chunk, left), signs, generator)
        left -= len(seen.largest)
        for j, (r, m) in enumerate(zip(radii, medians, strict=True)):
            value = _weights(law, seen, r, m)
            # Variances are sums of squares around 3/4, close to every mean, so that nothing cancels.
            total[j] += value.sum()
            square[j] += (value - 0.75).square().sum()
    mean, n = total.cpu().numpy() / settings.draws, settings.draws
    variance = np.maximum(square.cpu().numpy() - n * (mean - 0.75) ** 2, 0.0) / (n - 1)
    return np.minimum(mean, 1.0), variance


def _weights(law: CornerFamily, seen: CornerStatistics, r: float, m: float) -> torch.Tensor:
    return torch.exp(torch.clamp_max(law.log_ratio(seen, r) - m, 0.0)).mean(1)


def _rough_radius(law: CornerFamily, pilot: CornerStatistics, tail: float) -> float:
    """Return about the radius whose 1 - p* is ``tail``, by bisection on the pilot."""
    low, high = math.log(1e-6 / law.dim), math.log(100.0)
    for _ in range(30):
        middle = 0.5 * (low + high)
        m = float(law.log_ratio(pilot, math.exp(middle)).median())
        enough = math.exp(m) * (float(_weights(law, pilot, math.exp(middle), m).mean()) - 0.5) > tail
        low, high = (middle, high) if enough else (low, middle)
    return math.exp(low)
