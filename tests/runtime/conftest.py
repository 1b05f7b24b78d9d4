"""Runs of this room write no page: no test here is about it, and its figures take the most time."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _no_page() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curate.pipeline.select.leave_report", lambda *_: None)
        yield
