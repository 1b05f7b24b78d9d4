"""The selector: judge a window, decide, train on what is kept, go on; for planned runs and loops.

A planned run (`Selector.run`) knows all its steps and trains by itself. A loop of somebody's own
asks for one window at a time, and trains by its own means. Both decide in `Selector.decide`, and
both learn from `Decided` what was predicted and what came of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from curate.influence import Differences, ErrorProxy, over_targets, reweighting, target_losses
from curate.influence.cost import RunShape, measured
from curate.rules import State
from curate.runtime.files import Tree
from curate.runtime.savepoints import Savepoints
from curate.selection import Array
from curate.selection.budget import Budget
from curate.selection.judge import Judge, Judged, Rounds
from curate.selection.ledger import Ledger, Outcome, Scores
from curate.selection.policies import Evidence, Offer
from curate.selection.scale import standardize
from curate.trajectory import Step, ignore_step, replay


@dataclass(frozen=True)
class Decided:
    """A judged window, and what is kept of it.

    scores: per step, the values on one scale, shape (n,); the budget ranks them.
    weights: per step, in the mean that is to be trained on, shape (n,); 0 is left out.
    """

    judge: Judge
    judged: Judged
    first_step: int
    scores: list[Array]
    weights: list[Array]

    @property
    def everything(self) -> bool:
        """Whether nothing was dropped or reweighted, so that the window's end is known already."""
        return all(np.all(weights == 1) for weights in self.weights)

    def steps(self) -> list[Step]:
        """The steps to train on; one that keeps nothing is left out."""
        return [
            step.keep(torch.from_numpy(np.flatnonzero(weights)))
            for step, weights in zip(self.judged.steps, self.weights, strict=True)
            if weights.any()
        ]

    def trained(self, state: State, on_step: Callable[[], None] = ignore_step) -> State:
        """The state after training on what is kept, from `state` before the window."""
        if self.everything:
            for _ in self.weights:
                on_step()
            return self.judged.final
        return replay(self.judge.task, self.judge.rule, state, self.steps(), on_step)

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

    def realized(self, theta: Tensor) -> float:
        """Change of the mean target loss that came of it, theta being where training ended."""
        scores, judge = self.judged.scores, self.judge
        assert scores is not None
        after = target_losses(judge.task.model, judge.task.objective, judge.targets, theta)
        return float(over_targets(judge.targets, after)) - scores.overall_loss

    def outcome(self) -> Outcome:
        """What the window came to, but for what was realized."""
        scores = self.judged.scores
        assert scores is not None
        return Outcome(
            first_step=self.first_step,
            steps=len(self.weights),
            candidates=sum(len(weights) for weights in self.weights),
            kept=sum(int(np.count_nonzero(weights)) for weights in self.weights),
            signal=float(torch.cat(scores.overall).abs().mean()),
            target_loss=scores.overall_loss,
            predicted=self.predicted(),
        )


@dataclass(frozen=True)
class Selector:
    """Values every candidate of a run, and trains on what it would keep as it goes.

    A run of T steps is cut into windows of `horizon` = K steps. K = T is
    offline scoring, K = 1 online; there is no other difference.

    Cost per committed step, in gradients of one batch, with every state kept:
    R (1 + 1.3) to record and score in R = `policy.rounds` rounds, see
    `Judge`; and 1 to commit what was kept, unless that was everything or the run ends
    there; plus R passes over the targets per window, and a forward one at the end of the
    windows that `measured` lists, to see what became of the prediction. A snapshot budget below K,
    in memory and on disk together, adds forward steps (see `Recording`). Memory: `snapshots` + 2
    states (2 more with a disk), their gradients, Q adjoints, one batch's graph, and O(N Q) for the
    ledger; nothing grows with T but the step records.

    judge: values the candidates of a window.
    budget: how much is kept; None keeps all, with the values as weights of mean 1.
    strata: labels within which values are standardized, groups: for quotas, tokens: for a budget in
    tokens; each of every candidate, shape (N,), or None.
    halves: if the judge's targets are halves, those of one before those of the other, the share
    that each is of its target, shape (2, Q / 2).
    probing: share of the cost of scoring that goes into estimating its error, see `ErrorProxy`.
    """

    judge: Judge
    budget: Budget | None
    horizon: int
    strata: Array | None = None
    groups: Array | None = None
    tokens: Array | None = None
    halves: Array | None = None
    probing: float = 0.0

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"the horizon must be at least 1 but got {self.horizon}")

    def decide(
        self, judged: Judged, first_step: int = 0, parts: Sequence[Sequence[int]] | None = None
    ) -> Decided:
        """What to keep of a judged window.

        Args:
            first_step: of the window, in the run.
            parts: sizes of the parts of every step, such as the batches of a loop that adds up
                gradients; the budget keeps its share of each. None for whole steps.
        """
        budget = self.step_budget
        scores, weights = [], []
        for k, (step, values) in enumerate(zip(judged.steps, judged.values, strict=True)):
            rows = step.rows.numpy()
            strata, groups, tokens = (
                None if whole is None else whole[rows]
                for whole in (self.strata, self.groups, self.tokens)
            )
            scores.append(standardize(values, strata))
            if budget is None:
                weights.append(values / values.mean())
                continue
            ends = np.cumsum([len(rows)] if parts is None else parts[k])
            weights.append(
                np.concatenate(
                    [
                        budget.choose(
                            scores[k][part],
                            None if groups is None else groups[part],
                            None if tokens is None else tokens[part],
                        ).kept.astype(float)
                        for part in np.split(np.arange(len(rows)), ends[:-1])
                    ]
                )
            )
        return Decided(self.judge, judged, first_step, scores, weights)

    def run(
        self,
        state: State,
        steps: Sequence[Step],
        on_step: Callable[[], None] = ignore_step,
        on_window: Callable[[State, Decided], None] | None = None,
        on_outcome: Callable[[Outcome, float | None], None] | None = None,
        savepoints: Savepoints | None = None,
    ) -> Scores:
        """Score the whole run, from `state` through `steps`.

        `on_step` is called `ticks(len(steps))` times, or less where steps are dropped whole;
        `on_window` with every window: the state before it and what was decided;
        `on_outcome` with what became of it, and the error to expect of its influences so far, if
        that is estimated (`ErrorProxy.latest`).
        `savepoints` are offered one after every round; the run goes on from the newest of them.
        """
        judge, count = self.judge, len(self.judge.task.examples)
        if judge.policy.needs is Evidence.NOTHING:
            values = judge.policy.values(Offer(np.arange(count), np.ones(count)))
            return Scores(values, np.zeros(count, dtype=np.int64))
        ledger = Ledger(count, judge.target_weights, self.strata, self.halves)
        looks = measured(len(steps), self.horizon)
        so_far = _SoFar(0, state, ledger, self._proxy(), judge.differences)
        if savepoints is not None and (saved := savepoints.newest()) is not None:
            so_far.restore(saved, self, steps)
            for _ in range(self._ticks_before(so_far.first, len(steps))):
                on_step()
        while (first := so_far.first) < len(steps):
            judged = self._judge(so_far, steps, on_step, savepoints)
            decided = self.decide(judged, first)
            self._enter(ledger, decided)
            if on_window is not None:
                on_window(so_far.state, decided)
            so_far.first += self.horizon
            so_far.rounds, more = None, so_far.first < len(steps)
            if more:
                so_far.state = decided.trained(so_far.state, on_step)
            if judge.goes_back:
                outcome = decided.outcome()
                if first in looks:
                    theta = so_far.state.theta
                    outcome.realised = 0.0 if decided.everything else decided.realized(theta)
                so_far.outcomes.append(outcome)
                if on_outcome is not None:
                    proxy = so_far.proxy
                    on_outcome(outcome, None if proxy is None else proxy.latest())
            if savepoints is not None:
                savepoints.offer(so_far.saved, due=not more)
        scores = ledger.scores(with_influences=judge.goes_back)
        scores = replace(scores, outcomes=so_far.outcomes)
        if (proxy := so_far.proxy) is None:
            return scores
        return replace(scores, errors=proxy.rows(count), windows=proxy.windows())

    def ticks(self, total: int) -> int:
        """How many times `run` calls `on_step` for a run of `total` steps, at most."""
        if self.judge.policy.needs is Evidence.NOTHING:
            return 0
        return self._ticks_before(total, total)

    def shape(self, steps: Sequence[Step]) -> RunShape:
        """The numbers that decide what a run through `steps` takes, if a threshold keeps half."""
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
        )

    @property
    def step_budget(self) -> Budget | None:
        """What of the budget falls to every step while going on from what was kept."""
        if self.budget is None:
            return None
        tokens = None if self.tokens is None else int(self.tokens.sum())
        return self.budget.within_step(len(self.judge.task.examples), tokens)

    def _ticks_before(self, first: int, total: int) -> int:
        """The same by the time that the window is begun whose first step is `first`."""
        firsts = range(0, total, self.horizon)
        recorded = sum(min(self.horizon, total - k) for k in firsts if k < first)
        return self.judge.ticks(recorded) + min(first, firsts[-1])

    def _enter(self, ledger: Ledger, decided: Decided) -> None:
        """Put a window's scores and influences in the ledger."""
        found, per = decided.judged.scores, self.judge.per
        for k, step in enumerate(decided.judged.steps):
            rows = step.rows.numpy()
            influences = None if found is None else found.influences[k].numpy()
            ledger.add(rows, decided.scores[k], influences, 1 if per is None else per[rows])

    def _proxy(self) -> ErrorProxy | None:
        if not (self.judge.goes_back and self.probing):
            return None
        return ErrorProxy(
            self.probing,
            exact=self.judge.scoring.jump_bytes is not None,
            rounds=self.judge.policy.rounds,
            targets=len(self.judge.targets),
        )

    def _judge(
        self,
        so_far: "_SoFar",
        steps: Sequence[Step],
        on_step: Callable[[], None],
        savepoints: Savepoints | None,
    ) -> Judged:
        """Judge the next window, from where its rounds are."""
        judge, proxy, first = self.judge, so_far.proxy, so_far.first
        window = steps[first : first + self.horizon]
        probing = so_far.rounds.probing if so_far.rounds else None
        if proxy is not None and so_far.rounds is None:
            probing = proxy.plan(window, judge.target_rows)

        def note(rounds: Rounds) -> None:
            so_far.rounds = rounds
            if savepoints is not None:
                savepoints.offer(so_far.saved)

        judged = judge.judge(
            so_far.state,
            window,
            probing=probing,
            first_step=first,
            on_step=on_step,
            rounds=so_far.rounds,
            on_round=note,
        )
        if proxy is not None and probing is not None and judged.scores is not None:
            proxy.enter(first, window, judged.scores, judge.target_rows)
        return judged


@dataclass
class _SoFar:
    """What a run has come to: all that the rest of it depends on.

    first: first step of the window it is in. state: before that step. rounds: of that
    window, which are done. outcomes: of the windows before.
    """

    first: int
    state: State
    ledger: Ledger
    proxy: ErrorProxy | None
    differences: Differences
    rounds: Rounds | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    def saved(self) -> Tree:
        """All of it as a tree."""
        return {
            "first": self.first,
            "state": self.state.saved(),
            "ledger": self.ledger.saved(),
            "proxy": None if self.proxy is None else self.proxy.saved(),
            "differences": self.differences.saved(),
            "rounds": None if self.rounds is None else self.rounds.saved(),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    def restore(self, saved: Tree, selector: Selector, steps: Sequence[Step]) -> None:
        """Go on from what was `saved`."""
        self.first = saved["first"]
        self.state = State.restored(saved["state"], self.state.theta.device)
        self.ledger.restore(saved["ledger"])
        self.differences.restore(saved["differences"])
        self.outcomes = [Outcome(**values) for values in saved["outcomes"]]
        if self.proxy is not None:
            self.proxy.restore(saved["proxy"])
        if saved["rounds"] is not None:
            window = steps[self.first : self.first + selector.horizon]
            self.rounds = selector.judge.restored(saved["rounds"], window)
