"""Fixtures for everybody. The Hugging Face cache goes to a temporary place first of all."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_cache = tempfile.mkdtemp(prefix="curate-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["HF_HOME"] = _cache
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch
from matplotlib.figure import Figure

from tests.job import RECIPE, rows

RENDER = Figure.savefig
BLANK = {"svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>', "png": b"\x89PNG\r\n\x1a\n"}


LONG = [
    "runtime/ranks/test_group.py",
    "integrations/test_ranks.py",
    "integrations/test_trl.py",
    "test_examples.py",
    "integrations/test_hf_trainer.py",
    "integrations/test_place.py",
    "tuning/test_tune.py",
    "pipeline/test_select.py",
    "test_language_models.py",
    "pipeline/test_verify.py",
]
"""The files that take longest, half a minute and more; several processes begin with these, since
otherwise one goes on by itself in the end."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # by how many tests a file has


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same RNG, on one thread: the tensors here are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def blank_figures() -> Iterator[None]:
    """Figures are not drawn, which is half of a small run. tests/output draws."""

    def save(figure: Figure, file: Any, *, format: str = "png", **options: Any) -> None:
        if isinstance(file, str | Path):
            Path(file).write_bytes(BLANK[format])
        else:
            file.write(BLANK[format])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        patch.setattr("curate.output.figures.Figure.picture", "data:image/svg+xml;base64,")
        yield


@pytest.fixture
def real_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", RENDER)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows().to_parquet("rows.parquet")
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path
