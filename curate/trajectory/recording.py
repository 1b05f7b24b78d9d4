"""Record a stretch of training, then give its states back in reverse order."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from curate.errors import NonFiniteError
from curate.rules import Rule, State
from curate.trajectory.checkpoints import placements
from curate.trajectory.snapshots import Disk, Snapshots
from curate.trajectory.step import Gradient, Step, Task, forward_step, gradient


def ignore_step(_: object = None) -> None:
    """The default for `on_step`: nobody is watching."""


class Recording:
    """K steps that happened: their records, some of the states and gradients, the losses.

    With room for s states, in memory and on disk, whatever the number of steps, each step is
    done at most r times there and back, where C(s + r, s) > K (`checkpoints`); with s >= K,
    once. A state is P x (1 + slots) numbers. Gradients come on top.

    steps: the K records. final: the state after the last step.
    losses: per step, the candidates' losses before the update, shape (n,).
    """

    final: State

    def __init__(
        self,
        task: Task,
        rule: Rule,
        steps: Sequence[Step],
        kept: Snapshots,
        room: int,
        known: Gradient | None = None,
    ) -> None:
        """`kept`: at first, the state before the first step. `room`: for how many gradients.

        `known`: that of the first step, if it was computed before.
        """
        self.steps = steps
        self.losses: list[Tensor] = []
        self._task, self._rule, self._kept = task, rule, kept
        self._gradients = {} if known is None else {0: known}
        self._room = room

    def backwards(self) -> Iterator[tuple[int, State, Gradient]]:
        """(k, state before step k, gradient there) for k = K-1 .. 0; can be gone through once.

        What was not kept is recomputed from the nearest earlier state,
        bit for bit the same on a deterministic device.
        """
        if not self._kept:
            raise RuntimeError("this recording has been gone through already; record again")
        for k in reversed(range(len(self.steps))):
            state = self.state_before(k)
            yield k, state, self._gradient(k, state)

    def state_before(self, k: int, done: Callable[[Tensor], None] = ignore_step) -> State:
        """The state before step k, by redoing the steps from the nearest one that is kept.

        States and gradients on the way are kept where there is room; the first sweep, which
        records, goes to step K. `done` is called with the losses of each step.
        """
        place, state = self._kept.top()
        if place == k:
            self._kept.pop()
        places = set(placements(place, k + 1, self._kept.free + 1)[1:])
        for j in range(place, k):
            if j in places:
                self._kept.push(j, state)
            grad = self._gradients[j] = self._gradient(j, state)
            if len(self._gradients) > self._room:  # the way back wants the later ones first
                del self._gradients[min(self._gradients)]
            state, losses = forward_step(self._task, self._rule, state, self.steps[j], grad)
            done(losses)
        return state

    def _gradient(self, k: int, state: State) -> Gradient:
        """The gradient of step k; if it was kept, it is handed out and no longer kept."""
        kept = self._gradients.pop(k, None)
        return kept or gradient(self._task, state.theta, self.steps[k])


def record(
    task: Task,
    rule: Rule,
    state: State,
    steps: Sequence[Step],
    *,
    snapshots: int,
    disk: Disk | None = None,
    sharded: bool = False,
    gradients: int = 0,
    on_step: Callable[[], None] = ignore_step,
    first_step: int = 0,
    known: Gradient | None = None,
) -> Recording:
    """Train through `steps` from `state`, keeping some of the states on the way.

    Args:
        snapshots: states kept in memory at once, `state` itself included; at least 1.
        disk: room for more in files.
        sharded: each rank keeps only its share of every state, and `snapshots` and `disk` count
            shares; states come back whole.
        gradients: gradients kept in memory beside them; each saves one on the way back.
        on_step: called after every step.
        first_step: number of the first step in the whole run, for error messages.
        known: the gradient of the first step, if somebody has it.

    Raises:
        NonFiniteError: a loss or a parameter became NaN or infinite.
        RunError: a file cannot be written.
    """
    if snapshots < 1:
        raise ValueError(f"snapshots must be at least 1 but got {snapshots}")
    kept = Snapshots(snapshots, disk, first_step, task.ranks, sharded=sharded)
    kept.push(0, state)
    recording = Recording(task, rule, steps, kept, gradients, known)

    def done(losses: Tensor) -> None:
        recording.losses.append(losses)
        on_step()

    recording.final = recording.state_before(len(steps), done)
    _require_finite(task, recording, first_step)
    return recording


def replay(
    task: Task,
    rule: Rule,
    state: State,
    steps: Sequence[Step],
    on_step: Callable[[], None] = ignore_step,
) -> State:
    """Train through `steps` from `state` and return where it ends; nothing is kept."""
    for step in steps:
        state, _ = forward_step(task, rule, state, step)
        on_step()
    return state


def _require_finite(task: Task, recording: Recording, first_step: int) -> None:
    losses = recording.losses
    finite = torch.stack([loss.isfinite().all() for loss in losses])
    if not finite.all():
        k = int(finite.int().argmin())
        position = int(losses[k].isfinite().int().argmin())
        row = task.examples.source_row(int(recording.steps[k].rows[position]))
        raise NonFiniteError(
            f"step {first_step + k}: the loss of row {row} is {float(losses[k][position])}; "
            "lower the learning rate, clip the gradient, or look at that row."
        )
    bad = ~recording.final.theta.isfinite()
    if bad.any():
        name = task.model.parameter_at(int(bad.int().argmax()))
        raise NonFiniteError(
            f"step {first_step + len(losses) - 1}: parameter {name} is no longer finite; "
            "lower the learning rate or clip the gradient."
        )
