"""The house keeps its order: imports run down the floors, and no test imports another."""

import ast
from pathlib import Path

import adazeta
from tests.helpers.paths import ROOT

FLOORS = [
    {"support"},
    {"version", "kernels"},
    {"models", "parameters", "rewards"},
    {"adapters", "directions", "estimation"},
    {"forward", "optim"},
    {"methods"},
    {"recording", "tasks"},
    {"training"},
    {"runs", "report", "__init__"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PACKAGE = ROOT / "adazeta"
TESTS = ROOT / "tests"


def imports(path: Path, root: str) -> set[str]:
    """Modules under a root that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix(f"{root}.") for name in found if name.startswith(f"{root}.")}


def name_of(path: Path) -> str:
    """Dotted name of a module of the package; a room's own name for its ``__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_has_a_floor():
    assert {name.partition(".")[0] for name in MODULES} == set(FLOOR)


def test_a_room_imports_only_from_lower_floors():
    wrong = []
    for name, path in MODULES.items():
        room = name.partition(".")[0]
        for imported in imports(path, "adazeta"):
            other = imported.partition(".")[0]
            if other in FLOOR and other != room and FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_no_imports_go_in_a_circle():
    below = {
        name: {other for other in imports(path, "adazeta") if other in MODULES} - {name}
        for name, path in MODULES.items()
    }
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert below == {}


def test_the_package_holds_few_entries_at_its_root():
    own = {"__init__", "__main__", "version", "py", "__pycache__"}
    entries = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith(".")}
    assert len(entries - own) <= 18


def test_no_public_name_is_that_of_a_room():
    assert not set(adazeta.__all__) & set(FLOOR)


def test_no_test_imports_another():
    names = {path.stem for path in TESTS.rglob("test_*.py")}
    for path in TESTS.rglob("*.py"):
        for imported in imports(path, "tests"):
            assert not names & set(imported.split(".")), f"{path.name} imports tests.{imported}"
