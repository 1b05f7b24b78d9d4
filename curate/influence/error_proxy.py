"""The error proxy: what every score of a run may be off by, from a few probes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curate.influence.cost import LEAST, RunShape, removal_passes, scoring_passes
from curate.influence.probes import Probe, Probing, as_probes, size_of
from curate.influence.window import WindowScores
from curate.trajectory import Step

Error = Callable[[Probe], float]
BORROWED = 4
"""Probes' worth of the whole run's error that a window's own probes are averaged with."""


@dataclass(frozen=True)
class WindowError:
    """What the scores of one window are worth. Means over its candidates, in loss units.

    first_step, steps: where it is in the run, and K. candidates: scored in it, over
    all steps. probes: removals followed in it.
    signal: |influence|, which is the mean of `size_of`, too. error: expected
    absolute error of an influence. jump, propagation: its two terms, see `Probe`; of
    the exact jump's influences, the jump is what they do without. derivative: what
    differences of gradients may have put influences off by (`Differences`), of which
    propagation holds what it is in truth.
    target_loss: at the window's end, mean over the targets.
    """

    first_step: int
    steps: int
    candidates: int
    probes: int
    signal: float
    error: float
    jump: float
    propagation: float
    derivative: float
    target_loss: float

    def row(self) -> dict[str, Any]:
        """Plain values, a row of a table."""
        return asdict(self)


class ErrorProxy:
    """Expected absolute error of every influence of a run, window by window.

    In every window some removals are followed exactly to its end (`probe`). Over
    the candidates of a window with influences I_i, errors are taken to be

        E |error_i| = c q_i,     q_i = (|I_i| + mean of |I_j| over its step) / 2,

    one part in proportion to the influence, one common to the step. Probes are
    drawn in proportion to q, so that c is a mean over them,

        c = (sum_p e_p / q_p + m C) / (n + m),     e_p = |I_p - actual_p|,

    C the same over all windows of the run, weighted by their q, and m = `BORROWED`.

    It *estimates* the mean of |error|, unbiased whether or not errors go with q,
    since the probes are a random sample of what it is about; their terms are
    exact and no growth of errors along the window is assumed. It *bounds* nothing: a
    removal that sends the run elsewhere, one in hundreds, is seen by luck only, so
    that the estimate is more often too low than too high where those are most of the error,
    and a run of a few probes is known to within a factor of 2 or 3. For one row it is the
    error that rows of such an influence have, not its own. An influence averaged
    over occurrences gets the average of their errors, too much where they cancel.

    Cost: about `share` of what scoring the window costs. Memory: O(T B), and a
    state and an adjoint per probe of a window.
    """

    def __init__(
        self, share: float, *, exact: bool, rounds: int = 1, targets: int = 1, seed: int = 0
    ) -> None:
        """`exact`: whether influences are those of the exact jump, of so many targets.

        `rounds` of scoring are paid.
        """
        self._share, self._exact, self._rounds, self._targets = share, exact, rounds, targets
        self._random = np.random.default_rng(seed)
        self._left = 0.0
        self._windows: list[_Window] = []
        self._summed, self._weight, self._total = 0, 0.0, 0.0  # see `latest`

    def plan(self, steps: Sequence[Step], target_rows: int) -> Probing:
        """How many removals of a window to follow.

        As many as the share pays for, on average over the windows. They are drawn where
        influences are large, which is early more often than late: a third into the window. One in
        every window at least until there are `LEAST`.
        """
        shape, length = self._shape(steps, target_rows), len(steps)
        self._left += self._share * self._rounds * scoring_passes(shape, length)
        number = int(self._left / removal_passes(shape, length - (length - 1) / 3))
        if self._share > 0 and sum(len(window.probes) for window in self._windows) < LEAST:
            number = max(number, 1)  # a short run, too, has to know something
        return Probing(max(number, 0), int(self._random.integers(2**62)))

    def enter(
        self, first_step: int, steps: Sequence[Step], scores: WindowScores, target_rows: int
    ) -> None:
        """Take in a window that was scored with the probing planned for it."""
        shape = self._shape(steps, target_rows)
        self._left -= sum(removal_passes(shape, len(steps) - p.step) for p in scores.probes)
        influences = scores.overall
        self._windows.append(
            _Window(
                first_step=first_step,
                rows=np.concatenate([step.rows.numpy() for step in steps]),
                sizes=np.concatenate([size_of(values).numpy() for values in influences]),
                steps=len(steps),
                signal=float(torch.cat(influences).abs().mean()),
                derivative=scores.drift,
                target_loss=scores.overall_loss,
                probes=scores.probes,
            )
        )

    def latest(self) -> float:
        """Expected absolute error of an influence of the window entered last, as known so far.

        After the last window, what `windows` says of it. Cost: constant over a run, on average.
        """
        for window in self._windows[self._summed :]:
            if window.probes:
                size = window.sizes.sum()
                self._weight += size
                self._total += size * window.errors(self._error) / len(window.probes)
        self._summed = len(self._windows)
        overall = self._total / self._weight if self._weight > 0 else 0.0
        last = self._windows[-1]
        return last.ratio(self._error, overall) * last.signal

    def windows(self) -> list[WindowError]:
        """The windows entered, in order."""
        kinds: list[Error] = [self._error, attrgetter("jump"), attrgetter("propagation")]
        ratios = [self._ratios(error) for error in kinds]
        return [
            WindowError(
                first_step=window.first_step,
                steps=window.steps,
                candidates=len(window.rows),
                probes=len(window.probes),
                signal=window.signal,
                error=error * window.signal,
                jump=jump * window.signal,
                propagation=propagation * window.signal,
                derivative=window.derivative,
                target_loss=window.target_loss,
            )
            for window, error, jump, propagation in zip(self._windows, *ratios, strict=True)
        ]

    def rows(self, count: int) -> NDArray[Any]:
        """Expected absolute error of every candidate's mean influence, shape (count,).

        NaN for one that was never offered.
        """
        total, seen = np.zeros(count), np.zeros(count)
        for window, ratio in zip(self._windows, self._ratios(self._error), strict=True):
            np.add.at(total, window.rows, ratio * window.sizes)
            np.add.at(seen, window.rows, 1)
        return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)

    def saved(self) -> dict[str, Any]:
        """All that was entered and planned so far, in plain values and arrays."""
        windows = [asdict(w) | {"count": len(w.rows)} for w in self._windows]
        return {
            "left": self._left,
            "random": self._random.bit_generator.state,
            "rows": np.concatenate([np.zeros(0, int), *(w.pop("rows") for w in windows)]),
            "sizes": np.concatenate([np.zeros(0), *(w.pop("sizes") for w in windows)]),
            "windows": windows,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Resume from what was `saved`."""
        self._left, self._random.bit_generator.state = saved["left"], saved["random"]
        ends = np.cumsum([w.pop("count") for w in saved["windows"]], dtype=np.int64)[:-1]
        parts = np.split(saved["rows"], ends), np.split(saved["sizes"], ends)
        self._windows = [
            _Window(**w | {"rows": rows, "sizes": sizes, "probes": as_probes(w["probes"])})
            for w, rows, sizes in zip(saved["windows"], *parts, strict=False)
        ]

    def _shape(self, steps: Sequence[Step], target_rows: int) -> RunShape:
        """What decides the price of a window of `steps`."""
        share = target_rows * len(steps) / sum(len(step.rows) for step in steps)
        return RunShape(
            kept=[1.0] * len(steps),
            horizon=len(steps),
            targets=self._targets,
            target_share=share,
            exact_jump=self._exact,
        )

    def _error(self, probe: Probe) -> float:
        return probe.propagation if self._exact else abs(probe.actual - probe.linear)

    def _ratios(self, error: Error) -> list[float]:
        """c of every window for one kind of error."""
        probed = [
            (window.sizes.sum(), window.errors(error) / len(window.probes))
            for window in self._windows
            if window.probes
        ]
        weight = sum(size for size, _ in probed)
        overall = sum(size * mean for size, mean in probed) / weight if weight > 0 else 0.0
        return [window.ratio(error, overall) for window in self._windows]


def expected_error(windows: Sequence[WindowError]) -> dict[str, float]:
    """A run's errors in loss units, means over its candidates; and how many probes it has."""
    weights = [window.candidates for window in windows]
    return {"probes": sum(window.probes for window in windows)} | {
        name: float(np.average([getattr(window, name) for window in windows], weights=weights))
        for name in ("signal", "error", "jump", "propagation", "derivative")
    }


@dataclass(frozen=True)
class _Window:
    first_step: int
    rows: NDArray[Any]
    sizes: NDArray[Any]
    steps: int
    signal: float
    derivative: float
    target_loss: float
    probes: list[Probe]

    def errors(self, error: Error) -> float:
        """The errors of the window's probes together, in units of their sizes."""
        return sum(error(probe) / probe.size for probe in self.probes if probe.size > 0)

    def ratio(self, error: Error, overall: float) -> float:
        """c of the window: its probes, averaged with what is known of the whole run."""
        return (self.errors(error) + BORROWED * overall) / (len(self.probes) + BORROWED)
