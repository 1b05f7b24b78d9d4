"""THE loop: cut a run into windows, score each, decide, commit, go on (DESIGN 3.6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from curate.influence import Target, score_window
from curate.ledger import Ledger, Scores
from curate.policies import Array, Budget, Evidence, Offer, Policy
from curate.rules import Rule, State
from curate.trajectory import Recording, Step, Task, ignore_step, record, replay


@dataclass(frozen=True)
class Selector:
    """Values every candidate of a run, and trains on what it would keep as it goes.

    A run of T steps is cut into windows of `horizon` = K steps. K = T is
    offline scoring, K = 1 online; there is no other difference. Of every
    window the first `stride` steps are decided and committed, so a step is
    scored with at least K - stride steps still to come; stride = K costs least.

    Cost per committed step, in gradients of one batch, with every state kept:
    (1 + 4) K / stride to record and score, and 1 to commit what was kept,
    unless that was everything or the run ends there; plus one pass over the
    targets per window. A snapshot budget below K adds forward steps (see
    `Recording`). Memory: `snapshots` + 2 states, Q adjoints, one batch's graph,
    and O(N Q) for the ledger; nothing grows with T but the step records.

    policy, budget: what a candidate is worth, and how much is kept.
    groups: for quotas, shape (N,), or None. strata: for standardising, shape (N,), or None.
    """

    task: Task
    rule: Rule
    policy: Policy
    budget: Budget
    horizon: int
    targets: Sequence[Target] = ()
    stride: int | None = None
    removal: str = "renormalised"
    snapshots: int = 64
    groups: Array | None = None
    strata: Array | None = None

    def __post_init__(self) -> None:
        if not 1 <= (self.stride or self.horizon) <= self.horizon:
            raise ValueError(
                f"stride must be between 1 and the horizon, {self.horizon}, but got {self.stride}"
            )
        if self._goes_back and not self.targets:
            raise ValueError("a policy that looks at influences needs at least one target")

    @property
    def _goes_back(self) -> bool:
        return self.policy.needs is Evidence.INFLUENCE

    def run(
        self,
        state: State,
        steps: Sequence[Step],
        on_step: Callable[[], None] = ignore_step,
    ) -> Scores:
        """Score the whole run, from `state` through `steps`.

        `on_step` is called `ticks(len(steps))` times.
        """
        count = len(self.task.examples)
        if self.policy.needs is Evidence.NOTHING:
            values = self.policy.values(Offer(np.arange(count)))
            return Scores(values, np.zeros(count, dtype=np.int64), None)
        ledger = Ledger(count, len(self.targets), self.strata)
        stride = self.stride or self.horizon
        for first in range(0, len(steps), stride):
            window = steps[first : first + self.horizon]
            recording = record(
                self.task, self.rule, state, window,
                snapshots=self.snapshots if self._goes_back else 1,
                on_step=on_step, first_step=first,
            )  # fmt: skip
            committed = self._decide(window[:stride], recording, ledger, first, on_step)
            if first + stride < len(steps):
                state = self._commit(state, window, committed, recording, on_step)
        return ledger.scores(with_influences=self._goes_back)

    def ticks(self, total: int) -> int:
        """How many times `run` calls `on_step` for a run of `total` steps, at most."""
        if self.policy.needs is Evidence.NOTHING:
            return 0
        stride = self.stride or self.horizon
        passes = 2 if self._goes_back else 1
        firsts = range(0, total, stride)
        recorded = sum(min(self.horizon, total - first) for first in firsts)
        return passes * recorded + firsts[-1]

    def _decide(
        self,
        decided: Sequence[Step],
        recording: Recording,
        ledger: Ledger,
        first: int,
        on_step: Callable[[], None],
    ) -> list[Step]:
        influences: list[Array | None] = [None] * len(recording.steps)
        if self._goes_back:
            scored = score_window(
                self.task, self.rule, recording, self.targets,
                removal=self.removal, first_step=first, on_step=on_step,
            )  # fmt: skip
            influences = [per_step.numpy() for per_step in scored.influences]
        budget = self.budget.within_step(len(self.task.examples))
        committed = []
        for step, losses, found in zip(decided, recording.losses, influences, strict=False):
            rows = step.rows.numpy()
            mean = None if found is None else found.mean(axis=0)
            values = self.policy.values(Offer(rows, losses.double().cpu().numpy(), mean))
            scores = ledger.add(rows, values, found)
            groups = None if self.groups is None else self.groups[rows]
            kept = budget.choose(scores, groups).kept
            committed.append(step.keep(torch.from_numpy(np.flatnonzero(kept))))
        return committed

    def _commit(
        self,
        state: State,
        window: Sequence[Step],
        committed: Sequence[Step],
        recording: Recording,
        on_step: Callable[[], None],
    ) -> State:
        offered = sum(len(step.rows) for step in window)
        if sum(len(step.rows) for step in committed) == offered:
            for _ in committed:
                on_step()
            return recording.final
        nonempty = [step for step in committed if len(step.rows)]
        return replay(self.task, self.rule, state, nonempty, on_step)
