"""Imports point down, and what is public is listed."""

import ast
from importlib import metadata
from pathlib import Path

import pytest

import curate

ROOT = Path(curate.__file__).parent
FLOORS: list[set[str]] = [
    {"errors", "agreement", "files"},
    {"rules", "policies", "datasets", "progress", "log", "journal", "ranks", "trackers"},
    {"models", "savepoints"},
    {"trajectory"},
    {"influence", "recipe", "threads"},
    {"ledger", "reading"},
    {"candidates", "forecast", "tracked"},
    {"remarks"},
    {"output"},
    {"windows", "prepare"},
    {"select", "integrations", "identity", "retraining"},
    {"unfinished", "worth"},
    {"choose"},
    {"evaluate", "verify", "estimate"},
    {"tuning"},
    {"report"},
    {"jobs", "summary", "from_log", "process"},
    {"finished"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path) -> set[str]:
    """Rooms of curate that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("curate"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("curate.")}
    return found


FILES = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imports(path) - {room}:
        assert LEVEL[other] < LEVEL[room], f"{room} imports {other}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_policies_see_no_model_and_rules_no_data(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    if room == "policies":
        assert imports(path) <= {"policies", "errors"}
        assert "torch" not in path.read_text()
    if room == "rules":
        assert imports(path) <= {"rules", "errors"}


def test_files_fit_on_a_few_screens() -> None:
    assert max(len(path.read_text().splitlines()) for path in FILES) <= 450


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/__init__.py")), ids=lambda p: p.parent.name)
def test_every_room_lists_what_is_public(path: Path) -> None:
    names = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node.value
    listed = ast.literal_eval(names["__all__"])
    assert len(set(listed)) == len(listed)


def test_public_names_are_sorted_and_all_there() -> None:
    assert curate.__all__ == sorted(curate.__all__) == dir(curate)
    assert all(getattr(curate, name) is not None for name in curate.__all__)
    assert curate.__version__ == metadata.version("curate")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = curate.nothing
