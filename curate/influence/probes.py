"""Probes: a few removals followed exactly through the window, to see what a score is worth.

With s_k the recorded states, F the target's loss where the window ends and
lambda_k the adjoint of s_k, an example left out of step t turns s_{t+1} into
s_{t+1} + delta_{t+1}, and the recorded batches carry delta on. Write R_k for what
one step does to delta beyond its derivative:

    delta_{k+1} = Df_k delta_k + R_k(delta_k),    R_k(u) = f_k(s_k + u) - f_k(s_k) - Df_k u

Multiply by lambda_{k+1}, use lambda_k = Df_k' lambda_{k+1}, and everything in between cancels:

    actual change  =  < lambda_{t+1}, delta_{t+1} >                       exact jump
                      + sum_{k=t+1}^{T-1} < lambda_{k+1}, R_k(delta_k) >  propagation
                      + F(s_T + delta_T) - F(s_T) - < lambda_T, delta_T >

and the first term is the linear influence plus what the rule's own curvature does in
step t. Of R_{t+1}, what the rule does with the recorded gradient is known as well (see
`jump`); with it, the two are the *jump* term, and the rest is *propagation*. Each
<lambda_{k+1}, R_k> is a secant of the recorded batch's gradient against its linearisation
(DESIGN 3.8): one gradient at theta_k + delta_k. That same gradient yields delta_{k+1}, so
the perturbation need not be guessed and the sum is just the change of the target at the
end of the window, less the exact jump. Nothing is trained beyond the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.influence.adjoint import Linearization
from curate.influence.jump import effect, jump_of
from curate.influence.removal import leave_out
from curate.influence.targets import Target, over_targets, target_losses
from curate.trajectory import Step, Task, forward_step, gradient, replay


@dataclass(frozen=True)
class Probing:
    """How many removals to follow, drawn among the candidates of a window.

    Drawn independently, in proportion to `size_of` their influence.
    """

    count: int
    seed: int


@dataclass(frozen=True)
class Probe:
    """One removal followed to the end of its window, as changes of the mean target loss.

    step, position: in the window, in the step. size: what it was drawn in proportion to.
    linear: its influence to first order. exact: by the exact jump. actual: what it was.
    """

    step: int
    position: int
    size: float
    linear: float
    exact: float
    actual: float

    @property
    def jump(self) -> float:
        """|exact - linear|: what the derivative gets wrong in the step of the removal."""
        return abs(self.exact - self.linear)

    @property
    def propagation(self) -> float:
        """|actual - exact|: what it gets wrong from there to the end of the window."""
        return abs(self.actual - self.exact)


def as_probes(saved: Sequence[dict[str, Any]]) -> list[Probe]:
    """Probes that `asdict` turned into dictionaries."""
    return [Probe(**values) for values in saved]


def size_of(influences: Tensor) -> Tensor:
    """(|I_i| + mean of |I_j| over the step) / 2: how large an error to expect, up to a factor.

    One part in proportion to the influence, one common to the step. influences,
    of a mean over the targets: shape (n,).
    """
    sizes = influences.abs()
    return (sizes + sizes.mean()) / 2


@dataclass(frozen=True)
class Removal:
    """A removal that was drawn, and all that following it takes when the way back is done.

    step, position, size, linear: see `Probe`. at: that step of the window.
    """

    step: int
    position: int
    size: float
    linear: float
    at: Linearization


class Draw:
    """Draws removals from a window whose steps come one by one, last step first; follows them.

    Each place is one independent draw in proportion to size: it goes to a
    candidate of the step at hand with the probability that this step has among those
    seen so far. Memory: a state and its adjoint per place.
    """

    def __init__(self, probing: Probing, targets: Sequence[Target]) -> None:
        self.count, self._targets = probing.count, targets
        self._random = np.random.default_rng(probing.seed)
        self._total = 0.0
        self.drawn: list[Removal] = []

    def offer(self, k: int, at: Linearization, influences: Tensor, linear: Tensor) -> None:
        """The candidates of step k: their influences as scored and to first order, (Q, n)."""
        if not self.count:
            return
        sizes = size_of(over_targets(self._targets, influences)).cpu().numpy()
        to_first_order = over_targets(self._targets, linear)
        step_size = float(sizes.sum())
        self._total += step_size
        chance = step_size / self._total if self._total > 0 else 1.0
        shares = sizes / step_size if step_size > 0 else np.full(len(sizes), 1 / len(sizes))
        for place in range(self.count):
            if len(self.drawn) > place and self._random.random() >= chance:
                continue
            i = int(self._random.choice(len(sizes), p=shares))
            removal = Removal(k, i, float(sizes[i]), float(to_first_order[i]), at)
            self.drawn[place : place + 1] = [removal]

    def follow(
        self, task: Task, steps: Sequence[Step], removal: str, losses: Tensor
    ) -> list[Probe]:
        """See what leaving out each of those drawn does at the end of a window of `steps`.

        Cost, for one from step k: K - k gradients, and one forward pass over the targets.

        Args:
            removal: what leaving out means, see `influence`.
            losses: of the targets after the steps as they were, shape (Q,).
        """
        probes = []
        for drawn in self.drawn:
            k, i, at = drawn.step, drawn.position, drawn.at
            without = leave_out(at.step, i, at.grad.sizes, removal)
            grad = gradient(task, at.state.theta, without)
            outcome, cotangents = jump_of(at)
            with torch.no_grad():
                moved, as_it_was = outcome(grad.mean.double()), outcome(at.grad.mean.double())
                exact = self._mean(effect(moved, as_it_was, cotangents))
            after, _ = forward_step(task, at.rule, at.state, without, grad)
            theta = replay(task, at.rule, after, steps[k + 1 :]).theta
            changed = target_losses(task.model, task.objective, self._targets, theta, task.ranks)
            actual = self._mean(changed - losses)
            probes.append(Probe(k, i, drawn.size, drawn.linear, exact, actual))
        return probes

    def _mean(self, change: Tensor) -> float:
        return float(over_targets(self._targets, change))
