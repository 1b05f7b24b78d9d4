"""What is installed, as the packages themselves say."""

import platform

import datasets
import pytest
import torch

import curate
from curate.runtime import versions as module
from curate.runtime.versions import versions


def test_versions_are_those_of_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert [*found][:2] == ["python", "curate"]
    assert found["python"] == platform.python_version()
    assert found["curate"] == curate.__version__
    assert torch.__version__.startswith(found["torch"])  # and perhaps +cpu
    assert found["datasets"] == datasets.__version__
    monkeypatch.setattr(module, "PACKAGES", ("curate", "not-installed-anywhere"))
    assert versions().keys() == {"python", "curate"}
