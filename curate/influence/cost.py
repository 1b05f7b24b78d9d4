"""What a run will take: its steps, passes and memory, before any of it is done.

All arithmetic. A *pass* is the gradient of one batch; a step of plain training is one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from curate.influence import probing_passes
from curate.trajectory import redone

LOOKS = 64
"""Windows of a run, about, at whose end the targets' losses are measured again."""


BACK, CENTRAL = 1.3, 2.6
"""Passes of the way back through a step, per target; where all differences are central. One more
where the step's gradient was not kept."""
FIRST = 1.0
"""Passes of a window's first step, from which no adjoint goes on, beside `SLOPES` per target."""
SLOPES = 0.3
PIECES = 0.35
"""Passes per step of the way back through a model with kinks: a forward pass, see `Near`. What
is kept of it is a quarter of a graph, about."""
JUMP = 5
"""Passes that the exact jump adds to a step, on a small model."""


@dataclass(frozen=True)
class RunShape:
    """What of a run decides what it takes.

    kept: share of its candidates (or of their tokens) that every step keeps, one per step.
    horizon: of the windows. rounds: of each.
    goes_back: whether influences are wanted; if not, a window is only recorded.
    memory, disk: states kept at once, in memory and in files.
    gradients: recorded gradients that are kept at once.
    targets: Q. target_share: a pass over all of them, in passes.
    central, kinked, exact_jump: how influences are computed. probing: share spent on their error.
    """

    kept: Sequence[float]
    horizon: int
    rounds: int
    goes_back: bool
    memory: int
    disk: int = 0
    gradients: int = 0
    targets: int = 1
    target_share: float = 0.0
    central: bool = False
    kinked: bool = False
    exact_jump: bool = False
    probing: float = 0.0

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
    """Steps that a run does.

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
    """The steps that a run does; what a budget by threshold drops whole is counted as done."""
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
        written=run.rounds * sum(_on_disk(run, length) for length in lengths),
    )


def passes(run: RunShape) -> Passes:
    """What a run costs, in gradients of one batch."""
    own = work(run)
    commit = sum(sum(run.kept[k] for k in steps) for steps in _committed(run))
    if not run.goes_back:
        return Passes(record=own.recorded, commit=commit)
    firsts = own.target_passes  # one in every window, every round
    each = CENTRAL if run.central else BACK
    through = run.targets * (each * (own.scored - firsts) + SLOPES * firsts) + FIRST * firsts
    through += PIECES * (own.scored - firsts) if run.kinked else 0
    jumps = JUMP * own.scored if run.exact_jump else 0
    lengths = [len(window) for window in run.windows]
    return Passes(
        record=own.recorded,
        score=through + (own.scored - own.kept) + jumps,
        redo=own.redone,
        commit=commit,
        targets=(own.target_passes + own.target_looks / 3) * run.target_share,
        probes=probing_passes(
            run.probing, lengths, run.target_share, exact=run.exact_jump, rounds=run.rounds
        ),
    )  # fmt: skip


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


def _on_disk(run: RunShape, length: int) -> int:
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
