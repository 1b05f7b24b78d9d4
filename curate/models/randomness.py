"""What passes draw random numbers from, and how to draw the same ones again."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch


class Source(NamedTuple):
    """Where random numbers come from.

    state: reads a copy of its state. set_state: puts one back. seed: starts it from an integer.
    """

    state: Callable[[], Any]
    set_state: Callable[[Any], object]
    seed: Callable[[int], object]

    def moved_from(self, state: Any) -> bool:
        """Whether something was drawn since it was in `state`."""
        return not _same(self.state(), state)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple) and any(isinstance(part, np.ndarray) for part in one):
        return all(map(_same, one, other))
    if isinstance(one, dict):
        return all(_same(value, other[key]) for key, value in one.items())
    return bool(one == other)


PYTHON = Source(random.getstate, random.setstate, random.seed)
NUMPY = Source(
    np.random.get_state,
    np.random.set_state,
    lambda seed: np.random.seed(seed % 2**32),  # noqa: NPY002  # what others draw from
)


def source_of(value: Any) -> Source | None:
    """A generator as a source; None for anything else."""
    if isinstance(value, torch.Generator):
        # not torch.manual_seed, which formats a stack trace at every call
        return Source(value.get_state, value.set_state, value.manual_seed)
    if isinstance(value, random.Random):
        return Source(value.getstate, value.setstate, value.seed)
    if isinstance(value, np.random.RandomState):
        return Source(value.get_state, value.set_state, lambda seed: value.seed(seed % 2**32))
    if isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        return Source(
            lambda: bits.state,
            lambda state: setattr(bits, "state", state),
            lambda seed: setattr(bits, "state", type(bits)(seed).state),
        )
    return None


def torch_sources(device: torch.device) -> list[Source]:
    """What torch's own functions draw from, for tensors on the CPU and on `device`."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return [source for source in map(source_of, generators) if source is not None]


def usual_sources(device: torch.device) -> list[Source]:
    """What anybody may draw from: torch's, for tensors on `device`, Python's and NumPy's."""
    return [*torch_sources(device), PYTHON, NUMPY]


@contextmanager
def undisturbed(sources: Sequence[Source]) -> Iterator[None]:
    """A block after which the sources go on as if nothing had been drawn in it."""
    before = [source.state() for source in sources]
    try:
        yield
    finally:
        for source, state in zip(sources, before, strict=True):
            source.set_state(state)


@contextmanager
def seeded(seed: int, sources: Sequence[Source]) -> Iterator[None]:
    """A block that draws from sources started from `seed`, each in its own way."""
    with undisturbed(sources):
        for source in sources:
            source.seed(seed)
        yield
