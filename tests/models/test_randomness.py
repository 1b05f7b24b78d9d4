"""Numbers are drawn again from a seed, and those who drew before go on as if nothing had been."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from curate.models.randomness import (
    NUMPY,
    PYTHON,
    Source,
    seeded,
    source_of,
    torch_sources,
    undisturbed,
)

OWN: dict[str, tuple[Any, Callable[[Any], float]]] = {
    "torch's": (torch.Generator(), lambda own: float(torch.rand((), generator=own))),
    "Python's": (random.Random(1), lambda own: own.random()),
    "NumPy's": (np.random.default_rng(1), lambda own: own.random()),
    "NumPy's old": (np.random.RandomState(1), lambda own: own.rand()),
    "another of NumPy's": (np.random.Generator(np.random.MT19937(1)), lambda own: own.random()),
}


def source(value: Any) -> Source:
    found = source_of(value)
    assert found is not None
    return found


SOURCES: dict[str, tuple[Source, Callable[[], float]]] = {
    "torch": (torch_sources(torch.device("cpu"))[0], lambda: float(torch.rand(()))),
    "Python": (PYTHON, random.random),
    "NumPy": (NUMPY, lambda: float(np.random.rand())),  # noqa: NPY002
    **{
        name: (source(own), lambda own=own, draw=draw: draw(own))  # type: ignore[misc]
        for name, (own, draw) in OWN.items()
    },
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_seed_decides_what_is_drawn_and_the_source_goes_on(name: str) -> None:
    origin, draw = SOURCES[name]
    start = origin.state()
    plain = [draw(), draw()]
    origin.set_state(start)
    first = draw()
    before = origin.state()
    drawn = []
    for seed in (2**60 + 5, 2**60 + 5, 7):
        with seeded(seed, [origin]):
            drawn.append(draw())
            assert origin.moved_from(before)
        assert not origin.moved_from(before)
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ZeroDivisionError), undisturbed([origin]):  # noqa: PT012
        draw()
        raise ZeroDivisionError
    assert [first, draw()] == plain


def test_what_draws_nothing_is_no_source() -> None:
    assert all(source_of(value) is None for value in (1, "a", torch.zeros(2), random, np.random))
