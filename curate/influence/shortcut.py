"""Influences one step ahead for less than they cost exactly.

    a    the rule's derivative by the gradient, at a gradient of 0 and from the optimizer's state as
         it is, of the target's gradient where that state alone would take the parameters
    d_i  (l_i(theta + e a) - l_i(theta - e a)) / (2 e), two forward passes

In place of the step's own gradient, that is, what the optimizer remembers of those before; in place
of a backward pass over the candidates, losses. e is such that the target's loss would
change by `SPAN` of itself: rounding is then far below it, and third derivatives are too.

The target's gradient is of all its rows, and serves as many steps as that pays for: one that is
some steps old chooses much as today's does, one of few rows does not. Only where that would be
more than `longest` steps are rows drawn, and averaged with those before. How often the same rows
are chosen as by exact influences is for `selection.effort` to find out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from curate.datasets import drawn
from curate.errors import NonFiniteError
from curate.influence.adjoint import final_adjoint
from curate.influence.removal import influence
from curate.influence.targets import Target, target_gradients
from curate.influence.through_rule import through_rule
from curate.influence.window import WindowScores
from curate.rules import Rule, State
from curate.trajectory import ChunkLosses, Step, Task, chunk_losses

SPAN = 0.02
FARTHEST = 0.1
"""How far to go at most, as a share of max(|theta|, 1)."""
REMEMBERED = 0.5
"""The weight of what was found of the target before, in an average over rows that are drawn."""


@dataclass
class Shortcut:
    """Takes influences of one step at a time along a trajectory.

    share: target rows per step, as a share of its candidates. longest: steps that a gradient of
    the target serves at most.

    Time, in gradients of the step's batch: 2/3 per target for the losses, and `share` for the
    targets' gradient. Memory: two forward passes, and Q vectors beside the adjoint.
    """

    share: float
    longest: int
    seed: int = 0

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self._left = 0
        self._gradients: Tensor | None = None
        self._losses = torch.zeros(0)
        self._names: tuple[str, ...] = ()  # of the parameters that the gradients are by

    def saved(self) -> dict[str, Any]:
        """All that the next influences depend on."""
        return {
            "generator": self._generator.get_state(),
            "left": self._left,
            "gradients": self._gradients,
            "losses": self._losses,
            "names": [*self._names],
        }

    def restore(self, saved: dict[str, Any], device: torch.device) -> None:
        """Resume from what was `saved`."""
        self._generator.set_state(saved["generator"])
        self._left, self._losses = saved["left"], saved["losses"]
        self._names, gradients = tuple(saved["names"]), saved["gradients"]
        self._gradients = None if gradients is None else gradients.to(device)

    def scores(
        self, task: Task, rule: Rule, state: State, step: Step, targets: Sequence[Target], way: str
    ) -> tuple[WindowScores, Tensor]:
        """Influences of a window of one step, and its losses, shape (n,).

        way: of removal, see `influence`. Target losses are those of the rows drawn last.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        none = torch.zeros_like(state.theta)
        if self._names != task.model.names:  # others train since
            self._names, self._gradients, self._left = task.model.names, None, 0
        if not self._left:
            self._look(task, rule.update(none, state, step.lrs), targets, len(step.rows))
        self._left -= 1
        assert self._gradients is not None
        adjoint = final_adjoint(state, self._gradients)
        directions, _ = through_rule(rule, none, state, step.lrs, adjoint)
        derivatives = []
        for a, gradient, loss in zip(directions, self._gradients, self._losses, strict=True):
            found, slopes = _slopes(task, state.theta, step, a, _reach(state, a, gradient, loss))
            derivatives.append(step.scale * slopes)
        slopes = torch.stack(derivatives)
        if not slopes.isfinite().all():
            raise NonFiniteError(
                "a loss is NaN or infinite one step ahead; lower the learning rate, clip the "
                "gradient, or look at the rows of this batch."
            )
        sizes = found.sizes
        influences = influence(slopes, step.weights.to(slopes.device), sizes, way).cpu()
        scores = WindowScores(
            [influences], [slopes.cpu()], [sizes.cpu()], self._losses, [], targets, [0.0]
        )
        return scores, found.losses

    def _look(self, task: Task, there: State, targets: Sequence[Target], candidates: int) -> None:
        """Find the targets' gradients at another state, for this step and some more."""
        rows = sum(len(target.examples) for target in targets)
        per_step = self.share * candidates
        self._left = min(ceil(rows / per_step), self.longest)
        part = min(1.0, self._left * per_step / rows)
        few = [
            replace(t, examples=drawn(t.examples, round(part * len(t.examples)), self._generator))
            for t in targets
        ]
        losses, gradients = target_gradients(
            task.model, task.objective, few, there.theta, ranks=task.ranks
        )
        if self._gradients is not None and part < 1:
            gradients = torch.lerp(gradients, self._gradients, REMEMBERED)
            losses = torch.lerp(losses, self._losses, REMEMBERED)
        self._gradients, self._losses = gradients, losses


def _reach(state: State, direction: Tensor, gradient: Tensor, loss: Tensor) -> float:
    """How far to step along a direction, so that the target's loss changes by `SPAN` of itself."""
    slope, length = float(torch.dot(direction, gradient).abs()), float(direction.norm())
    if not length:
        return 0.0
    farthest = FARTHEST * max(1.0, float(state.theta.norm())) / length
    return min(SPAN * float(loss.abs()) / slope, farthest) if slope else farthest


def _slopes(
    task: Task, theta: Tensor, step: Step, direction: Tensor, reach: float
) -> tuple[ChunkLosses, Tensor]:
    """Losses of a step's candidates at theta, about, and d_i along a direction."""
    up = _losses(task, torch.add(theta, direction, alpha=reach), step)
    down = _losses(task, torch.add(theta, direction, alpha=-reach), step)
    slopes = (up.losses - down.losses) / (2 * reach) if reach else up.losses * 0
    return ChunkLosses((up.losses + down.losses) / 2, up.sizes), slopes


def _losses(task: Task, theta: Tensor, step: Step) -> ChunkLosses:
    """Of all candidates of a step, float64."""
    rows = [theta.new_zeros(2, 0, dtype=torch.float64)]
    for chunk in task.chunks(step):
        rows.append(torch.stack(chunk_losses(task, theta, step, chunk, exactly=True)).double())
    return ChunkLosses(*task.join(torch.cat(rows, dim=1), step))
