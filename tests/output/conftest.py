"""Figures are rendered here."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def blank_figures() -> None:
    """None is blank."""
