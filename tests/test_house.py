"""Imports point down, along the arrows that were decided, and what is public is listed."""

import ast
from importlib import metadata
from pathlib import Path

import pytest

import curate
from tests import house
from tests.house import ARROWS, ROOT, imports, room_of

FILES = house.files()


def test_arrows_are_those_decided() -> None:
    allowed = {(room, other) for room, others in ARROWS.items() for other in others.split()}
    assert house.arrows() == allowed
    assert {room for room, _ in allowed} >= {room_of(path) for path in FILES} - {"errors"}


def test_no_room_is_in_a_circle() -> None:
    assert min(house.floors().values()) > 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_policies_see_no_model_and_rules_no_data(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    if parts[:2] == ("selection", "policies"):
        assert imports(path) <= {"selection", "runtime", "errors"}
        assert "torch" not in path.read_text()
    if parts[0] == "rules":
        assert imports(path) <= {"rules", "errors"}


def test_files_and_functions_fit_on_a_few_screens() -> None:
    assert max(house.lines(path) for path in FILES) <= 450
    sizes = [f.end_lineno - f.lineno + 1 for path in FILES for f in house.functions(path)]  # type: ignore[operator]
    assert max(sizes) <= 100


def test_every_source_file_has_a_test_file() -> None:
    assert not house.untested()


def test_nothing_is_kept_from_the_formatter() -> None:
    assert house.suppressed() == {"curate": 0, "tests": 0, "examples": 0}


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/__init__.py")), ids=lambda p: p.parent.name)
def test_every_room_lists_what_is_public(path: Path) -> None:
    names = {}
    for node in ast.parse(path.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name):
            names[target.id] = node.value  # type: ignore[union-attr, attr-defined]
    listed = ast.literal_eval(names["__all__"])
    assert len(set(listed)) == len(listed)


def test_public_names_are_sorted_and_all_there() -> None:
    assert curate.__all__ == sorted(curate.__all__) == dir(curate)
    assert all(getattr(curate, name) is not None for name in curate.__all__)
    assert curate.__version__ == metadata.version("curate")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = curate.nothing
