"""Score a window: every candidate of K steps, against targets where the window ends."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curate.errors import NonFiniteError
from curate.influence.adjoint import Following, Linearization, backward_step, final_adjoint
from curate.influence.differences import Differences
from curate.influence.jump import exact_jump
from curate.influence.probes import Draw, Probe, Probing
from curate.influence.removal import Scoring, influence
from curate.influence.slopes import Seen
from curate.influence.targets import Target, over_targets, target_gradients
from curate.rules import Adjoint, Rule, State
from curate.trajectory import Recording, Task, ignore_step


@dataclass(frozen=True)
class WindowScores:
    """Influences of one window.

    influences: per step, shape (Q, n), float64, on the CPU; positive helps.
    derivatives: d_i that they were made of, per step, shape (Q, n), on the CPU.
    sizes: n_i, per step, shape (n,), on the CPU.
    target_losses: at the end of the window, shape (Q,).
    probes: removals that were followed.
    targets: those that influences are on.
    drifts: per step, by what share differences may have put its influences off: the errors of
        the Hessian products on the way to it, in quadrature, see `Differences`.
    """

    influences: list[Tensor]
    derivatives: list[Tensor]
    sizes: list[Tensor]
    target_losses: Tensor
    probes: list[Probe]
    targets: Sequence[Target]
    drifts: list[float]

    @cached_property
    def overall(self) -> list[Tensor]:
        """Influences on the mean loss of the targets, per step, shape (n,)."""
        return [over_targets(self.targets, values) for values in self.influences]

    @property
    def drift(self) -> float:
        """By how much differences may have put influences off, on average."""
        errors = [d * x.abs() for d, x in zip(self.drifts, self.overall, strict=True)]
        return float(torch.cat(errors).mean())

    @property
    def overall_loss(self) -> float:
        """The mean loss of the targets at the end of the window."""
        return float(over_targets(self.targets, self.target_losses))


def score_window(
    task: Task,
    rule: Rule,
    recording: Recording,
    targets: Sequence[Target],
    *,
    scoring: Scoring = Scoring(),  # noqa: B008  (frozen)
    differences: Differences | None = None,
    probing: Probing | None = None,
    seen: Seen | None = None,
    first_step: int = 0,
    on_step: Callable[[], None] = ignore_step,
) -> WindowScores:
    """Influence of every candidate of every recorded step on the targets at the end.

    Goes through the recording backwards, once, all Q targets together. Time:
    one pass over the targets, then per step about 1.3 gradients for each (twice that
    where differences are central) and what the recording has to redo. Memory: the recording's
    snapshots and gradients, the adjoint (Q states) and the graph of one chunk.

    Args:
        scoring: how; the defaults are those of the recipe.
        differences: what is remembered of the steps scored before these.
        probing: removals to follow to the end, see `Probe`; not of a mistaken rule.
        seen: the pass that recorded the first step, where it was watched.
        first_step: number of the window's first step in the run, for error messages.
        on_step: called after every step scored.

    Raises:
        NonFiniteError: a target loss or an influence is NaN or infinite.
    """
    assert not (probing and scoring.mistaken_rule)
    draw = Draw(probing or Probing(0, 0), targets)
    rule, mistaken = scoring.mistaken_rule or rule, scoring.mistaken_rule is not None
    final = _without_slots(rule, recording.final) if mistaken else recording.final
    losses, gradients = target_gradients(
        task.model, task.objective, targets, final.theta, ranks=task.ranks
    )
    _require_finite(targets, losses, first_step + len(recording.steps) - 1)
    adjoint, following = final_adjoint(final, gradients), None
    by_step, drifts = list[tuple[Tensor, Tensor, Tensor]](), list[float]()
    differences, drift = differences or Differences(), 0.0
    for k, recorded, grad in recording.backwards():
        state = _without_slots(rule, recorded) if mistaken else recorded
        at = Linearization(rule, state, recording.steps[k], grad, adjoint, following)
        back = backward_step(task, at, differences, propagate=k > 0, seen=None if k else seen)
        linear = influence(back.derivatives, at.step.weights, grad.sizes, scoring.removal)
        scores = linear
        if scoring.jump_bytes is not None:
            scores = exact_jump(task, at, scoring.removal, scoring.jump_bytes)
        scores = task.ranks.same(scores.cpu())  # what is decided by, so no bit may differ
        if not scores.isfinite().all():
            raise NonFiniteError(_non_finite_score(task, scores, back.adjoint, first_step + k))
        draw.offer(k, at, scores, linear)
        by_step.append((scores, back.derivatives.cpu(), grad.sizes.cpu()))
        drifts.append(drift)
        drift = math.hypot(drift, back.error)
        if back.adjoint is not None:
            if scoring.jump_bytes is not None or draw.count:
                following = Following(grad.mean, at.step.lrs, adjoint, back.curvature)
            adjoint = back.adjoint
        del at, back  # and with them an adjoint, while a step before is done again
        on_step()
    influences, derivatives, sizes = (list(part) for part in zip(*by_step[::-1], strict=True))
    probes = draw.follow(task, recording.steps, scoring.removal, losses)
    return WindowScores(influences, derivatives, sizes, losses, probes, targets, drifts[::-1])


def _require_finite(targets: Sequence[Target], losses: Tensor, step: int) -> None:
    for target, loss in zip(targets, losses, strict=True):
        if not loss.isfinite():
            raise NonFiniteError(
                f"after step {step}: the loss of target {target.name} is {float(loss)}; "
                "lower the learning rate."
            )


def _without_slots(rule: Rule, state: State) -> State:
    """A recorded state as a mistaken rule takes it, which knows only theta."""
    return State(state.theta, rule.init(state.theta), state.step)


def _non_finite_score(task: Task, scores: Tensor, adjoint: Adjoint | None, step: int) -> str:
    bad = int((~scores.isfinite()).sum())
    where = ""
    if adjoint is not None and not adjoint[0].isfinite().all():
        index = int((~adjoint[0].isfinite()).any(dim=0).int().argmax())
        where = f", first in parameter {task.model.parameter_at(index)}"
    return (
        f"step {step}: {bad} of {scores.numel()} influences are not finite{where}; "
        "shorten selection.horizon or lower the learning rate."
    )
