"""Runs that many tests look at, each made once. Who changes one works on a copy."""

import shutil
from pathlib import Path

import pytest

from tests.job import RECIPE, curate, rows
from tests.output.made import ON_TEXT, made, texts


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with `rows.parquet`, a recipe, and what `curate select` made of it.

    out: retrained with two seeds, and judged against everything and random rows. loss: by a
    policy without influences.
    """
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        rows().to_parquet("rows.parquet")
        Path("recipe.yaml").write_text(RECIPE)
        evaluation = "evaluation={seeds: [0, 1], against: [everything, random]}"
        assert curate("recipe.yaml", "--out", "out", "--quiet", "--set", evaluation) == 0
        policy = "selection.policy=loss"
        assert curate("recipe.yaml", "--out", "loss", "--quiet", "--set", policy) == 0
    return place


@pytest.fixture(scope="session")
def on_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over texts that try to be markup, made up."""
    return made(tmp_path_factory.mktemp("on-text") / "run", texts(), ON_TEXT)


@pytest.fixture
def copied(on_text: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(on_text, tmp_path / "run"))


@pytest.fixture(autouse=True, scope="module")
def blank_figures() -> None:
    """None is blank here: figures are rendered."""
