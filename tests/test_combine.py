"""Combined record files: rules computed again, reading that recomputes parts and whole, merging, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

from lightning_rs.cli.commands import combine_main
from lightning_rs.functional import cascade_l2_radius, routed_radius
from lightning_rs.records import ABSTAIN, Certification, Header, merge, read_records
from lightning_rs.records.combined import combine
from lightning_rs.report import load_runs, recompute, report
from tests import fakes
from tests.fakes import certification, changed, header
from tests.label_votes import N, save, tail, upper

IMAGES, CLASSES = 24, 5
SIGMAS = (0.25, 0.5, 1.0)
RNG = np.random.default_rng(17)
LABELS = RNG.integers(0, 2, IMAGES).tolist()


def head(sigma: float, alpha: float = 0.001, classes: int = CLASSES, **changes: Any) -> Header:
    noise = {"class": "GaussianNoise", "sigma": sigma}
    binding = {"n": N, "n0": 10, "alpha": alpha, "num_classes": classes, "noise": noise, **changes}
    return header(**({"classifier": f"{sigma:.2f}".replace(".", "a") * 16} | binding))


def voted(
    index: int, counts: Sequence[int], top: int, sigma: float, alpha: float = 0.001, **changes: Any
) -> Certification:
    """A record of Cohen's certificate."""
    stated = fakes.voted(int(counts[top]), N, alpha, sigma)
    nothing = {} if stated["radius"] > 0 else {"prediction": ABSTAIN, "status": "abstain"}
    first = [0] * len(counts)
    first[top], first[(top + 1) % len(counts)] = 9, 1
    fields: dict[str, Any] = {
        "label": LABELS[index], "prediction": top, "top": top, "runner_up": (top + 1) % len(counts), "alpha": alpha,
        "counts0": tuple(first), "n": N, "n_used": N, "counts": tuple(int(c) for c in counts), "image": f"{index:064x}",
    }  # fmt: skip
    return certification(index, **(fields | stated | nothing | changes))


def expert(seed: int, sigma: float, strength: float, alpha: float = 0.001) -> list[Certification]:
    rng = np.random.default_rng(seed)
    rows = [rng.multinomial(N, rng.dirichlet([strength, 1, 0.5, 0.3, 0.2])) for _ in range(IMAGES)]
    return [voted(i, row.tolist(), int(rng.random() < 0.1), sigma, alpha) for i, row in enumerate(rows)]


def selector(routes: int, seed: int = 5, sigma: float = 0.3, alpha: float = 0.0005) -> list[Certification]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(IMAGES):
        top = int(rng.integers(routes))
        weights = np.full(routes, 0.2)
        weights[top] = rng.choice([0.5, 3.0, 50.0])
        found.append(voted(i, rng.multinomial(N, rng.dirichlet(weights)).tolist(), top, sigma, alpha))
    return found


@dataclasses.dataclass
class Files:
    experts: list[Path]
    selector: Path
    folder: Path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    paths = [
        save(tmp_path / f"{sigma}.jsonl", head(sigma), expert(i, sigma, 9 - 2 * i)) for i, sigma in enumerate(SIGMAS)
    ]
    chosen = save(tmp_path / "selector.jsonl", head(0.3, 0.0005, classes=3), selector(3))
    return Files(paths, chosen, tmp_path)


def test_routed_is_the_theorem_at_the_bounds_of_the_files(files: Files) -> None:
    out = files.folder / "routed.jsonl"
    assert combine(files.experts, out, selector=files.selector) == IMAGES
    bound, records = read_records(out)
    chosen, *parts = (read_records(path)[1] for path in (files.selector, *files.experts))
    for i, record in enumerate(records):
        route = chosen[i].top
        q = tail(chosen[i].counts[route], 0.0005 / 2)
        pi = [min(q, upper(count, 0.0005 / 4)) for count in chosen[i].counts]
        answer = parts[route][i].top
        radii = [part[i].radius if part[i].prediction == answer else 0.0 for part in parts]
        expected = float(routed_radius(radii, q, pi, route, 0.3))
        assert record.radius == pytest.approx(expected, rel=1e-8, abs=1e-12)
        assert record.prediction == (answer if expected > 0 else ABSTAIN)
        assert record.radius >= min(radii), "agreement of all needs no selector"
    assert bound.binding["alpha"] == pytest.approx(0.0035)
    assert {record.alpha for record in records} == {bound.binding["alpha"]}
    assert bound.binding["alpha"] >= math.fsum([0.0005, 0.001, 0.001, 0.001]), "rounded up"
    alone = [read_records(path)[1] for path in files.experts]
    assert 5 < sum(record.radius > 0 for record in records) < IMAGES
    assert any(record.radius > max(a[i].radius for a in alone[:1]) for i, record in enumerate(records))
    sure = next(record for record in records if record.radius > 0)
    assert "changes the prediction 0 of the routed classifier" in repr(sure) or "prediction 1 of" in repr(sure)


def test_two_routes_need_one_event_and_an_expert_may_be_uncertified(files: Files) -> None:
    two = save(files.folder / "two.jsonl", head(0.3, 0.0005, classes=2), selector(2))
    out = files.folder / "aces.jsonl"
    combine([files.experts[1], "uncertified"], out, selector=two)
    chosen, known = (read_records(path)[1] for path in (two, files.experts[1]))
    _, records = read_records(out)
    for record, route, own in zip(records, chosen, known, strict=True):
        if route.top == 1:
            assert (record.radius, record.prediction, record.counts) == (0.0, ABSTAIN, ())
            continue
        away = max(0.0, -0.3 * ndtri(tail(route.counts[0], 0.0005)))
        assert record.radius == pytest.approx(min(own.radius, away), rel=1e-8, abs=1e-12)
    assert any(record.radius > 0 for record in records)
    assert records[0].alpha == pytest.approx(0.0015)
    assert records[0].extra["parts"][2] is None


def test_cascade_is_the_theorem_at_bounds_that_hold_together(files: Files) -> None:
    order = files.experts[::-1]
    out = files.folder / "cascade.jsonl"
    combine(order, out, p0=0.6)
    parts, sigmas, alpha = [read_records(path)[1] for path in order], SIGMAS[::-1], 0.001
    accepted = []
    for i, record in enumerate(read_records(out)[1]):
        possible = [0.0]
        for k in range(3):
            label, own = parts[k][i].top, 1 - tail(parts[k][i].counts[parts[k][i].top], alpha / 2)
            if own <= 0.6:
                continue
            rivals = []
            for part in parts[:k]:
                bounds = [upper(c, alpha / 2 / CLASSES) for n, c in enumerate(part[i].counts) if n != label]
                left = tail(part[i].counts[label], alpha / 2) if part[i].top == label else 1.0
                rivals.append(min(max(bounds), left))
            accepting = [own if j == k else None for j in range(3)]
            possible.append(float(cascade_l2_radius(sigmas, 0.6, accepting, [*rivals, *[None] * (3 - k)])))  # type: ignore[list-item]
        assert record.radius == pytest.approx(max(possible), rel=1e-7, abs=1e-10)
        accepted += [record.extra["part"]] * (record.radius > 0)
    assert len(set(accepted)) > 1


def test_the_best_of_one_classifier_and_two_that_contradict_each_other(files: Files) -> None:
    again = expert(0, 0.25, 9)
    again[0] = voted(0, [0, 1990, 10, 0, 0], 1, 0.25)
    strong = expert(0, 0.25, 9)
    strong[0] = voted(0, [1990, 0, 10, 0, 0], 0, 0.25)
    paths = [save(files.folder / f"s{i}.jsonl", head(0.25, seed=i), r) for i, r in enumerate((strong, again))]
    combine(paths, files.folder / "best.jsonl")
    _, records = read_records(files.folder / "best.jsonl")
    assert records[0].prediction == ABSTAIN, "0 and 1 are both certified: one statement failed"
    assert [r.radius for r in records[1:]] == [r.radius for r in strong[1:]]
    with pytest.raises(ValueError, match=r"certify different classifiers \(classifier differs\).*--selector"):
        combine(files.experts, files.folder / "x.jsonl")
    eight_bits = head(0.25, seed=2, runtime={**head(0.25).binding["runtime"], "precision": "int8"})
    other = save(files.folder / "int8.jsonl", eight_bits, again)
    with pytest.raises(ValueError, match=r"certify different classifiers \(runtime differs\)"):
        combine([paths[0], other], files.folder / "x.jsonl")
    forged = (files.folder / "best.jsonl").read_text().splitlines()
    header_line = json.loads(forged[0])
    header_line["binding"]["combined"]["parts"][1]["runtime"]["precision"] = "int8"
    mixed = files.folder / "mixed.jsonl"
    mixed.write_text("\n".join([json.dumps(header_line), *forged[1:]]) + "\n")
    with pytest.raises(ValueError, match="must be of one classifier, noise and runtime"):
        read_records(mixed)
    same = save(files.folder / "same.jsonl", head(0.25, seed=0), again)
    with pytest.raises(ValueError, match=r"saw the same samples \(seed 0\)"):
        combine([paths[0], same], files.folder / "x.jsonl")


def test_reports_merges_and_sentences_read_it(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "routed.jsonl"
    words = [*map(str, files.experts), "--selector", str(files.selector), "--out", str(out)]
    assert combine_main(words) == 0
    text = str(report([out, *files.experts], paired=True))
    assert "Routed, alpha = 0.0035, n = 2000" in text
    (run,) = load_runs([out])
    with pytest.raises(ValueError, match="it is the sum of those of the files that it combines"):
        recompute(run, 0.01)
    assert combine_main(words) == 0, "the same again is fine"
    lines = out.read_text().splitlines()
    for part, rows in (("a", lines[1:9]), ("b", lines[9:])):
        (tmp_path / f"{part}.jsonl").write_text("\n".join([lines[0], *rows]) + "\n")
    assert merge([tmp_path / "b.jsonl", tmp_path / "a.jsonl"], tmp_path / "merged.jsonl") == IMAGES
    assert read_records(tmp_path / "merged.jsonl")[1] == read_records(out)[1]


def test_every_change_of_a_combination_is_refused(files: Files) -> None:
    out = files.folder / "routed.jsonl"
    combine(files.experts, out, selector=files.selector)
    row = next(i for i, r in enumerate(read_records(out)[1], 1) if r.radius > 0)

    def enlarge(record: dict[str, Any]) -> None:
        record["radius"] *= 1.01
        record["radii"]["Routed"] *= 1.01

    def part(key: str, value: Any) -> Any:
        return lambda record: record["extra"]["parts"][1].update({key: value})

    def binding(change: Any) -> Any:
        return lambda head: change(head["binding"])

    for line, change, message in (
        (row, enlarge, "radius must be"),
        (row, lambda r: r.update(alpha=0.001), "alpha must be"),
        (row, lambda r: r.update(label=4), "label must be"),
        (row, lambda r: r["bounds"].update({"route_0.radius": 9.0}), "bounds must be"),
        (row, part("radius", 9.0), "part 1: .*radius must be"),
        (row, part("image", "ab" * 32), "part 1 must be about image"),
        (row, part("index", 700), "part 1: .*index must be"),
        (row, lambda r: r["extra"].update(parts=[]), "must hold one record of every part"),
        (row, lambda r: r["extra"]["parts"].__setitem__(1, None), "part 1"),
        (0, binding(lambda b: b.update(alpha=0.001)), "binding.alpha must be"),
        (0, binding(lambda b: b["combined"].update(rule="best")), "binding.combined.rule must be one of"),
        (0, binding(lambda b: b["combined"]["parts"][0].update(alpha=0.01)), "part 0"),
        (0, binding(lambda b: b["combined"]["parts"][0]["noise"].update(sigma=3.0)), "part 0"),
        (0, binding(lambda b: b["combined"]["parts"].__setitem__(2, None)), "part 2 must have no records"),
        (
            0,
            binding(lambda b: b["combined"]["parts"][1].pop("classifier")),
            r"parts\[1\]: binding.classifier is missing",
        ),
        (0, binding(lambda b: b.pop("combined")), "is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            read_records(changed(out, change, line, files.folder / "changed.jsonl"))


def test_files_that_do_not_fit_are_one_error(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = files.experts
    rows = expert(1, 0.5, 7)

    def another(name: str, records: list[Certification] | None = None, **changes: Any) -> Path:
        bound = dataclasses.replace(head(0.5), binding={**head(0.5).binding, **changes})
        return save(files.folder / f"{name}.jsonl", bound, rows if records is None else records)

    other_image = [dataclasses.replace(rows[0], image="ab" * 32), *rows[1:]]
    other_label = [dataclasses.replace(rows[0], label=4), *rows[1:]]
    for path, message in (
        (another("image", other_image), "image 0 must be the same in .* but image differs"),
        (another("label", other_label), "but label differs: 4"),
        (another("fewer", rows[1:]), r"must hold the same images, but only one has \[0\]"),
        (another("data", data={"name": "mnist"}), "must have the same data"),
        (another("stage", stage="epoch-end"), "must have the same stage"),
    ):
        with pytest.raises(ValueError, match=message):
            combine([first, path, third], files.folder / "x.jsonl", selector=files.selector)
        assert combine_main([str(first), str(path), "--cascade", "0.5", "--out", str(files.folder / "x.jsonl")]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    short = [voted(i, [1900, 50, 20, 20, 10], 0, 0.5) for i in range(IMAGES)]
    fewer: dict[str, Any] = {"n": 1000, "n_used": 1000, "counts": (900, 50, 20, 20, 10)}
    short = [dataclasses.replace(r, **fewer, **fakes.voted(900, 1000, 0.001, 0.5)) for r in short]
    other_n = save(
        files.folder / "n.jsonl", dataclasses.replace(head(0.5), binding={**head(0.5).binding, "n": 1000}), short
    )
    printed = fakes.save(files.folder / "printed.jsonl", [certification(0, radius=0.3)], header())
    out = files.folder / "x.jsonl"
    for paths, options, message in (
        ([first, other_n], {"p0": 0.5}, "must have the same n"),
        ([first, printed], {"p0": 0.5}, "it does not name its images"),
        ([first, first], {"p0": 0.5}, "must not repeat a record file"),
        ([first], {"p0": 0.5}, "at least two classifiers, got 1"),
        ([first, second], {"p0": 0.4}, r"p0 must lie in \[1/2, 1\), got 0.4"),
        ([first, second], {"p0": 0.5, "selector": files.selector}, "not both"),
        ([first, second], {"selector": files.selector}, "chooses among 3 routes, but 2 experts are given"),
        ([first, "uncertified"], {"p0": 0.5}, "an uncertified expert needs a selector"),
    ):
        with pytest.raises(ValueError, match=message):
            combine(paths, out, **options)  # type: ignore[arg-type]
    combine(files.experts, files.folder / "c.jsonl", selector=files.selector)
    with pytest.raises(ValueError, match="it combines others already"):
        combine([files.folder / "c.jsonl", second], out, p0=0.5)
