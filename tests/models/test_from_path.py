"""The user's own models, and what their code raises."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from curate.errors import DataError, ModelError
from curate.models import build_model, foreign_code


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the working directory."""
    (tmp_path / "mine_for_models.py").write_text(
        "import torch\n"
        "def net(width): return torch.nn.Linear(4, width)\n"
        "def broken(): raise ValueError('no weights\\n here')\n"
        "class Odd(Exception): pass\n"
        "def odd(): raise Odd\n"
        "def leave(): raise SystemExit(3)\n"
        "def not_a_model(): return 3\n"
        "number = 3\n"
    )
    (tmp_path / "mine_unfinished.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine_for_models", None)


def test_a_factory_gives_a_module(mine: None) -> None:
    assert isinstance(build_model("mine_for_models:net", {"width": 3}), nn.Linear)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine_for_models:net", "raised TypeError"),
        ("mine_for_models:broken", r"raised ValueError: no weights here \(CURATE_TRACEBACK=1"),
        ("mine_for_models:odd", r"raised Odd \(CURATE_TRACEBACK=1 shows where\)"),
        ("mine_for_models:leave", "raised SystemExit: 3"),
        ("mine_for_models:not_a_model", "must return a torch.nn.Module but got a int"),
        ("mine_for_models:absent", "has no absent"),
        ("mine_unfinished:net", "importing mine_unfinished raised ZeroDivisionError"),
        ("no_such_module_at_all:net", "cannot import no_such_module_at_all"),
        ("mine_for_models", "must look like package.module:name"),
        ("mine_for_models:number", "is a int, not a function"),
    ],
)
def test_a_factory_that_fails_is_named(mine: None, path: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"^model.factory: .*{message}"):
        build_model(path, {})


@pytest.mark.parametrize("error", [DataError("ours"), ImportError("no"), KeyboardInterrupt()])
def test_errors_of_ours_and_missing_packages_pass_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign_code("it"):
        raise error
    assert caught.value is error
