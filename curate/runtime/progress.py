"""Phases of a job: how long each took, and a bar on the long ones."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Phases:
    """Times named phases; with `bars`, shows their progress on stderr."""

    def __init__(self, *, bars: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._bars = bars

    @contextmanager
    def phase(self, name: str, total: int = 0, unit: str = "step") -> Iterator[Callable[..., None]]:
        """Run a phase of `total` ticks; yields the function that counts one, or so many."""
        start = time.monotonic()
        hidden = not self._bars or total == 0
        with tqdm(
            total=total, desc=name, disable=hidden, leave=False, file=sys.stderr, unit=unit
        ) as bar:

            def tick(count: int = 1) -> None:
                bar.update(count)

            try:
                yield tick
            finally:
                elapsed = time.monotonic() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed


def say(line: str) -> None:
    """Print a line on stderr, above the bar if there is one."""
    tqdm.write(line, file=sys.stderr)
