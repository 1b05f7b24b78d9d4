"""What tests of Accelerate and of what stands on it share."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from curate.integrations.options import Options


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """As if nothing had been told to Accelerate, before and after."""
    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._reset_state()
    yield
    for state in states:
        state._reset_state()


@pytest.fixture(autouse=True)
def half_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops here keep half, by four rounds, unless they say otherwise: every window is then cut."""
    told = {"keep": 0.5, "rounds": 4}
    fields = Options.__dataclass_fields__
    defaults = tuple(told.get(name, field.default) for name, field in fields.items())
    monkeypatch.setattr(Options.__init__, "__defaults__", defaults)
