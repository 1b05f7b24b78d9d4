"""A tiny GPT-2 with its tokenizer and adapters, made once and copied for each test."""

import shutil
from pathlib import Path

import pytest

from tests import words


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    words.write(folder)
    words.write_adapter(folder / "adapter")
    return folder


@pytest.fixture
def there(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the model `tiny` and its `adapter`."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
