"""What a run holds in memory and in files at its most, part by part, from its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from curate.influence.cost import RunShape, states_on_disk
from curate.runtime.savepoints import KEPT
from curate.selection.ledger import ledger_columns
from curate.trajectory import HEADER

AT_HAND = 5
"""Gradients and the like that a difference holds: the module's own, two summed, a shifted theta,
a direction; and one more per target."""
NUMBER = 8
"""Bytes of a score."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of the parts of a run.

    parameters: of the model, frozen ones included. state: of a training state; kept: of one where
    it is kept, which may be a share of it. gradient: of a step's. graph, targets: of the graph of
    a step, and of the part of the targets that is differentiated at a time. examples: what
    gradients example by example may take.
    """

    parameters: int
    state: int
    kept: int
    gradient: int
    graph: int
    targets: int
    examples: int


def memory(run: RunShape, sizes: Sizes) -> dict[str, int]:
    """Bytes that each process of a run holds at its fullest, part by part.

    Returns:
        parameters: of the model. snapshots: states kept, or one rank's shares of them, and the
        two whole ones at hand (two more with a disk or shares). recorded: gradients kept beside
        them, and those at hand. graph: of the step or the part of the targets at hand, whichever
        is larger. adjoints: Q states, before and after a step. gradients: example by example,
        for the exact jump.
    """
    at_hand = 4 if run.disk or sizes.kept < sizes.state else 2
    if not run.goes_back:
        parts = [sizes.parameters, 3 * sizes.state, 0, sizes.graph, 0, 0]
    else:
        parts = [
            sizes.parameters,
            min(run.memory, run.longest) * sizes.kept + at_hand * sizes.state,
            (min(run.gradients, run.longest) + AT_HAND + run.targets) * sizes.gradient,
            max(sizes.graph + (sizes.graph // 4 if run.kinked else 0), sizes.targets),
            2 * run.targets * sizes.state,
            sizes.examples if run.exact_jump else 0,
        ]
    names = ("parameters", "snapshots", "recorded", "graph", "adjoints", "gradients")
    return dict(zip(names, parts, strict=True))


def disk(run: RunShape, sizes: Sizes, candidates: int, rows: Sequence[int]) -> dict[str, int]:
    """Bytes that a process has in files at their most, beside the result.

    A savepoint holds a whole state, the sums behind scores and their errors so far, and between the
    rounds of a window the state at its end and its influences; some hundred bytes for every window
    are not counted.

    Args:
        candidates: how many there are. rows: how many every step has.

    Returns:
        snapshots: states kept for the way back. savepoints: what a run that dies resumes from,
        written by the first process.
    """
    snapshots = states_on_disk(run, run.longest) * (sizes.kept + HEADER) if run.goes_back else 0
    if not run.windows:
        return {"snapshots": snapshots, "savepoints": 0}
    rows_of_windows = [sum(rows[k] for k in window) for window in run.windows]
    targets = run.targets if run.goes_back else 0
    of_row = ledger_columns(targets, halved=run.goes_back) + (3 if run.probing else 0)
    size = sizes.state + NUMBER * candidates * of_row
    if run.rounds > 1:
        size += sizes.state + NUMBER * max(rows_of_windows) * (3 + 2 * targets)
    savepoints = min(KEPT + 1, run.rounds * len(run.windows)) * size
    return {"snapshots": snapshots, "savepoints": savepoints}
