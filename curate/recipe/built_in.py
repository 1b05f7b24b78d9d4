"""The recipes that come with curate, by name: `digits` for `digits.yaml`."""

from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parents[2]
"""What holds the package: a clone, or the place that packages are installed to."""


def built_in() -> dict[str, Path]:
    """The file of each, by name; a clone has them beside the package, a wheel among its data."""
    if (HERE / "pyproject.toml").exists():
        files = [*(HERE / "recipes").glob("*.yaml")]
    else:
        shipped, ours = metadata.files("curate") or [], "share/curate/recipes/*.yaml"
        files = [Path(str(file.locate())).resolve() for file in shipped if file.match(ours)]
    return {file.stem: file for file in sorted(files)}


def find_recipe(path: Path) -> Path:
    """`path`, or the built-in recipe of that name where nothing lies there."""
    return path if path.exists() else built_in().get(str(path), path)
