"""The folders of ``kernels/``: who may import whom, and one name per op in all of them."""

import ast

import pytest

from tests.helpers.paths import ROOT

KERNELS = ROOT / "kernels"
FILES = sorted(KERNELS.rglob("*.py"))
# Each may import from itself and from these; cpu and gpu know nothing of each other.
BELOW = {
    "plan": set(),
    "tables": set(),
    "reference": {"plan"},
    "cpu": {"plan", "reference"},
    "gpu": {"plan", "reference", "tables"},
    "dispatch": {"plan", "reference", "cpu"},
    "ops": {"plan", "reference", "cpu", "gpu", "dispatch"},
}


def room(path):
    return path.relative_to(KERNELS).with_suffix("").parts[0]


def imported_rooms(path):
    """What relative imports of a file reach, by the first part of the name under ``kernels/``."""
    inside = path.parent != KERNELS
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            if inside and node.level == 1:
                yield room(path)
            elif node.module:
                yield node.module.partition(".")[0]
            else:
                yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KERNELS)))
def test_imports_run_one_way(path):
    own = room(path)
    assert set(imported_rooms(path)) <= BELOW[own] | ({own} if path.parent != KERNELS else set())


def test_every_op_has_its_reference_under_the_same_name():
    names = {
        folder: {path.stem for path in (KERNELS / folder).glob("*.py")} - {"__init__"}
        for folder in ("ops", "reference", "gpu")
    }
    assert names["ops"] - {"checks", "calls"} == names["reference"] - {
        "philox",
        "arithmetic",
        "pairs",
    }
    # The rules are made of the noise; on a GPU torch unpacks blocks.
    assert names["ops"] - {"checks", "calls", "rules", "blocks"} <= names["gpu"]


def test_the_folders_are_packages_and_none_answers_to_the_name_of_another_distribution():
    folders = {path.name for path in KERNELS.iterdir() if any(path.glob("*.py"))}
    assert folders == {"ops", "reference", "gpu", "cpu"}
    assert all((KERNELS / folder / "__init__.py").is_file() for folder in folders)
