"""From `KIND:WHERE`, as the command line has it, to a tracker."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any, Protocol, cast

from curate.errors import MissingExtraError, OptionError
from curate.runtime.trackers.base import Careful, Tracker

KINDS = {
    "tensorboard": ("TensorBoard", "DIRECTORY"),
    "wandb": ("WandB", "[ENTITY/]PROJECT"),
    "mlflow": ("MLflow", "EXPERIMENT"),
}
"""By kind: its class in the module of that name, and what WHERE is."""


class Opened(Tracker, Protocol):
    """A tracker that curate opened and has to close."""

    def close(self, *, failed: bool = False) -> None:
        """Send what is left. `failed`: the run did."""
        ...


def open_tracker(text: str, config: Mapping[str, Any] | None = None) -> Opened:
    """A tracker from `tensorboard:DIRECTORY`, `wandb:[ENTITY/]PROJECT` or `mlflow:EXPERIMENT`.

    Args:
        config: the run's settings, in plain values, shown beside its numbers.

    Raises:
        OptionError: there is no such tracker, or it cannot be opened.
        MissingExtraError: its package is not installed.
    """
    kind, _, where = text.partition(":")
    if kind not in KINDS or not where:
        kinds = ", ".join(f"{name}:{what}" for name, (_, what) in KINDS.items())
        raise OptionError(f"--track {text}: must be one of {kinds}.")
    try:
        with redirect_stdout(sys.stderr):  # they greet, and ours may be JSON
            adapter = getattr(import_module(f"curate.runtime.trackers.{kind}"), KINDS[kind][0])
            return cast(Opened, adapter(where, config or {}))
    except ImportError as error:
        raise MissingExtraError(kind, f"--track {text}") from error
    except Exception as error:  # whatever it and the network raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise OptionError(f"--track {text}: cannot be opened: {reason}.") from error


@contextmanager
def tracking(
    texts: Sequence[str], config: Mapping[str, Any], warn: Callable[[str], None]
) -> Iterator[list[Careful]]:
    """Trackers for the length of a run; `warn` gets a line if one fails."""
    opened: list[Opened] = []
    failed = True
    try:
        for text in texts:
            opened.append(open_tracker(text, config))
        yield [Careful(tracker, warn) for tracker in opened]
        failed = False
    finally:
        for tracker in opened:
            _close(tracker, failed, warn)


def _close(tracker: Opened, failed: bool, warn: Callable[[str], None]) -> None:
    try:
        with redirect_stdout(sys.stderr):
            tracker.close(failed=failed)
    except Exception as error:
        warn(f"{type(tracker).__name__} failed to close: {' '.join(str(error).split())}.")
