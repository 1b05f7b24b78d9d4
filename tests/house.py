"""What the house measures: rooms, arrows, floors, sizes. `python -m tests.house` prints it.

A room is a folder of `curate/` (or a loose file in it), an arrow one room that imports another,
wherever in a file the import stands.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import curate
from curate.recipe import reference
from curate.recipe.section import Section, sections

ROOT = Path(curate.__file__).parent
PROJECT = ROOT.parent
ARROWS = {
    "errors": "",
    "recipe": "errors",
    "runtime": "errors",
    "datasets": "errors runtime",
    "rules": "errors",
    "models": "errors datasets",
    "output": "errors recipe runtime",
    "trajectory": "errors datasets rules runtime models",
    "influence": "errors datasets rules runtime models trajectory",
    "selection": "errors rules runtime trajectory influence",
    "pipeline": "errors recipe datasets rules runtime models output trajectory influence selection",
    "integrations": "errors datasets rules runtime models output trajectory influence selection",
    "tuning": "errors recipe rules runtime output trajectory influence selection pipeline",
    "cli": "errors recipe runtime output pipeline tuning",
    "__main__": "cli",
}
"""The rooms that each may import. Another arrow is a decision; `curate/README.md` draws them."""


def files() -> list[Path]:
    """Every source file but the package's own `__init__`, which is the front door of all."""
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def room_of(path: Path) -> str:
    """The room that a file is in."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, its own included."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("curate"):
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("curate.")}
    return rooms


def arrows() -> set[tuple[str, str]]:
    """(from, to) of every arrow between rooms."""
    return {
        (room_of(path), other)
        for path in files()
        for other in imports(path)
        if other != room_of(path)
    }


def floors() -> dict[str, int]:
    """How many rooms lie below each, one upon the other; -1 for a room in a circle."""
    found, rooms = arrows(), {room_of(path) for path in files()}
    below = {room: {b for a, b in found if a == room} for room in rooms}
    levels: dict[str, int] = {}
    while ready := [r for r in below if r not in levels and below[r] <= levels.keys()]:
        levels |= {room: 1 + max((levels[b] for b in below[room]), default=0) for room in ready}
    return {room: levels.get(room, -1) for room in below}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text().splitlines())


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many arguments a function takes, itself aside."""
    names = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(name.arg not in ("self", "cls") for name in names)


def suppressed() -> dict[str, int]:
    """How many lines each folder keeps from the formatter."""
    mark = "# fmt: " + "skip"
    return {
        folder: sum(path.read_text().count(mark) for path in (PROJECT / folder).rglob("*.py"))
        for folder in ("curate", "tests", "examples")
    }


def untested() -> list[str]:
    """Source files without a test file of their own."""
    return [
        str(path.relative_to(ROOT))
        for path in files()
        if path.name not in ("__init__.py", "__main__.py", "errors.py")
        and not (PROJECT / "tests" / path.relative_to(ROOT).with_name(f"test_{path.name}")).exists()
    ]


def main() -> None:
    """Print it."""
    levels = floors()
    longest = max(
        ((f.end_lineno or 0) - f.lineno + 1, f"{path.relative_to(ROOT)}:{f.name}")
        for path in files()
        for f in functions(path)
    )
    biggest = max((lines(path), str(path.relative_to(ROOT))) for path in files())
    undescribed = [
        f"{section.__name__}.{key}"
        for section in sections(Section)
        for key in section.model_fields.keys() - reference.described(section).keys()
    ]
    print(f"rooms: {len(levels)}; arrows: {len(arrows())}; floors: {max(levels.values())}")
    print(f"rooms in circles: {sum(level < 0 for level in levels.values())}")
    print(f"lines: {sum(map(lines, ROOT.rglob('*.py')))} in {len(files()) + 1} files")
    print(f"longest function: {longest[0]} lines, {longest[1]}")
    many = sorted(f.name for path in files() for f in functions(path) if arguments(f) > 6)
    print(f"functions of 7 and more arguments: {len(many)}, {', '.join(many)}")
    print(f"biggest file: {biggest[0]} lines, {biggest[1]}")
    print(f"recipe keys without a description: {len(undescribed)}")
    print(f"fmt: skip: {suppressed()}")
    print(f"source files without a test file of their own: {len(untested())}", *untested())


if __name__ == "__main__":
    main()
