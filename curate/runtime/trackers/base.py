"""What a tracker is, and what keeps one that fails from taking the run with it."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol


class Tracker(Protocol):
    """Something that shows numbers over the steps of a run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take numbers by name, at a step that never goes back."""
        ...


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=4)


class Careful:
    """Passes numbers on to a tracker until it raises: then says so in a line, and stops.

    The run itself goes on. An interrupt still interrupts.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], None] = _warn) -> None:
        self._tracker, self._warn = tracker, warn
        self._works = True

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """As a `Tracker` does."""
        if not self._works:
            return
        try:
            self._tracker.log(metrics, step)
        except Exception as error:
            self._works = False
            reason = " ".join(str(error).split()) or "no reason given"
            self._warn(
                f"{type(self._tracker).__name__} failed with {type(error).__name__}: {reason}; "
                "the run goes on without it."
            )


def careful(trackers: Iterable[Tracker]) -> list[Careful]:
    """Trackers that may fail without harm to the run."""
    return [tracker if isinstance(tracker, Careful) else Careful(tracker) for tracker in trackers]


def log_metrics(
    trackers: Sequence[Tracker], of: str, metrics: dict[str, float | None], step: int
) -> None:
    """Log those of `metrics` that are not None, as `of/NAME`."""
    named = {f"{of}/{name}": float(value) for name, value in metrics.items() if value is not None}
    for tracker in trackers:
        tracker.log(named, step)
