"""The report as one page: what it holds, that names are no markup, and what a browser makes of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from lightning_rs.cli.commands import report_main
from lightning_rs.data import Digits
from lightning_rs.engine.streams import image_sha256
from lightning_rs.records import Certification
from lightning_rs.report import report
from lightning_rs.report.thumbnails import packed
from tests import fakes
from tests.fakes import certification
from tests.reported import save, voted_records

HOSTILE = "</script><script>document.title = 'owned'</script> \"'& $$x$$ \N{GREEK SMALL LETTER SIGMA}"


def page_of(
    tmp_path: Path, name: str = "run", data: Digits | None = None, records: list[Certification] | None = None
) -> Path:
    path = save(tmp_path / "run.jsonl", records or voted_records(images=40))
    made = report([path], tmp_path / "out", formats=["csv"], names=[name], html=True, data=data)
    assert made.files[-1] == tmp_path / "out" / "report.html"
    return made.files[-1]


def browsed(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Return what headless Chromium makes of a page, without network: its document, and its log on stderr."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    words = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'chrome'}",
        "--virtual-time-budget=30000", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)


class Crops:
    """Pieces of two photographs: 32 x 32 pixels of three colours each, a list of (3, 32, 32) by position."""

    name, shape, domain = "crops", (3, 32, 32), (0.0, 1.0)

    def __init__(self, count: int) -> None:
        photographs = np.stack(load_sample_images().images)
        rng = np.random.default_rng(0)
        corners = zip(rng.integers(0, 2, count), rng.integers(0, 395, count), rng.integers(0, 608, count), strict=True)
        cut = np.stack([photographs[which, y : y + 32, x : x + 32] for which, y, x in corners])
        self.pieces = torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous().float() / 255

    def prepare_data(self) -> None:
        """Nothing is to be fetched."""

    def source(self, split: str) -> Crops:
        """Return itself: there is one split."""
        return self

    def __len__(self) -> int:
        return len(self.pieces)

    def images(self, indices: np.ndarray) -> torch.Tensor:
        """Return some images."""
        return self.pieces[indices]


@pytest.mark.slow
def test_ten_thousand_images_with_pictures_stay_below_ten_megabytes(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    data = Crops(10_000)
    found = [certification(i, image=image_sha256(image)) for i, image in enumerate(data.pieces)]
    head = fakes.header(range(10_000), shape=[3, 32, 32])
    head.binding["data"].update(name="crops", split="test")
    made = report([fakes.save(tmp_path / "run.jsonl", found, head)], tmp_path, formats=["csv"], html=True, data=data)
    page = made.files[-1]
    assert page.read_text().count("data:image/webp;base64,") == 10  # of 1,024 pictures each
    assert page.stat().st_size < 10e6
    shown = browsed(page, tmp_path)
    assert "10,000 images" in shown.stdout
    assert not re.findall(r"CONSOLE.*(?:Error|error|refused)", shown.stderr)


def test_the_page_loads_nothing_and_names_are_no_markup(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    page = page_of(tmp_path, HOSTILE).read_text()
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=", outside)
    assert not re.findall(r"<script[^>]*src=", page.rpartition("<body>")[2])
    assert "<script>document.title" not in page
    assert "&lt;script&gt;document.title" in page
    assert "hard_half_acr" in page
    assert "with probability &gt;= 0.999 over the sampling" in page
    assert "Without pictures: add them by --data" in page


def test_pictures_are_those_that_were_certified(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    data = Digits()
    images = data.source("test").images(np.arange(3))
    found = [certification(i, image=image_sha256(image)) for i, image in enumerate(images)]
    written = {"data": {"name": "digits", "split": "test"}, "num_classes": 10}
    path = fakes.save(tmp_path / "digits.jsonl", found, fakes.header(num_classes=10))
    fakes.changed(path, lambda head: head["binding"].update(data=written["data"]))
    made = report([path], tmp_path / "out", formats=["csv"], html=True, data=data)
    assert "data:image/webp;base64," in made.files[-1].read_text()
    fakes.changed(path, lambda record: record.update(image="5b" * 32), row=2)
    with pytest.raises(ValueError, match=r"image 1 of digits .* is another one than .*SHA-256 differs"):
        report([path], tmp_path / "out", formats=["csv"], html=True, data=data)


def test_equal_pictures_share_a_place() -> None:
    picture = np.zeros((8, 8, 1), dtype=np.uint8)
    keys = [(Path("a"), 0), (Path("b"), 0), (Path("a"), 1)]
    sheets = packed(dict(zip(keys, (picture, picture.copy(), picture + 1), strict=True)))
    assert list(sheets.places.values()) == [0, 0, 1]
    assert (len(sheets.uris), sheets.side) == (1, 8)


def test_without_bokeh_one_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "run.jsonl", voted_records(images=5))
    monkeypatch.setitem(sys.modules, "bokeh.models", None)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    assert report_main([str(path), "--html", "--out", str(tmp_path / "out")]) == 1
    assert "pip install 'lightning_rs[html]'" in capsys.readouterr().err


def test_a_browser_shows_the_page_without_network_and_errors(tmp_path: Path) -> None:
    """Rows are counted by the page itself; a click on a header of the table sorts."""
    pytest.importorskip("bokeh")
    page = page_of(tmp_path, HOSTILE)
    act = """
    <script>
    document.addEventListener('DOMContentLoaded', () => {
      const wait = setInterval(() => {
        const found = (window.Bokeh?.documents ?? [])[0]?.get_model_by_name('images');
        const view = found && Object.values(Bokeh.index).map((v) => v.owner?.find_one(found)).find((v) => v?.grid);
        if (!view) return;
        clearInterval(wait);
        const rows = view.grid.getDataLength();
        view.grid.onSort.notify({sortCols: [{sortCol: view.grid.getColumns()[4], sortAsc: false}], grid: view.grid});
        const radii = [...Array(rows).keys()].map((i) => view.data.getItem(i)['radius GaussianL2']);
        document.body.setAttribute('data-seen', rows + ' ' + radii.every((r, i) => !i || radii[i - 1] >= r));
      }, 20);
    });
    </script>"""
    before, body, after = page.read_text().rpartition("<body>")  # bokeh's program says </head>, too
    page.write_text(before + body + act + after)
    shown = browsed(page, tmp_path)
    assert not re.findall(r"CONSOLE.*(?:Error|error|refused)", shown.stderr)
    assert 'data-seen="40 true"' in shown.stdout
    assert "<title>owned" not in shown.stdout
