"""Fixtures for everybody. The Hugging Face cache goes to a temporary place first of all."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_cache = tempfile.mkdtemp(prefix="curate-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["HF_HOME"] = _cache
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch

from tests.job import RECIPE, rows


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same RNG, on one thread: the tensors here are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows().to_parquet("rows.parquet")
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path
