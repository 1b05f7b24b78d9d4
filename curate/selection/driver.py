"""The selector: judge a window, decide, train on what is kept; for planned runs and for loops.

A planned run (`Selector.run`) knows all its steps and trains by itself. A loop of somebody's own
asks for one window at a time and trains by its own means. Both decide in `Selector.decide`, and
`Decided` says what was predicted and measures what came of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curate.influence import ErrorProxy, over_targets, reweighting, target_losses
from curate.influence.cost import RunShape, measured
from curate.rules import State
from curate.runtime.files import Tree
from curate.runtime.records import Records
from curate.runtime.savepoints import Savepoints
from curate.selection import Array
from curate.selection.budget import Budget
from curate.selection.effort import Effort, Pace
from curate.selection.judge import Judge, Judged, Rounds
from curate.selection.ledger import Ledger, Outcome, Scores
from curate.selection.policies import Evidence, Offer
from curate.selection.scale import standardize
from curate.trajectory import Gradient, Step, ignore_step, replay


@dataclass(frozen=True)
class Decided:
    """A judged window, and what is kept of it.

    scores: per step, the values on one scale, shape (n,); the budget ranks them.
    weights: per step, in the mean that is to be trained on, shape (n,); 0 is left out.
    effort: that was taken, and alike: the share of rows that less effort decides likewise, where
    both were tried, see `Pace`.
    """

    judge: Judge
    judged: Judged
    first_step: int
    scores: list[Array]
    weights: list[Array]
    effort: Effort = "exact"
    alike: float | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing was dropped or reweighted, so that the window's end is known already."""
        return all(np.all(weights == 1) for weights in self.weights)

    def trained(self, state: State, on_step: Callable[[], None] = ignore_step) -> State:
        """The state after training on what is kept, from `state` before the window.

        A step that keeps nothing is left out.
        """
        if self.everything and self.judged.final is not None:
            for _ in self.weights:
                on_step()
            return self.judged.final
        steps = [self.kept(k) for k in range(len(self.weights)) if self.weights[k].any()]
        return replay(self.judge.task, self.judge.rule, state, steps, on_step)

    def kept(self, k: int) -> Step:
        """Step k of the window, of what is kept of it and with its weights."""
        step, weights = self.judged.steps[k], torch.from_numpy(self.weights[k])
        weighted = step.reweight(step.weights * weights.to(step.weights))
        return weighted.keep(weights.nonzero().flatten())

    def predicted(self) -> float | None:
        """Change of the mean target loss from training on what is kept instead of everything.

        First order in each step's mean gradient; None where a step keeps nothing.
        """
        scores = self.judged.scores
        assert scores is not None
        if not all(weights.any() for weights in self.weights):
            return None
        changes = [
            reweighting(derivatives, sizes, step.weights, step.weights * torch.from_numpy(weights))
            for derivatives, sizes, step, weights in zip(
                scores.derivatives, scores.sizes, self.judged.steps, self.weights, strict=True
            )
        ]
        return float(over_targets(self.judge.targets, torch.stack(changes).sum(dim=0)))

    def realized(self, theta: Tensor) -> float | None:
        """Change of the mean target loss from training to theta instead of on everything.

        None where nobody has looked where that leads.
        """
        scores, judge = self.judged.scores, self.judge
        if self.judged.final is None:
            return None
        assert scores is not None
        task = judge.task
        after = target_losses(task.model, task.objective, judge.targets, theta, task.ranks)
        return float(over_targets(judge.targets, after)) - scores.overall_loss

    def outcome(self) -> Outcome:
        """The window's numbers, except for what was realized."""
        scores = self.judged.scores
        assert scores is not None
        return Outcome(
            first_step=self.first_step,
            steps=len(self.weights),
            candidates=sum(len(weights) for weights in self.weights),
            kept=sum(int(np.count_nonzero(weights)) for weights in self.weights),
            signal=float(torch.cat(scores.overall).abs().mean()),
            target_loss=None if self.judged.final is None else scores.overall_loss,
            predicted=self.predicted(),
            effort=self.effort,
            alike=self.alike,
        )


@dataclass(frozen=True)
class Selector:
    """Values every candidate of a run, and trains on what it would keep.

    A run of T steps is cut into windows of `horizon` = K steps. K = T is offline scoring, K = 1
    online; there is no other difference.

    Cost per step, in gradients of one batch, with every state kept: R (1 + 1.3) to record and
    score in R = `policy.rounds` rounds, R less at the first of a short window, see `Judge`; and 1
    to train on what was kept, unless that was everything or the run ends there. Per window, R
    passes over the targets, and a forward one at the end of the windows that `measured` lists, to
    compare with the prediction. A snapshot budget below K, in memory and on disk together, adds
    forward steps (see `Recording`). Memory: `snapshots` + 2 states (2 more with a disk), their
    gradients, Q adjoints, one batch's graph, and O(N Q) for the ledger; nothing grows with T but
    the step records.

    judge: values the candidates of a window.
    budget: how much is kept; None keeps all, with the values as weights of mean 1.
    strata: labels within which values are standardized, groups: for quotas, tokens: for a budget
    in tokens; each of every candidate, shape (N,), or None.
    halves: if the judge's targets are halves, those of one before those of the other, the share
    of each in its target, shape (2, Q / 2).
    probing: share of the cost of scoring that goes into estimating its error, see `ErrorProxy`.
    pace: how much effort `look` takes; None for exact influences.
    """

    judge: Judge
    budget: Budget | None
    horizon: int
    strata: Array | None = None
    groups: Array | None = None
    tokens: Array | None = None
    halves: Array | None = None
    probing: float = 0.0
    pace: Pace | None = None

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"the horizon must be at least 1 but got {self.horizon}")

    def look(
        self,
        state: State,
        steps: Sequence[Step],
        first_step: int,
        parts: Sequence[Sequence[Array]] | None = None,
        *,
        known: Gradient | None = None,
        exactly: bool = False,
        side: int = 0,
    ) -> Decided:
        """Judge a window and decide, with as much effort as `pace` says, or `exactly`.

        known: the gradient of the first step, if somebody has it. side: see `Pace`.
        """
        pace, quick = self.pace, None
        if pace is not None and (shortcut := pace.shortcut(state, first_step, side)) is not None:
            check = pace.due()
            if check or not exactly:
                judged = self.judge.glance(state, steps[0], shortcut)
                quick = replace(self.decide(judged, first_step, parts), effort=pace.effort)
            if quick is not None and not check:
                return quick
        judged = self.judge.judge(state, steps, first_step=first_step, known=known)
        decided = self.decide(judged, first_step, parts)
        if quick is None or pace is None:
            return decided
        alike = float(np.mean((quick.weights[0] > 0) == (decided.weights[0] > 0)))
        pace.enter(alike, self.judge.target_rows / len(steps[0].rows))
        return replace(decided, alike=alike)

    def decide(
        self, judged: Judged, first_step: int = 0, parts: Sequence[Sequence[Array]] | None = None
    ) -> Decided:
        """Choose what to keep of a judged window.

        Args:
            first_step: of the window, in the run.
            parts: positions in every step of its parts, such as the batches of a loop that adds
                up gradients; the budget keeps its share of each. None for whole steps.
        """
        budget = self.step_budget
        scores, weights = [], []
        for k, (step, values) in enumerate(zip(judged.steps, judged.values, strict=True)):
            rows = step.rows.numpy()
            scores.append(standardize(values, _at(self.strata, rows)))
            if budget is None:
                weights.append(values / values.mean())
                continue
            weights.append(np.zeros(len(rows)))
            for part in [np.arange(len(rows))] if parts is None else parts[k]:
                groups, tokens = (_at(column, rows[part]) for column in (self.groups, self.tokens))
                weights[k][part] = budget.choose(scores[k][part], groups, tokens).kept
        return Decided(self.judge, judged, first_step, scores, weights)

    def run(
        self,
        state: State,
        steps: Sequence[Step],
        on_step: Callable[[], None] = ignore_step,
        on_window: Callable[[State, Decided], None] = lambda *_: None,
        on_outcome: Callable[[Outcome, float | None], None] | None = None,
        savepoints: Savepoints | None = None,
    ) -> Scores:
        """Score the whole run, from `state` through `steps`.

        Args:
            on_step: called `ticks(len(steps))` times, or less where steps are dropped whole.
            on_window: called with the state before every window, and what was decided.
            on_outcome: called with what became of every window, and the expected error of its
                influences so far, if that is estimated (`ErrorProxy.latest`).
            savepoints: offered one after every round; the run resumes from the newest of them.
        """
        judge, count = self.judge, len(self.judge.task.examples)
        if judge.policy.needs is Evidence.NOTHING:
            values = judge.policy.values(Offer(np.arange(count), np.ones(count)))
            return Scores(values, np.zeros(count, dtype=np.int64))
        so_far = SoFar(self, state, steps, savepoints)
        for _ in range(self._ticks_before(so_far.first, len(steps))):
            on_step()
        looks = measured(len(steps), self.horizon)
        while (first := so_far.first) < len(steps):
            decided = self.decide(so_far.judge_window(on_step), first)
            so_far.enter(decided)
            on_window(so_far.state, decided)
            so_far.first, so_far.rounds = first + self.horizon, None
            more = so_far.first < len(steps)
            if more:
                so_far.state = decided.trained(so_far.state, on_step)
            if judge.goes_back:
                outcome = decided.outcome()
                if first in looks:
                    theta = so_far.state.theta
                    outcome.realized = 0.0 if decided.everything else decided.realized(theta)
                so_far.outcomes.append(outcome)
                if on_outcome is not None:
                    on_outcome(outcome, so_far.latest_error())
            so_far.offer(due=not more)
        return so_far.scores()

    def ticks(self, total: int) -> int:
        """How many times `run` calls `on_step` for a run of `total` steps, at most."""
        if self.judge.policy.needs is Evidence.NOTHING:
            return 0
        return self._ticks_before(total, total)

    def shape(self, steps: Sequence[Step]) -> RunShape:
        """The numbers that decide what a run through `steps` costs; a threshold keeps half."""
        judge, budget = self.judge, self.step_budget
        model = judge.task.model
        return RunShape(
            kept=[
                1.0 if budget is None else budget.share(len(step.rows))
                for step in (() if judge.policy.needs is Evidence.NOTHING else steps)
            ],
            horizon=self.horizon,
            rounds=judge.policy.rounds,
            goes_back=judge.goes_back,
            memory=judge.snapshots,
            disk=judge.disk.states if judge.disk else 0,
            gradients=judge.gradients,
            targets=len(judge.targets),
            target_share=judge.target_rows / len(steps[0].rows),
            central=model.dtype == torch.float64 or model.autocast is not None,
            exact_jump=judge.scoring.jump_bytes is not None,
            probing=self.probing if judge.goes_back else 0.0,
            watched=judge.watches and len(steps[0].chunks()) == 1,
        )

    @property
    def step_budget(self) -> Budget | None:
        """Each step's share of the budget, for training on what was kept."""
        if self.budget is None:
            return None
        tokens = None if self.tokens is None else int(self.tokens.sum())
        return self.budget.within_step(len(self.judge.task.examples), tokens)

    def _ticks_before(self, first: int, total: int) -> int:
        """How many times `run` has called `on_step` when the window from step `first` begins."""
        firsts = range(0, total, self.horizon)
        recorded = sum(min(self.horizon, total - k) for k in firsts if k < first)
        return self.judge.ticks(recorded) + min(first, firsts[-1])


def _at(column: Array | None, rows: Array) -> Array | None:
    return None if column is None else column[rows]


class SoFar:
    """How far a run has come: all that the rest of it depends on.

    first: first step of the window it is in. state: before that step. rounds: of that window,
    which are done. outcomes: of the windows before.
    """

    def __init__(
        self, selector: Selector, state: State, steps: Sequence[Step], savepoints: Savepoints | None
    ) -> None:
        """Begin with `state`, or where the newest savepoint is."""
        judge = selector.judge
        self._selector, self._steps, self._savepoints = selector, steps, savepoints
        self.first, self.state = 0, state
        self.rounds: Rounds | None = None
        self.outcomes = Records(Outcome)
        self._ledger = Ledger(
            len(judge.task.examples), judge.target_weights, selector.strata, selector.halves
        )
        self._proxy = None
        if judge.goes_back and selector.probing:
            self._proxy = ErrorProxy(
                selector.probing,
                exact=judge.scoring.jump_bytes is not None,
                rounds=judge.policy.rounds,
                targets=len(judge.targets),
            )
        if savepoints is not None and (saved := savepoints.newest()) is not None:
            self._restore(saved)

    @property
    def _window(self) -> Sequence[Step]:
        return self._steps[self.first : self.first + self._selector.horizon]

    def judge_window(self, on_step: Callable[[], None]) -> Judged:
        """Judge the window it is in, after the rounds that are done."""
        judge, proxy = self._selector.judge, self._proxy
        probing = self.rounds.probing if self.rounds else None
        if proxy is not None and self.rounds is None:
            probing = proxy.plan(self._window, judge.target_rows)

        def on_round(rounds: Rounds) -> None:
            self.rounds = rounds
            self.offer()

        judged = judge.judge(
            self.state,
            self._window,
            probing=probing,
            first_step=self.first,
            on_step=on_step,
            rounds=self.rounds,
            on_round=on_round,
        )
        if proxy is not None and probing is not None and judged.scores is not None:
            proxy.enter(self.first, self._window, judged.scores, judge.target_rows)
        return judged

    def enter(self, decided: Decided) -> None:
        """Put a window's scores and influences in the ledger.

        A step that moves nothing, as one with a learning rate of 0, has judged nobody.
        """
        influences, per = decided.judged.scores, decided.judge.per
        for k, step in enumerate(decided.judged.steps):
            rows = step.rows.numpy()
            if influences is not None and not influences.influences[k].any():
                continue
            self._ledger.add(
                rows,
                decided.scores[k],
                None if influences is None else influences.influences[k].numpy(),
                1 if per is None else per[rows],
            )

    def latest_error(self) -> float | None:
        """The error to expect in the window entered last, if it is estimated."""
        return None if self._proxy is None else self._proxy.latest()

    def offer(self, *, due: bool = False) -> None:
        """Offer a savepoint, see `Savepoints.offer`."""
        if self._savepoints is not None:
            self._savepoints.offer(self._saved, due=due)

    def scores(self) -> Scores:
        """The scores of all windows so far."""
        goes_back = self._selector.judge.goes_back
        scores = self._ledger.scores(with_influences=goes_back)
        scores = replace(scores, outcomes=self.outcomes)
        if self._proxy is None:
            return scores
        errors = self._proxy.rows(len(scores.score))
        return replace(scores, errors=errors, windows=self._proxy.windows())

    def _saved(self) -> Tree:
        return {
            "first": self.first,
            "state": self.state.saved(),
            "ledger": self._ledger.saved(),
            "proxy": self._proxy and self._proxy.saved(),
            "differences": self._selector.judge.differences.saved(),
            "rounds": self.rounds and self.rounds.saved(),
            "outcomes": self.outcomes.saved(),
        }

    def _restore(self, saved: Tree) -> None:
        self.first = saved["first"]
        self.state = State.restored(saved["state"], self.state.theta.device)
        self._ledger.restore(saved["ledger"])
        self._selector.judge.differences.restore(saved["differences"])
        self.outcomes.restore(saved["outcomes"])
        if self._proxy is not None:
            self._proxy.restore(saved["proxy"])
        if saved["rounds"] is not None:
            self.rounds = self._selector.judge.restored(saved["rounds"], self._window)
