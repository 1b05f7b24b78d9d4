"""One window: record it, go back through it, and value its candidates by the policy."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from curate.influence import (
    Differences,
    Point,
    Probing,
    Scoring,
    Shortcut,
    Target,
    WindowScores,
    as_probes,
    score_window,
)
from curate.influence.cost import WATCHED
from curate.rules import Rule, State
from curate.runtime.files import Tree
from curate.selection import Array
from curate.selection.policies import Evidence, Offer, Policy
from curate.trajectory import Disk, Gradient, Step, Task, ignore_step, record


@dataclass(frozen=True)
class Judged:
    """A window of K steps, and what every candidate in it is worth.

    final: the state after the window as offered; None where nobody went there.
    losses: per step, shape (n,).
    scores: influences and what goes with them, at the weights as offered; None if the policy
    does not ask for them. values: per step, shape (n,): the policy's.
    """

    steps: Sequence[Step]
    final: State | None
    losses: list[Tensor]
    scores: WindowScores | None
    values: list[Array]


@dataclass(frozen=True)
class Rounds:
    """The rounds of a window that are done.

    done: how many. first: what the first one gave, and probing: the removals it followed.
    values: of the last one, per step, shape (n,): the weights of the next.
    """

    done: int
    first: Judged
    probing: Probing | None
    values: list[Array]

    def saved(self) -> Tree:
        """All but the steps, as a tree."""
        scores, final = self.first.scores, self.first.final
        assert final is not None
        return {
            "done": self.done,
            "final": final.saved(),
            "losses": torch.cat(self.first.losses),
            "probing": None if self.probing is None else asdict(self.probing),
            "values": np.concatenate(self.values),
            "scores": scores
            and {
                "influences": torch.cat(scores.influences, dim=-1),
                "derivatives": torch.cat(scores.derivatives, dim=-1),
                "sizes": torch.cat(scores.sizes),
                "target_losses": scores.target_losses,
                "probes": [asdict(probe) for probe in scores.probes],
                "drifts": scores.drifts,
            },
        }


@dataclass(frozen=True)
class Judge:
    """Values the candidates of a window by a policy.

    With `policy.rounds` = R > 1 the window is linearized R times: each round records it with the
    weights that the round before arrived at and goes back; the policy's values are the next
    weights (DESIGN 3.7).

    Cost per step of the window, in gradients of one batch: R (1 + 1.3), R less for the first step
    of a window of up to `WATCHED`, one more where its gradient was not kept, and one pass over the
    targets per round; R for a policy that looks at losses only. Where several ranks share `task`,
    each does its share of that.
    `snapshots`, `gradients`, `disk` and `sharded` are room for states, see `record`.
    `scoring` says how influences are computed; the exact jump costs more, see `exact_jump`.
    `differences` remembers the windows before.

    per: what losses and influences are divided by before they are valued, such as the tokens of
    every candidate, shape (N,); None for whole examples.
    """

    task: Task
    rule: Rule
    policy: Policy
    targets: Sequence[Target] = ()
    scoring: Scoring = Scoring()  # noqa: RUF009  (frozen)
    snapshots: int = 64
    gradients: int = 64
    disk: Disk | None = None
    sharded: bool = False
    per: Array | None = None
    differences: Differences = field(default_factory=Differences)

    def __post_init__(self) -> None:
        if self.goes_back and not self.targets:
            raise ValueError("a policy that looks at influences needs at least one target")

    @property
    def goes_back(self) -> bool:
        """Whether the policy asks for influences."""
        return self.policy.needs is Evidence.INFLUENCE

    @property
    def target_rows(self) -> int:
        """Examples of all targets together."""
        return sum(len(target.examples) for target in self.targets)

    @property
    def target_weights(self) -> Array:
        """The weight of every target in the mean over them, shape (Q,)."""
        return np.array([target.weight for target in self.targets])

    def ticks(self, steps: int) -> int:
        """How many times `judge` calls `on_step` for a window of so many steps."""
        return self.policy.rounds * steps * (2 if self.goes_back else 1)

    def judge(
        self,
        state: State,
        steps: Sequence[Step],
        *,
        probing: Probing | None = None,
        first_step: int = 0,
        on_step: Callable[[], None] = ignore_step,
        rounds: Rounds | None = None,
        on_round: Callable[[Rounds], None] = lambda _: None,
        known: Gradient | None = None,
    ) -> Judged:
        """Value every candidate of `steps`, taken from `state`.

        Args:
            probing: removals to follow exactly, at the weights as offered.
            first_step: of the window, in the run; for error messages.
            rounds: those done already.
            on_round: called after every round but the last.
            known: the gradient of the first step, if somebody has it.
        """
        if rounds is None:
            first = self._round(state, steps, first_step, on_step, probing, known)
            rounds = Rounds(1, first, probing, first.values)
        while rounds.done < self.policy.rounds:
            on_round(rounds)
            weighted = [
                step.reweight(torch.from_numpy(weights).to(step.weights.dtype))
                for step, weights in zip(steps, rounds.values, strict=True)
            ]
            values = self._round(state, weighted, first_step, on_step).values
            rounds = replace(rounds, done=rounds.done + 1, values=values)
        return replace(rounds.first, values=rounds.values)

    def glance(self, state: State, step: Step, shortcut: Shortcut) -> Judged:
        """Value every candidate of a window of one step, in one round, for less."""
        scores, losses = shortcut.scores(
            self.task, self.rule, state, step, self.targets, self.scoring.removal
        )
        offer = self._offer(step, losses, scores.influences[0])
        return Judged([step], None, [losses], scores, [self.policy.values(offer)])

    def restored(self, tree: Tree, steps: Sequence[Step]) -> Rounds:
        """The rounds of a window of `steps` that were `saved`."""
        device, sizes = self.task.model.device, [len(step.rows) for step in steps]
        saved = tree["scores"]

        def by_step(tensor: Tensor) -> list[Tensor]:
            return [part.clone() for part in tensor.split(sizes, dim=-1)]

        scores = saved and WindowScores(
            influences=by_step(saved["influences"]),
            derivatives=by_step(saved["derivatives"]),
            sizes=by_step(saved["sizes"]),
            target_losses=saved["target_losses"].to(device),
            probes=as_probes(saved["probes"]),
            drifts=saved["drifts"],
            targets=self.targets,
        )
        values = np.split(tree["values"], np.cumsum(sizes)[:-1])
        losses = by_step(tree["losses"].to(device))
        final = State.restored(tree["final"], device)
        probing = tree["probing"] and Probing(**tree["probing"])
        return Rounds(tree["done"], Judged(steps, final, losses, scores, values), probing, values)

    def _round(
        self,
        state: State,
        steps: Sequence[Step],
        first_step: int,
        on_step: Callable[[], None],
        probing: Probing | None = None,
        known: Gradient | None = None,
    ) -> Judged:
        seen = None
        if known is None and len(steps) <= WATCHED and self.watches:
            seen = self.differences.slopes.see(Point(self.task, state.theta, steps[0]))
            known = None if seen is None else seen.grad
        recording = record(
            self.task,
            self.rule,
            state,
            steps,
            snapshots=self.snapshots if self.goes_back else 1,
            disk=self.disk if self.goes_back else None,
            sharded=self.sharded,
            gradients=self.gradients if self.goes_back else 0,
            first_step=first_step,
            on_step=on_step,
            known=known,
        )
        scores = None
        if self.goes_back:
            scores = score_window(
                self.task,
                self.rule,
                recording,
                self.targets,
                scoring=self.scoring,
                differences=self.differences,
                probing=probing,
                seen=seen,
                first_step=first_step,
                on_step=on_step,
            )
        values = [
            self.policy.values(
                self._offer(step, recording.losses[k], scores.influences[k] if scores else None)
            )
            for k, step in enumerate(steps)
        ]
        return Judged(steps, recording.final, recording.losses, scores, values)

    @property
    def watches(self) -> bool:
        """Whether the pass that records a window's first step may serve to score it, too.

        Not where training computes in another precision than scores.
        """
        return self.goes_back and self.task.model.autocast is None

    def _offer(self, step: Step, losses: Tensor, influences: Tensor | None) -> Offer:
        """The candidates of a step as the policy sees them."""
        rows = step.rows.numpy()
        per = 1 if self.per is None else self.per[rows]
        return Offer(
            rows=rows,
            weights=step.weights.double().numpy(),
            losses=losses.double().cpu().numpy() / per,
            influences=None if influences is None else influences.numpy() / per,
            target_weights=self.target_weights,
        )
