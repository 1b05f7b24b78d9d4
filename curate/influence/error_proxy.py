"""The error proxy: what every score of a run may be off by, from a few probes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curate.influence.cost import LEAST, RunShape, removal_passes, scoring_passes
from curate.influence.probes import Probe, Probing, size_of
from curate.influence.window import WindowScores
from curate.runtime.large import add_to_rows, filled, large, pieces
from curate.runtime.records import Records
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

    Cost: about `share` of what scoring the window costs. Memory: 88 bytes a window, 24 bytes a row
    that was offered (in a file where they are many), and a state and an adjoint per probe of a
    window.
    """

    def __init__(
        self, share: float, *, exact: bool, rounds: int = 1, targets: int = 1, seed: int = 0
    ) -> None:
        """`exact`: whether influences are those of the exact jump, of so many targets.

        `rounds` of scoring are paid.
        """
        self._share, self._exact, self._rounds, self._targets = share, exact, rounds, targets
        self._random = np.random.default_rng(seed)
        self._left, self._probes = 0.0, 0
        self._windows, self._sums = Records(_Window), _Sums()
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
        if self._share > 0 and self._probes < LEAST:
            number = max(number, 1)  # a short run, too, has to know something
        return Probing(max(number, 0), int(self._random.integers(2**62)))

    def enter(
        self, first_step: int, steps: Sequence[Step], scores: WindowScores, target_rows: int
    ) -> None:
        """Take in a window that was scored with the probing planned for it."""
        shape, influences, probes = self._shape(steps, target_rows), scores.overall, scores.probes
        self._left -= sum(removal_passes(shape, len(steps) - p.step) for p in probes)
        self._probes += len(probes)
        rows = np.concatenate([step.rows.numpy() for step in steps])
        sizes = np.concatenate([size_of(values).numpy() for values in influences])
        window = _Window(
            first_step=first_step,
            steps=len(steps),
            candidates=len(rows),
            probes=len(probes),
            size=float(sizes.sum()),
            signal=float(torch.cat(influences).abs().mean()),
            derivative=scores.drift,
            target_loss=scores.overall_loss,
            error=_in_sizes(probes, self._error),
            jump=_in_sizes(probes, attrgetter("jump")),
            propagation=_in_sizes(probes, attrgetter("propagation")),
        )
        self._windows.append(window)
        own = window.ratio(window.error, 0.0)
        borrowed = window.ratio(window.error, 1.0) - own
        self._sums.add(rows, [own * sizes, borrowed * sizes, np.ones(len(rows))])

    def latest(self) -> float:
        """Expected absolute error of an influence of the window entered last, as known so far.

        After the last window, what `windows` says of it. Cost: constant over a run, on average.
        """
        for k in range(self._summed, len(self._windows)):
            window = self._windows[k]
            if window.probes:
                self._weight += window.size
                self._total += window.size * window.error / window.probes
        self._summed = len(self._windows)
        overall = self._total / self._weight if self._weight > 0 else 0.0
        last = self._windows[-1]
        return last.ratio(last.error, overall) * last.signal

    def windows(self) -> Sequence[WindowError]:
        """The windows entered, in order."""
        kinds = ("error", "jump", "propagation")
        overall, windows = {kind: self._overall(kind) for kind in kinds}, Records(WindowError)
        for window in self._windows:
            plain: dict[str, Any] = {name: getattr(window, name) for name in _SHARED}
            ratios = {kind: window.ratio(getattr(window, kind), overall[kind]) for kind in kinds}
            plain |= {kind: ratio * window.signal for kind, ratio in ratios.items()}
            windows.append(WindowError(**plain))
        return windows

    def rows(self, count: int) -> NDArray[Any]:
        """Expected absolute error of every candidate's mean influence, shape (count,).

        NaN for one that was never offered.
        """
        overall, errors = self._overall("error"), large(count, np.float64)
        for part in pieces(count):
            own, borrowed, seen = self._sums.of(part)
            total = own + overall * borrowed
            errors[part] = np.where(seen > 0, total / np.maximum(seen, 1), np.nan)
        return errors

    def saved(self) -> dict[str, Any]:
        """All that was entered and planned so far, in plain values and arrays."""
        return {
            "left": self._left,
            "random": self._random.bit_generator.state,
            "rows": self._sums.sums,
            "windows": self._windows.saved(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Resume from what was `saved`."""
        self._left, self._random.bit_generator.state = saved["left"], saved["random"]
        self._windows.restore(saved["windows"])
        self._probes = int(self._windows.column("probes").sum())
        self._sums.restore(saved["rows"])

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

    def _overall(self, kind: str) -> float:
        """C, of one kind of error."""
        probes, size = self._windows.column("probes"), self._windows.column("size")
        probed, errors = probes > 0, self._windows.column(kind)
        weight = float(size[probed].sum())
        total = float((size[probed] * errors[probed] / probes[probed]).sum())
        return total / weight if weight > 0 else 0.0


def expected_error(windows: Sequence[WindowError]) -> dict[str, float]:
    """A run's errors in loss units, means over its candidates; and how many probes it has."""
    weights = [window.candidates for window in windows]
    return {"probes": sum(window.probes for window in windows)} | {
        name: float(np.average([getattr(window, name) for window in windows], weights=weights))
        for name in ("signal", "error", "jump", "propagation", "derivative")
    }


@dataclass(frozen=True)
class _Window:
    """A window as it was entered, see `WindowError`.

    size: the sum of its candidates' sizes. error, jump, propagation: of its probes together, in
    units of their sizes.
    """

    first_step: int
    steps: int
    candidates: int
    probes: int
    size: float
    signal: float
    derivative: float
    target_loss: float
    error: float
    jump: float
    propagation: float

    def ratio(self, error: float, overall: float) -> float:
        """c of the window: its probes, averaged with what is known of the whole run."""
        return (error + BORROWED * overall) / (self.probes + BORROWED)


_SHARED = ("first_step", "steps", "candidates", "probes", "signal", "derivative", "target_loss")
"""What `_Window` and `WindowError` both have."""


def _in_sizes(probes: Sequence[Probe], error: Error) -> float:
    return sum((error(probe) / probe.size for probe in probes if probe.size > 0), 0.0)


class _Sums:
    """Sums over the windows of every row that was offered, shape (rows, 3); they grow.

    Errors by its windows' own probes; what goes with the run's overall ratio; how often.
    """

    def __init__(self) -> None:
        self.sums = large((0, 3), np.float64)

    def add(self, rows: NDArray[Any], columns: Sequence[NDArray[Any]]) -> None:
        """Add to some rows, shape (n,), each column of that shape."""
        if (most := int(rows.max()) + 1) > (held := len(self.sums)):
            before, self.sums = self.sums, large((max(most, held + held // 4), 3), np.float64)
            for part in pieces(held):
                self.sums[part] = before[part]
        add_to_rows(self.sums, rows, columns)

    def of(self, part: slice) -> NDArray[Any]:
        """Those of some rows, shape (3, n), 0 for what was never offered."""
        found = np.zeros((3, part.stop - part.start))
        there = self.sums[part].T
        found[:, : there.shape[1]] = there
        return found

    def restore(self, sums: NDArray[Any]) -> None:
        """Go on from `sums`."""
        self.sums = filled(sums)
