"""THE loop: cut a run into windows, score each, decide, commit, go on (DESIGN 3.6)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from curate.influence import Differences, ErrorProxy, over_targets, reweighting, target_losses
from curate.influence.cost import Run, measured
from curate.rules import State
from curate.runtime.files import Tree
from curate.runtime.savepoints import Savepoints
from curate.selection.judge import Judge, Judged, Rounds, keep_all
from curate.selection.ledger import Ledger, Outcome, Scores
from curate.selection.policies import Array, Budget, Evidence, Offer
from curate.trajectory import Step, ignore_step, replay


@dataclass(frozen=True)
class Selector:
    """Values every candidate of a run, and trains on what it would keep as it goes.

    A run of T steps is cut into windows of `horizon` = K steps. K = T is
    offline scoring, K = 1 online; there is no other difference.

    Cost per committed step, in gradients of one batch, with every state kept:
    R (1 + 1.3) to record and score in R = `policy.rounds` rounds, see
    `Judge`; and 1 to commit what was kept, unless that was everything or the run ends
    there; plus R passes over the targets per window, and a forward one at the end of the
    windows that `measured` says,
    to see what became of the prediction. A snapshot budget below K, in memory and on disk
    together, adds forward steps (see `Recording`). Memory: `snapshots` + 2 states (2 more
    with a disk), their gradients, Q adjoints, one batch's graph, and O(N Q) for the ledger; nothing
    grows with T but the step records.

    judge: values the candidates of a window. budget: how much is kept.
    groups: for quotas, shape (N,), or None. tokens: of every candidate, shape (N,), for a
    budget in tokens.
    halves: if the judge's targets are halves, those of one before those of the other, the share
    that each is of its target, shape (2, Q / 2).
    probing: share of the cost of scoring that goes into estimating its error, see
    `ErrorProxy`.
    """

    judge: Judge
    budget: Budget
    horizon: int
    groups: Array | None = None
    tokens: Array | None = None
    halves: Array | None = None
    probing: float = 0.0

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"the horizon must be at least 1 but got {self.horizon}")

    def run(
        self,
        state: State,
        steps: Sequence[Step],
        on_step: Callable[[], None] = ignore_step,
        on_window: Callable[[int, State, Judged], None] | None = None,
        on_outcome: Callable[[Outcome, float | None], None] | None = None,
        savepoints: Savepoints | None = None,
    ) -> Scores:
        """Score the whole run, from `state` through `steps`.

        `on_step` is called `ticks(len(steps))` times, or less where steps are dropped whole;
        `on_window` with every window: its first step, the state before it, what was found;
        `on_outcome` with what became of it, and the error to expect of its influences so far, if
        that is estimated (`ErrorProxy.latest`).
        `savepoints` are offered one after every round; the run goes on from the newest of them.
        """
        judge, count = self.judge, len(self.judge.task.examples)
        if judge.policy.needs is Evidence.NOTHING:
            values = judge.policy.values(Offer(np.arange(count), np.ones(count)))
            return Scores(values, np.zeros(count, dtype=np.int64))
        ledger = Ledger(count, judge.target_weights, judge.strata, self.halves)
        looks = measured(len(steps), self.horizon)
        so_far = _SoFar(0, state, ledger, self._proxy(), judge.differences)
        if savepoints is not None and (saved := savepoints.newest()) is not None:
            so_far.restore(saved, self, steps)
            for _ in range(self._ticks_before(so_far.first, len(steps))):
                on_step()
        while (first := so_far.first) < len(steps):
            judged = self._judge(so_far, steps, on_step, savepoints)
            if on_window is not None:
                on_window(first, so_far.state, judged)
            kept = self._decide(judged, ledger)
            so_far.first += self.horizon
            so_far.rounds, more = None, so_far.first < len(steps)
            if more:
                so_far.state = self._commit(so_far.state, judged, kept, on_step)
            if judge.goes_back:
                committed = so_far.state if first in looks else None
                so_far.outcomes.append(self._outcome(first, judged, kept, committed))
                if on_outcome is not None:
                    proxy = so_far.proxy
                    on_outcome(so_far.outcomes[-1], None if proxy is None else proxy.latest())
            if savepoints is not None:
                savepoints.offer(so_far.saved, due=not more)
        proxy = so_far.proxy
        scores = ledger.scores(with_influences=judge.goes_back)
        scores = replace(scores, outcomes=so_far.outcomes)
        if proxy is None:
            return scores
        return replace(scores, errors=proxy.rows(count), windows=proxy.windows())

    def ticks(self, total: int) -> int:
        """How many times `run` calls `on_step` for a run of `total` steps, at most."""
        if self.judge.policy.needs is Evidence.NOTHING:
            return 0
        return self._ticks_before(total, total)

    def shape(self, steps: Sequence[Step]) -> Run:
        """The numbers that decide what a run through `steps` takes, if a threshold keeps half."""
        judge, budget = self.judge, self.step_budget
        kept = () if judge.policy.needs is Evidence.NOTHING else steps
        model = judge.task.model
        return Run(
            kept=[budget.share(len(step.rows)) for step in kept],
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
    def step_budget(self) -> Budget:
        """What of the budget falls to every step while going on from what was kept."""
        tokens = None if self.tokens is None else int(self.tokens.sum())
        return self.budget.within_step(len(self.judge.task.examples), tokens)

    def _ticks_before(self, first: int, total: int) -> int:
        """The same by the time that the window is begun whose first step is `first`."""
        firsts = range(0, total, self.horizon)
        recorded = sum(min(self.horizon, total - k) for k in firsts if k < first)
        return self.judge.ticks(recorded) + min(first, firsts[-1])

    def _proxy(self) -> ErrorProxy | None:
        if not (self.judge.goes_back and self.probing):
            return None
        return ErrorProxy(
            self.probing,
            exact=self.judge.scoring.jump_bytes is not None,
            rounds=self.judge.policy.rounds,
        )

    def _judge(
        self, so_far: "_SoFar", steps: Sequence[Step], on_step: Callable[[], None],
        savepoints: Savepoints | None,
    ) -> Judged:  # fmt: skip
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
            so_far.state, window, probing=probing, first_step=first, on_step=on_step,
            rounds=so_far.rounds, on_round=note,
        )  # fmt: skip
        if proxy is not None and probing is not None and judged.scores is not None:
            proxy.enter(first, window, judged.scores, judge.target_rows)
        return judged

    def _decide(self, judged: Judged, ledger: Ledger) -> list[Array]:
        """Enter a window in the ledger; what to keep of each step, shape (n,), bool."""
        budget, decisions = self.step_budget, []
        for k, step in enumerate(judged.steps):
            rows = step.rows.numpy()
            influences = None if judged.scores is None else judged.scores.influences[k].numpy()
            per = 1 if self.judge.tokens is None else self.judge.tokens[rows]
            scores = ledger.add(rows, judged.values[k], influences, per)
            groups, tokens = (
                None if whole is None else whole[rows] for whole in (self.groups, self.tokens)
            )
            decisions.append(budget.choose(scores, groups, tokens).kept)
        return decisions

    def _outcome(
        self, first: int, judged: Judged, kept: Sequence[Array], committed: State | None
    ) -> Outcome:
        """What became of a window; `committed` is the state at its end, if that is to be seen."""
        scores, judge = judged.scores, self.judge
        assert scores is not None
        targets, predicted, realised = judge.targets, None, None
        if all(mask.any() for mask in kept):
            changes = [
                reweighting(d, n, step.weights, step.weights * torch.from_numpy(mask))
                for d, n, step, mask in zip(
                    scores.derivatives, scores.sizes, judged.steps, kept, strict=False
                )
            ]
            predicted = float(over_targets(targets, torch.stack(changes).sum(dim=0)))
        if committed is not None and keep_all(judged, kept):
            realised = 0.0
        elif committed is not None:
            after = target_losses(judge.task.model, judge.task.objective, targets, committed.theta)
            realised = float(over_targets(targets, after)) - scores.overall_loss
        decided = torch.cat(scores.overall[: len(kept)])
        return Outcome(
            first_step=first,
            steps=len(judged.steps),
            candidates=len(decided),
            kept=sum(int(mask.sum()) for mask in kept),
            signal=float(decided.abs().mean()),
            target_loss=scores.overall_loss,
            predicted=predicted,
            realised=realised,
        )

    def _commit(
        self, state: State, judged: Judged, kept: Sequence[Array], on_step: Callable[[], None]
    ) -> State:
        """Train from the window's start through its decided steps, on what was kept."""
        if keep_all(judged, kept):
            for _ in kept:
                on_step()
            return judged.final
        committed = [
            step.keep(torch.from_numpy(np.flatnonzero(mask)))
            for step, mask in zip(judged.steps, kept, strict=False)
            if mask.any()
        ]
        return replay(self.judge.task, self.judge.rule, state, committed, on_step)


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
