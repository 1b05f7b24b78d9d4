"""The one cost model: what a run does, counted, and what that costs in passes.

All arithmetic, before any of it is done. A *pass* is the gradient of one batch, forward and
backward; a step of plain training is one, a forward pass a third. `--plan`, the announcements of
select and verify, the budget of a tuning and the share that goes into probing are all priced here;
`pipeline/forecast.py` turns passes into seconds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from curate.influence.differences import EVERY
from curate.trajectory import redone

LOOKS = 64
"""Windows of a run, about, at whose end the targets' losses are measured again."""
BACK, CENTRAL = 1.3, 2.6
"""Passes of the way back through a step, per target; where all differences are central. One more
where the step's gradient was not kept."""
FIRST, SLOPES = 1.0, 0.3
"""Passes of a window's first step, from which no adjoint goes on: a gradient, and per target."""
WATCHED = 4
"""Steps of the longest window whose first step is seen as it is recorded (`Slopes.see`), which
saves that gradient and takes a graph's memory until it is scored."""
PIECES = 0.35
"""Passes per step of the way back through a model with kinks: a forward pass, see `Near`. What
is kept of it is a quarter of a graph, about."""
JUMP = 5.0
"""Passes that the exact jump adds to a step, on a small model."""
SETUP, STEP_SIZES, CHECK = 1.0, 3.0, 2.0
"""Passes once a run, to check slopes against a gradient, and to find how far to step where
differences are taken; and per target, every so many differences, to check those (`EVERY`)."""
FORWARD = 1 / 3
"""Passes of a forward pass alone."""
LEAST = 5
"""Removals that a run follows at least, if it has as many windows, whatever its share pays for:
fewer say little of their error."""
START = 3.0
"""Passes of beginning to follow a removal, beside the steps to the window's end."""


@dataclass(frozen=True)
class RunShape:
    """The numbers of a run that decide what it costs.

    kept: share of its candidates (or of their tokens) that every step keeps, one per step.
    horizon: of the windows. rounds: of each.
    goes_back: whether influences are wanted; if not, a window is only recorded.
    memory, disk: states kept at once, in memory and in files.
    gradients: recorded gradients that are kept at once. There is room for all unless given.
    targets: Q. target_share: a pass over all of them, in passes.
    central, kinked, exact_jump: how influences are computed. probing: share spent on their error.
    watched: whether the first steps of windows that are short enough are seen.
    """

    kept: Sequence[float]
    horizon: int
    rounds: int = 1
    goes_back: bool = True
    memory: int = 10**9
    disk: int = 0
    gradients: int = 10**9
    targets: int = 1
    target_share: float = 0.0
    central: bool = False
    kinked: bool = False
    exact_jump: bool = False
    probing: float = 0.0
    watched: bool = False

    @property
    def windows(self) -> list[range]:
        """The steps of every window."""
        total = len(self.kept)
        firsts = range(0, total, self.horizon)
        return [range(first, min(first + self.horizon, total)) for first in firsts]

    @property
    def longest(self) -> int:
        """Steps of the longest window."""
        return min(self.horizon, len(self.kept))


@dataclass(frozen=True)
class Work:
    """The steps that a run takes, by kind.

    recorded: forward steps of the windows; `kept` of them keep their gradients. scored:
    backward steps. redone: forward steps again on the way back, for want of
    snapshots. committed: forward steps on what was kept. target_passes: gradients of all
    targets; target_looks: their losses alone. written: states that go to disk in recording.
    """

    recorded: int
    kept: int
    scored: int
    redone: int
    committed: int
    target_passes: int
    target_looks: int
    written: int


@dataclass(frozen=True)
class Passes:
    """What a run costs, in passes, part by part. Probes are an expectation, the rest exact.

    Of all processes together: each does its share of every pass.
    """

    record: float = 0.0
    score: float = 0.0
    redo: float = 0.0
    commit: float = 0.0
    targets: float = 0.0
    probes: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))


def work(run: RunShape) -> Work:
    """The steps that a run takes; what a budget by threshold drops whole is counted as done."""
    lengths = [len(window) for window in run.windows]
    recorded = run.rounds * sum(lengths)
    committed = sum(len(own) for own in _committed(run))
    if not run.goes_back:
        return Work(recorded, 0, 0, 0, committed, 0, 0, 0)
    places = run.memory + run.disk
    return Work(
        recorded=recorded,
        kept=run.rounds * sum(_gradients_at_hand(run, length) for length in lengths),
        scored=recorded,
        redone=run.rounds * sum(redone(length, places) for length in lengths),
        committed=committed,
        target_passes=run.rounds * len(lengths),
        target_looks=len(_looks(run)),
        written=run.rounds * sum(states_on_disk(run, length) for length in lengths),
    )


def passes(run: RunShape) -> Passes:
    """What a run costs, in passes."""
    done = work(run)
    commit = sum(sum(run.kept[k] for k in steps) for steps in _committed(run))
    if not run.goes_back:
        return Passes(record=done.recorded, commit=commit)
    windows = [len(window) for window in run.windows]
    return Passes(
        record=done.recorded,
        score=run.rounds * sum(_back(run, length) for length in windows)
        + done.scored
        - done.kept
        + checks(run),
        redo=done.redone,
        commit=commit,
        targets=(done.target_passes + done.target_looks * FORWARD) * run.target_share,
        probes=_probes(run, windows),
    )


def scoring_passes(run: RunShape, length: int) -> float:
    """A window of so many steps, recorded and scored once, every state and gradient kept."""
    return length + _back(run, length) + run.target_share


def removal_passes(run: RunShape, length: float) -> float:
    """Following a removal exactly, for so many steps to its window's end."""
    return START + length + FORWARD * run.target_share


def leaving_out_passes(run: RunShape, rows: int, epoch: float, *, last: bool = False) -> float:
    """Leaving so many rows out of a window each, and training again from there to its end.

    epoch: steps of one. A row is left out of every step of the window that has it, or, if `last`,
    out of the last of them. What comes before the first such step is trained once for all rows
    of a window.
    """
    windows = min(rows, len(run.windows))
    span = min(run.longest, epoch)  # where the first or last step with a row lies
    rest = span / 2 if last else run.longest - span / 2
    before = (run.longest if last else span) - span / (rows / windows + 1)
    look = FORWARD * run.target_share
    return rows * (rest + look) + windows * (before + look)


def _back(run: RunShape, length: int) -> float:
    """The way back through a window of so many steps whose gradients were kept."""
    each = run.targets * (CENTRAL if run.central else BACK) + (PIECES if run.kinked else 0)
    jumps = JUMP * length if run.exact_jump else 0
    first = 0.0 if run.watched and length <= WATCHED else FIRST
    return (length - 1) * each + first + SLOPES * run.targets + jumps


def checks(run: RunShape) -> float:
    """What makes sure of slopes and differences, in a whole run."""
    products = run.rounds * (len(run.kept) - len(run.windows))
    if not products:
        return SETUP
    return SETUP + STEP_SIZES + CHECK * run.targets * -(-products // EVERY)


def _probes(run: RunShape, windows: Sequence[int]) -> float:
    """Removals followed in a run, about: how many there are depends on where they fall."""
    if run.probing == 0 or not windows:
        return 0.0
    scoring = run.rounds * sum(scoring_passes(run, length) for length in windows)
    one = removal_passes(run, windows[0] - (windows[0] - 1) / 3)
    return max(run.probing * scoring, one * min(LEAST, len(windows)))


def _gradients_at_hand(run: RunShape, length: int) -> int:
    """Steps of a window whose gradient need not be computed again only to be scored.

    Where states were not kept, those on the way from one that was are done again, and room
    for gradients holds theirs.
    """
    places = run.memory + run.disk
    return min(length, run.gradients) if places >= length else min(length - places, run.gradients)


def _looks(run: RunShape) -> list[int]:
    """The first steps of `measured` after which there is something to measure."""
    firsts = measured(len(run.kept), run.horizon)
    return [k for k in firsts if any(share < 1 for share in run.kept[k : k + run.horizon])]


def states_on_disk(run: RunShape, length: int) -> int:
    """States of a window that memory has no room for and the disk has, when it is recorded."""
    return min(run.disk, max(0, length - run.memory))


def _committed(run: RunShape) -> list[range]:
    """The steps trained on what was kept: none after the last window, nor after one kept whole."""
    return [window for window in run.windows[:-1] if any(run.kept[k] < 1 for k in window)]


def measured(total: int, horizon: int) -> range:
    """First steps of the windows of a run whose prediction is compared with what came of it.

    Not the last, which nothing is trained after; every so many where there are more than `LOOKS`.
    """
    every = -(-(total // horizon) // LOOKS) or 1
    return range(0, total - horizon, every * horizon)
