"""Imports point one way: mains -> eval -> dataset, model -> backbone, utils."""

import ast
from pathlib import Path

import pytest
from runs import ROOT

BELOW = {  # package -> those that it may import
    "utils": set(),
    "backbone": {"utils"},
    "model": {"backbone", "utils"},
    "dataset": {"utils"},
    "eval": {"dataset", "model", "backbone", "utils"},
}


def imported(path: Path) -> set[str]:
    """Modules that a file names in its imports, wherever they stand in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.parametrize("package", BELOW)
def test_package_imports_only_what_lies_below_it(package):
    own = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    for path in (ROOT / package).rglob("*.py"):
        packages = {name.split(".")[0] for name in imported(path)} & own
        assert packages <= BELOW[package] | {package}, path


def test_dataset_reads_footage_without_what_prepares_it():
    commands = {"prepare.py", "show.py", "synthetic.py", "verify.py"}  # python -m dataset.prepare
    for path in set((ROOT / "dataset").glob("*.py")) - {ROOT / "dataset" / name for name in commands}:
        assert not any(name.startswith("dataset.preparation") for name in imported(path)), path
