"""Phases of a job: how long each took, and one bar over all of them with the time that is left."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from curate.runtime.units import duration

REFRESH = 0.1
"""Seconds between two looks at the bar."""
TRUST = 0.1
"""Share of a phase after which its own pace is all that counts; and of phases that are alike, how
much of them it takes to trust how late they are."""
MOST = 1000
"""Looks that are remembered."""
FORM = "{percentage:3.0f}%|{bar}| {desc}"


class Outlook:
    """The time that a job takes still: what was foreseen, and how that has held so far.

    foreseen: seconds of every phase to come, in their order. A phase that was not is told by its
    own pace. alike: phases of the same work, which are late together.
    """

    def __init__(self, foreseen: Mapping[str, float], alike: Collection[str] = ()) -> None:
        self._foreseen, self._alike = dict(foreseen), alike
        self._order = [*foreseen]
        self._spent = self._planned = 0.0

    def finish(self, name: str, seconds: float) -> None:
        """A phase is done."""
        planned = self._foreseen.pop(name, None)
        if planned is not None and name in self._alike:
            self._spent += seconds
            self._planned += planned

    def left(self, name: str, share: float, seconds: float, pace: float) -> float:
        """Seconds, within a phase of which a share is done.

        seconds: that it took so far. pace: seconds that all of it takes by its latest ticks.
        """
        planned, spent, due = self._foreseen.get(name, 0.0), self._spent, self._planned
        if name in self._alike:
            spent, due = spent + seconds, due + share * planned
        doubt = TRUST * sum(self._foreseen.get(other, 0.0) for other in self._alike)
        late = (spent + doubt) / (due + doubt) if due + doubt > 0 else 1.0
        after = self._order[self._order.index(name) + 1 :] if name in self._order else self._order
        later = sum(
            self._foreseen.get(other, 0.0) * (late if other in self._alike else 1.0)
            for other in after
        )
        known = min(1.0, share / TRUST) if planned > 0 else 1.0
        first = planned * (late if name in self._alike else 1.0)
        return (1 - share) * (known * pace + (1 - known) * first) + later


class Phases:
    """Times named phases; with `bars`, shows on stderr how far the job is."""

    def __init__(self, *, bars: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._bars, self._outlook, self._far = bars, Outlook({}), 0.0

    def foresee(self, seconds: Mapping[str, float], alike: Collection[str] = ()) -> None:
        """Say how long the phases to come will take, see `Outlook`."""
        self._outlook = Outlook(seconds, alike)

    @contextmanager
    def phase(self, name: str, total: int = 0, unit: str = "step") -> Iterator[Callable[..., None]]:
        """Run a phase of `total` ticks; yields the function that counts one, or so many."""
        start = time.monotonic()
        hidden = not self._bars or total == 0
        with tqdm(
            total=1.0,
            initial=self._far,
            desc=name,
            disable=hidden,
            leave=False,
            file=sys.stderr,
            bar_format=FORM,
        ) as bar:
            pace = Pace(start, total)

            def tick(count: int = 1) -> None:
                now = pace.tick(count)
                if now is not None and not hidden:
                    self._show(bar, name, pace, now, unit)

            try:
                yield tick
            finally:
                elapsed = time.monotonic() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
                self._outlook.finish(name, elapsed)

    def _show(self, bar: Any, name: str, pace: "Pace", now: float, unit: str) -> None:
        gone = sum(self.seconds.values()) + now - pace.start
        left = self._outlook.left(name, pace.share, now - pace.start, pace.whole(now))
        self._far = max(self._far, gone / max(gone + left, 1e-9))  # a bar does not go back
        bar.n = self._far
        done = f"{name}: {pace.done:,} of {pace.total:,} {unit}s"
        bar.set_description_str(f"{done}; {duration(gone)} gone, {duration(left)} left")


class Pace:
    """How fast a phase is, by its later half: what a run before has done comes at once."""

    def __init__(self, start: float, total: int) -> None:
        self.start, self.total, self.done = start, total, 0
        self._next, self._looks = start, list[tuple[float, int]]()

    @property
    def share(self) -> float:
        """Of the phase, what is done."""
        return min(1.0, self.done / self.total)

    def tick(self, count: int) -> float | None:
        """Count; the time, if the bar is to be looked at."""
        self.done += count
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + REFRESH
        self._looks.append((now, self.done))
        if len(self._looks) > MOST:
            del self._looks[::2]
        return now

    def whole(self, now: float) -> float:
        """Seconds that all of it takes at its latest pace."""
        then, done = self._looks[len(self._looks) // 2 if len(self._looks) > 1 else 0]
        if len(self._looks) < 2 or self.done == done:
            return (now - self.start) / max(self.share, 1e-9)
        return (now - then) / (self.done - done) * self.total


def say(line: str) -> None:
    """Print a line on stderr, above the bar if there is one."""
    tqdm.write(line, file=sys.stderr)
