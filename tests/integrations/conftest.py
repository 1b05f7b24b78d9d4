"""What tests of Accelerate and of what stands on it share."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """As if nothing had been told to Accelerate, before and after."""
    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._reset_state()
    yield
    for state in states:
        state._reset_state()
