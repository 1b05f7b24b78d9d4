"""Record a stretch of training, then give its states back in reverse order."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from curate.errors import NonFiniteError
from curate.rules import Rule, State
from curate.trajectory.checkpoints import placements
from curate.trajectory.snapshots import Disk, Snapshots
from curate.trajectory.step import Gradient, Step, Task, forward_step, gradient


def ignore_step() -> None:
    """The default for `on_step`: nobody is watching."""


class Kept:
    """At most `room` gradients of a window's steps.

    The way back wants them last step first, so the later ones push out the earlier.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._held: dict[int, Gradient] = {}

    def keep(self, k: int, grad: Gradient) -> None:
        """Keep the gradient of step k, if there is room that a later one does not need more."""
        self._held[k] = grad
        if len(self._held) > self._room:
            del self._held[min(self._held)]

    def take(self, k: int) -> Gradient | None:
        """The gradient of step k, if it is here; it is no longer after."""
        return self._held.pop(k, None)


class Recording:
    """K steps that happened: their records, some of the states and gradients, the losses.

    Memory is `snapshots` states, whatever the number of steps; a state is
    P x (1 + slots) numbers. With room on disk for d more, s = snapshots + d are
    kept. Time: each step is done at most r times there and back, where
    C(s + r, s) > K (`checkpoints`); with s >= K, once. What goes to disk is written
    once, and files are read at most K times in all. Gradients come on top.

    steps: the K records. final: the state after the last step.
    losses: per step, the candidates' losses before the update, shape (n,).
    """

    def __init__(
        self, task: Task, rule: Rule, steps: Sequence[Step], kept: Snapshots,
        final: State, losses: list[Tensor], gradients: Kept,
    ) -> None:  # fmt: skip
        self.steps = steps
        self.final = final
        self.losses = losses
        self._task, self._rule = task, rule
        self._kept, self._gradients = kept, gradients

    def backwards(self) -> Iterator[tuple[int, State, Gradient]]:
        """(k, state before step k, gradient there) for k = K-1 .. 0; can be gone through once.

        What was not kept is recomputed from the nearest earlier state,
        bit for bit the same on a deterministic device.
        """
        if not self._kept:
            raise RuntimeError("this recording has been gone through already; record again")
        kept, task = self._kept, self._task
        for k in range(len(self.steps) - 1, -1, -1):
            place, state = kept.top()
            if place == k:
                kept.pop()
            places = set(placements(place, k + 1, kept.free + 1)[1:]) if place < k else set()
            for j in range(place, k):
                grad = self._gradients.take(j) or gradient(task, state.theta, self.steps[j])
                self._gradients.keep(j, grad)
                state, _ = forward_step(task, self._rule, state, self.steps[j], grad)
                if j + 1 in places and j + 1 < k:
                    kept.push(j + 1, state)
            grad = self._gradients.take(k) or gradient(task, state.theta, self.steps[k])
            yield k, state, grad


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
) -> Recording:
    """Train through `steps` from `state`, keeping some of the states on the way.

    Args:
        snapshots: states kept in memory at once, `state` itself included; at least 1.
        disk: room for more in files.
        sharded: of every state kept, each rank has its share only, and room is for so many
            shares; states come back whole.
        gradients: how many gradients are kept beside them, in memory; each saves one on the way
            back.
        on_step: called after every step.
        first_step: number of the first step in the whole run, for error messages.

    Raises:
        NonFiniteError: a loss or a parameter became NaN or infinite.
        RunError: a file cannot be written.
    """
    if snapshots < 1:
        raise ValueError(f"snapshots must be at least 1 but got {snapshots}")
    # one longer than the steps: the sweep goes on to the state after the last, for the target
    kept = Snapshots(snapshots, disk, first_step, task.ranks, sharded=sharded)
    places = set(placements(0, len(steps) + 1, kept.free))
    losses, room = [], Kept(gradients)
    for k, step in enumerate(steps):
        if k in places:
            kept.push(k, state)
        grad = gradient(task, state.theta, step)
        room.keep(k, grad)
        state, step_losses = forward_step(task, rule, state, step, grad)
        losses.append(step_losses)
        on_step()
    _require_finite(task, steps, losses, state, first_step)
    return Recording(task, rule, steps, kept, state, losses, room)


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


def _require_finite(
    task: Task, steps: Sequence[Step], losses: list[Tensor], final: State, first_step: int
) -> None:
    finite = torch.stack([loss.isfinite().all() for loss in losses])
    if not finite.all():
        k = int(finite.int().argmin())
        position = int(losses[k].isfinite().int().argmin())
        candidate = int(steps[k].rows[position])
        raise NonFiniteError(
            f"step {first_step + k}: the loss of row {task.examples.source_row(candidate)} is "
            f"{float(losses[k][position])}; lower the learning rate, clip the gradient, "
            "or look at that row."
        )
    bad = ~final.theta.isfinite()
    if bad.any():
        name = task.model.parameter_at(int(bad.int().argmax()))
        raise NonFiniteError(
            f"step {first_step + len(steps) - 1}: parameter {name} is no longer finite; "
            "lower the learning rate or clip the gradient."
        )
