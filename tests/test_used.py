"""What the package holds, the package uses: a name that only tests know lies beside them, or nowhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_rs"
# What a person reads or runs besides the package: a name that stands there is for people.
OUTSIDE = ("README.md", "docs/**/*.md", "docs/**/*.ipynb", "lightning_rs/configs/**/*.yaml", "benchmarks/**/*.py")


def unused(package: Path, outside: set[str]) -> list[str]:
    """Return ``module.py:name`` of each function and class at the top of a module that nothing in the package names.

    A definition does not use itself, an import uses nothing, and ``__all__`` of a package's ``__init__`` makes a name
    public: people use it. Names are compared as words, so that two things of one name hide each other; nothing that is
    in use is ever listed.
    """
    trees = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    used, defined = set(outside), []
    for path, tree in trees.items():
        for statement in tree.body:
            own = getattr(statement, "name", None)
            used |= set(_named(statement)) - {own}
            if isinstance(statement, ast.FunctionDef | ast.ClassDef) and not statement.name.startswith("__"):
                defined.append((path, statement.name))
        if path.name == "__init__.py" or path.name == "functional.py":
            used |= _public(tree)
    return [f"{path.relative_to(package.parent)}:{name}" for path, name in defined if name not in used]


def _named(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value  # looked up by name, or a type that only type checkers import


def _public(tree: ast.Module) -> set[str]:
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    found = [node.value for node in assigned if [getattr(t, "id", "") for t in node.targets] == ["__all__"]]
    return {node.value for value in found for node in ast.walk(value) if isinstance(node, ast.Constant)}


def words_outside() -> set[str]:
    files = [path for pattern in OUTSIDE for path in ROOT.glob(pattern)]
    return {word for path in files for word in re.findall(r"\w+", path.read_text())}


def test_nothing_is_there_for_tests_alone() -> None:
    assert unused(PACKAGE, words_outside()) == []


def test_tests_share_what_lies_beside_them() -> None:
    """A test module is nobody's library: helpers live in modules of their own, so that either may be split or moved."""
    sharing = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in (ROOT / "tests").rglob("*.py")
        for line in re.findall(r"^\s*from tests\.(?:\w+\.)*test_\w+ import .*", path.read_text(), re.MULTILINE)
    ]
    assert sharing == []


def test_what_nobody_names_is_found(tmp_path: Path) -> None:
    package = tmp_path / "some"
    package.mkdir()
    (package / "__init__.py").write_text("from some.a import shown\n__all__ = ['shown']\n")
    source = "def shown(): return helper()\ndef helper(): return helper()\ndef alone(): return alone()\n"
    (package / "a.py").write_text(source + "class Named: pass\nclass Told: pass\n")
    (package / "b.py").write_text("from some.a import alone, helper\nx: 'Told' = {}['Named']\n")
    assert unused(package, set()) == ["some/a.py:alone"]
    assert unused(package, {"alone"}) == []
