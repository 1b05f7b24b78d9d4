"""What of a run trackers are told, and under which names."""

import time
from collections.abc import Sequence
from typing import Any

from curate.runtime.trackers import Tracker
from curate.selection.ledger import Outcome


class TrackedWindows:
    """Tells trackers what became of every window, at its first step.

    window/target_loss, window/predicted and window/realised are those of `Outcome`, in loss
    units; window/kept is a share of the candidates; window/influence the mean size of their
    influences, window/error what to expect those to be off by; window/seconds since the last.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers
        self._last = time.monotonic()

    def __call__(self, outcome: Outcome, error: float | None) -> None:
        now = time.monotonic()
        metrics = {
            "target_loss": outcome.target_loss,
            "predicted": outcome.predicted,
            "realised": outcome.realised,
            "kept": outcome.kept / outcome.candidates,
            "influence": outcome.signal,
            "error": error,
            "seconds": now - self._last,
        }
        self._last = now
        tell(self._trackers, "window", metrics, outcome.first_step)


def tell(trackers: Sequence[Tracker], of: str, metrics: dict[str, float | None], step: int) -> None:
    """Log what is known of `metrics`, as `of/NAME`."""
    known = {f"{of}/{name}": float(value) for name, value in metrics.items() if value is not None}
    for tracker in trackers:
        tracker.log(known, step)


def tell_summary(trackers: Sequence[Tracker], summary: dict[str, Any]) -> None:
    """Log what a selection came to, at the run's end: run/NAME, and NAME/METRIC of retrainings."""
    noise, error = summary.get("noise", {}), summary.get("error", {})
    metrics = {
        "candidates": summary["candidates"],
        "kept": summary["kept"],
        "influence": error.get("signal"),
        "error": error.get("error"),
        "noise_kept": noise.get("kept"),
        "noise_auroc": noise.get("auroc"),
        "seconds": sum(summary["seconds"].values()),
    }
    tell(trackers, "run", metrics, summary["steps"])
    for row in summary.get("evaluation", []):
        means = {name: own["mean"] for name, own in row.items() if isinstance(own, dict)}
        tell(trackers, f"test/{row['trained_on']}", means, summary["steps"])
