"""The table of docs/cases.md: every case names a test that is there."""

from __future__ import annotations

import re

from tests.driving import ROOT


def test_every_case_has_its_test() -> None:
    rows = [
        line for line in (ROOT / "docs/cases.md").read_text().splitlines() if line.startswith("| ") and "::" in line
    ]
    assert len(rows) > 50
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 4, row
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", cells[-1])
        assert named, row
        for path, name in named:
            assert f"def {name}(" in (ROOT / path).read_text(), (path, name)
