"""Score a window: every candidate of K steps, against targets where the window ends."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curate.errors import NonFiniteError
from curate.influence.adjoint import BackwardStep, backward_step, final_adjoint
from curate.influence.differences import Differences
from curate.influence.jump import Following, exact_jump
from curate.influence.probes import Draw, Probe, Probing, follow_removal
from curate.influence.removal import Scoring, influence
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
    targets: that they are about.
    drifts: per step, what differences may have put its influences off by, as a share: of the
        Hessian products on the way to it, in quadrature, see `Differences`.
    """

    influences: list[Tensor]
    derivatives: list[Tensor]
    sizes: list[Tensor]
    target_losses: Tensor
    probes: list[Probe]
    targets: Sequence[Target]
    drifts: list[float]

    @property
    def overall(self) -> list[Tensor]:
        """Influences on the mean loss of the targets, per step, shape (n,)."""
        return [over_targets(self.targets, own) for own in self.influences]

    @property
    def drift(self) -> float:
        """What differences may have put influences off by, on average."""
        off = [d * own.abs() for d, own in zip(self.drifts, self.overall, strict=True)]
        return float(torch.cat(off).mean())

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
    first_step: int = 0,
    on_step: Callable[[], None] = ignore_step,
) -> WindowScores:
    """Influence of every candidate of every recorded step on the targets at its end.

    Goes through the recording backwards, once, all Q targets together. Time:
    one pass over the targets, then per step about 1.3 gradients for each (twice that
    where differences are central) and what the recording has to redo. Memory: the recording's
    snapshots and gradients, the adjoint (Q states) and the graph of one chunk.

    Args:
        scoring: how; the defaults are those of the recipe.
        differences: what is remembered of the steps scored before these.
        probing: removals to follow to the end, see `probe`; not of a mistaken rule.
        first_step: number of the window's first step in the run, for error messages.
        on_step: called after every step scored.

    Raises:
        NonFiniteError: a target loss or an influence is NaN or infinite.
    """
    draw = Draw(probing or Probing(0, 0), targets)
    assert not (probing and scoring.mistaken_rule)
    losses, gradients = target_gradients(
        task.model, task.objective, targets, recording.final.theta, ranks=task.ranks
    )
    for target, loss in zip(targets, losses, strict=True):
        if not loss.isfinite():
            raise NonFiniteError(
                f"after step {first_step + len(recording.steps) - 1}: the loss of target "
                f"{target.name} is {float(loss)}; lower the learning rate."
            )
    scorer = _Scorer(task, scoring.mistaken_rule or rule, recording, scoring)
    adjoint = final_adjoint(scorer.as_scored(recording.final), gradients)
    following: Following | None = None
    looks_ahead = scoring.jump_bytes is not None or (probing is not None and probing.count > 0)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    differences, drifts = differences or Differences(), list[float]()
    drift = 0.0
    for k, recorded, grad in recording.backwards():
        state = scorer.as_scored(recorded)
        back = backward_step(
            task, scorer.rule, state, recording.steps[k], grad, adjoint,
            propagate=k > 0, differences=differences,
        )  # fmt: skip
        drifts.append(drift)
        drift = math.hypot(drift, back.error)
        linear = scorer.linear(k, back)
        scores = (
            linear
            if scoring.jump_bytes is None
            else scorer.jump(k, state, adjoint, following, back, scoring.jump_bytes)
        )
        scores = task.ranks.same(scores.cpu())  # what is decided by, so no bit may differ
        if not scores.isfinite().all():
            raise NonFiniteError(_non_finite_score(task, scores, back.adjoint, k, first_step))
        found.append((scores, back.derivatives.cpu(), back.sizes.cpu()))
        draw.offer(k, state, adjoint, following, back, scores, linear)
        if back.adjoint is not None:
            if looks_ahead:
                following = Following(back.mean, recording.steps[k].lrs, adjoint, back.curvature)
            adjoint = back.adjoint
        on_step()
    influences, derivatives, sizes = (list(part) for part in zip(*found[::-1], strict=True))
    followed = [
        follow_removal(task, rule, recording.steps, own, scoring.removal, targets, losses)
        for own in draw.drawn
    ]
    return WindowScores(influences, derivatives, sizes, losses, followed, targets, drifts[::-1])


@dataclass(frozen=True)
class _Scorer:
    """What is made of one backward step."""

    task: Task
    rule: Rule
    recording: Recording
    scoring: Scoring

    def as_scored(self, state: State) -> State:
        """A recorded state as the rule that scores takes it; a mistaken one knows only theta."""
        if self.scoring.mistaken_rule is None:
            return state
        return State(state.theta, self.rule.init(state.theta), state.step)

    def linear(self, k: int, back: BackwardStep) -> Tensor:
        """Influences of step k, linear in the removal, shape (Q, n)."""
        weights = self.recording.steps[k].weights
        return influence(back.derivatives, weights, back.sizes, self.scoring.removal)

    def jump(
        self, k: int, state: State, adjoint: Adjoint, following: Following | None,
        back: BackwardStep, memory: int,
    ) -> Tensor:  # fmt: skip
        """Influences of step k by the exact jump, shape (Q, n)."""
        return exact_jump(
            self.task, self.rule, state, self.recording.steps[k], adjoint,
            mean=back.mean, losses=self.recording.losses[k], sizes=back.sizes,
            removal=self.scoring.removal, memory=memory, following=following,
        )  # fmt: skip


def _non_finite_score(
    task: Task, scores: Tensor, adjoint: tuple[Tensor, ...] | None, k: int, first_step: int
) -> str:
    bad = int((~scores.isfinite()).sum())
    where = ""
    if adjoint is not None and not adjoint[0].isfinite().all():
        index = int((~adjoint[0].isfinite()).any(dim=0).int().argmax())
        where = f", first in parameter {task.model.parameter_at(index)}"
    return (
        f"step {first_step + k}: {bad} of {scores.numel()} influences are not finite{where}; "
        "shorten selection.horizon or lower the learning rate."
    )
