"""Adapters are loaded anew for every test, with whatever package stands in for the real one."""

import sys
from collections.abc import Iterator

import pytest

from curate.runtime.trackers.open import KINDS


@pytest.fixture(autouse=True)
def _no_tracker_is_loaded() -> Iterator[None]:
    names = [f"curate.runtime.trackers.{kind}" for kind in KINDS]
    for name in names:
        sys.modules.pop(name, None)
    yield
    for name in names:
        sys.modules.pop(name, None)
