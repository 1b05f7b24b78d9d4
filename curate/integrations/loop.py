"""Look-ahead in somebody's own loop: draw a window ahead, judge, decide, hand the batches out."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.datasets import batch_length, take
from curate.errors import OptionError
from curate.influence import Differences, Scoring, Target, target_losses
from curate.integrations.drawing import Drawing
from curate.integrations.evening import Evening, factors, handed
from curate.integrations.options import AUTO, SHARE, WEIGHTS, Options
from curate.integrations.paying import Paying, halved
from curate.integrations.rehearsal import Rehearsal
from curate.integrations.spread import (
    Spread,
    Window,
    common,
    offered,
    require_same_state,
    require_same_targets,
)
from curate.integrations.training import LiveTraining
from curate.integrations.witness import Witness
from curate.models import FlatModel, Objective, require_trainable
from curate.output.audit_log import AuditLog
from curate.runtime.trackers import careful
from curate.runtime.trackers.base import log_metrics
from curate.selection import Array
from curate.selection.budget import Budget
from curate.selection.driver import Decided, Selector
from curate.selection.judge import Judge
from curate.selection.ledger import Outcome
from curate.selection.policies import LookAhead
from curate.trajectory import Step, Task


@dataclass
class WindowReport(Outcome):
    """What one window came to, see `Outcome`; fewer steps than `horizon` at the end of an epoch.

    realized: measured when the loop has trained on the window and asks for the next; None until
    then. horizon: K asked for. seconds: spent choosing.
    gain: with `keep="auto"`, the loss on target rows that did not choose after training on
    everything, less that after training on what was or would have been kept; None until measured.
    """

    horizon: int = 1
    seconds: float = 0.0
    gain: float | None = None

    @property
    def ratio(self) -> float | None:
        """Realized over predicted: near 1 where the linear picture holds."""
        if self.realized is None or not self.predicted:
            return None
        return self.realized / self.predicted

    def metrics(self) -> dict[str, float | None]:
        """The numbers that trackers receive."""
        more = {"gain": self.gain, "horizon": self.horizon, "seconds": self.seconds}
        return super().metrics() | more


@dataclass(frozen=True)
class Decision:
    """What becomes of one batch, or of the part of it that one process has.

    influences: shape (Q, n), all weights 1. values: the policy's, shape (n,). Both are NaN for a
    batch that was not scored.
    weights: in the mean that the loop is to take, shape (n,); 0 is left out.
    """

    influences: Tensor
    values: Array
    weights: Array

    @property
    def kept(self) -> Array:
        """Shape (n,), bool."""
        kept: Array = self.weights > 0
        return kept


def one_mean(batches: int) -> float:
    """The scale of a loop whose gradient is the mean over a step's candidates."""
    del batches
    return 1.0


class LiveLoop:
    """Chooses for a loop that trains with `training`, windows of steps of batches at a time.

    Where several processes train together, each with batches of its own, the batches that they
    draw at the same time are one: it is scored, and cut to its budget, as one process with all of
    it would. Each scores its own rows, and each has all targets, of which it takes an even share.
    All of them make the same calls.
    """

    def __init__(
        self,
        training: LiveTraining,
        objective: Objective,
        targets: Sequence[Target],
        options: Options,
        accumulate: int = 1,
        scale: Callable[[int], float] = one_mean,
    ) -> None:
        """accumulate: batches that make a step. scale: n batches -> the loop's gradient in means.

        See `LookAheadLoader` for both.
        """
        self.training, self.options, self.accumulate = training, options, accumulate
        self._scale = scale
        self.reports: list[WindowReport] = []
        self._objective, self._targets = objective, targets
        self._paying = Paying() if options.keep == AUTO else None
        # the targets that choose and those that judge; halves take turns by the scored window
        self._sides: list[tuple[Sequence[Target], Sequence[Target]]] = [(targets, ())]
        if self._paying:
            one, other = halved(targets, options.seed)
            self._sides = [(other, one), (one, other)]
        self._judging: Sequence[Target] = ()
        self._everything = 0.0  # loss of the judging half at the end of the window handed out last
        self._policy, self._differences = LookAhead(options.scored_rounds), Differences()
        share = SHARE if self._paying else options.keep
        self._budget = None if isinstance(share, str) else Budget(float(share))
        self._seeds = torch.Generator().manual_seed(options.seed)
        self._log: AuditLog | None = None
        first = training.ranks.rank == 0  # who speaks for all
        self._trackers = careful([options.tracker] if options.tracker and first else [])
        self._unsettled: Decided | None = None
        self._factors: list[Array] = []
        self._evening = Evening(training)
        self._drawing = Drawing()
        self._rehearsal = Rehearsal(training, objective)
        self._witness = Witness(training, objective)
        self._steps_decided = 0
        model, _ = training.read()
        training.learning_rates(1)
        require_same_targets(targets, training.ranks)
        with training.simulated(self._objective):
            require_trainable(model, objective, targets[0].examples)

    def stream(
        self, batches: Iterable[Any], left: Callable[[], int | None] = lambda: None
    ) -> Iterator[Any]:
        """The batches, cut to what is kept, or with `keep="weights"` as pairs (batch, weights).

        They are drawn a window ahead. With everything kept they go through as they are, as do
        those that remain where another process has no more.

        left: gives how many steps the loop will still take, so that no window goes beyond; None
        where that is not known.
        """
        if self.options.keep == 1:
            yield from batches
            return
        source = iter(batches)
        beyond: Sequence[Any] | None = None
        while True:
            self.settle()
            if beyond is not None:
                break
            steps = left()
            horizon = self.options.horizon if steps is None else min(self.options.horizon, steps)
            drawn = self._drawing.batches(source, max(horizon, 1) * self.accumulate)
            window, beyond = common(drawn, self.accumulate, self.training.ranks)
            given = 0
            try:
                for batch, decision in zip(window, self.choose(window), strict=True):
                    if given % self.accumulate == 0 and self._unsettled is not None:
                        self._begin_step(self._unsettled, given // self.accumulate)
                    given += 1
                    self._witness.hand()
                    yield self._part(batch, decision)
            except GeneratorExit:
                self._witness.stop()
                self._evening.stop()
                if given < len(window):  # the loop was left before the window's end
                    self._record()
                raise
        for batch in chain(beyond, source):
            yield self._part(batch, _whole(batch_length(batch), len(self._targets)))

    def choose(self, batches: Sequence[Any]) -> list[Decision]:
        """Decide on a window, given as its batches in order.

        With `keep="auto"` a window may go through whole and unscored, and one in which all
        learning rates are 0, as a warm-up begins, does: it has no report then.
        """
        sizes = [batch_length(batch) for batch in batches]
        steps = -(-len(batches) // self.accumulate)
        if not steps:
            return []
        rates = self.training.learning_rates(steps)
        moves = any(rate for step in rates for rate in step)
        if (self._paying and not self._paying.due()) or not moves:
            self._steps_decided += steps
            return [_whole(size, len(self._targets)) for size in sizes]
        begin = time.monotonic()
        window = offered(batches, self.options, self.accumulate, self.training.ranks)
        spread = window.spread
        with self.training.simulated(self._objective):
            decided = self._decide(window, rates)
            gain = self._try(decided)
            if self._paying and not self._paying.pays:
                whole = [np.ones(len(weights)) for weights in decided.weights]
                decided = replace(decided, weights=whole)
            outcome = vars(decided.outcome())
        self._factors = factors(self.training, spread, decided, weighed=self._budget is None)
        seconds = time.monotonic() - begin
        report = WindowReport(**outcome, horizon=self.options.horizon, seconds=seconds, gain=gain)
        if self.options.log is not None and self.training.ranks.rank == 0:
            self._enter(window, decided)
        self.reports.append(report)
        self._unsettled = decided
        self._steps_decided += len(decided.weights)
        decisions = _decisions(decided, spread.own_positions())
        if self._budget is not None:
            return decisions
        means = np.concatenate(self._factors)
        return [replace(d, weights=d.weights * x) for d, x in zip(decisions, means, strict=True)]

    def settle(self) -> None:
        """Measure what the last window, now trained on, did."""
        self._witness.check()
        self._evening.stop()
        if self._unsettled is None:
            return
        report = self.reports[-1]
        with self.training.simulated(self._objective):
            model = self._unsettled.judge.task.model  # what trains may be another part by now
            theta = model.read()
            report.realized = self._unsettled.realized(theta)
            if self._paying and report.gain is None:
                report.gain = self._everything - self._judged_loss(model, theta)
                self._paying.enter(report.gain)
        self._record()

    def _require_cuts(self, sizes: Sequence[int]) -> None:
        """Refuse batches that are too small for any row to be dropped."""
        budget = self._budget
        if budget is not None and all(budget.share(size) == 1 for size in sizes):
            raise OptionError(
                f"batches of {max(sizes)} cannot be cut: keep={budget.fraction} drops none of "
                "their rows; use larger batches, and accumulate fewer of them. Rows that are "
                "packed into one, without padding, count as one."
            )

    def _begin_step(self, decided: Decided, k: int) -> None:
        """The loop is about to be given step k of a window."""
        self._witness.go_on(decided, k)
        if self._budget is not None:
            self._evening.begin(self._factors[k].tolist())

    def _decide(self, window: Window, rates: Sequence[tuple[float, ...]]) -> Decided:
        """A window, judged by the targets whose turn it is.

        rates: of all param groups, for each step.
        """
        options, spread = self.options, window.spread
        examples = window.examples
        parts = [spread.batches(k) for k in range(len(spread))]
        steps, known = self._steps(spread), None
        if not self._rehearsal.done:
            self._require_cuts([len(batch) for batches in parts for batch in batches])
            known = self._rehearsal.take(examples, steps[0])
        model, live = self.training.read()
        steps = [
            replace(step, lrs=tuple(lrs[k] for k in live.groups))
            for step, lrs in zip(steps, rates, strict=True)
        ]
        choosing, self._judging = self._sides[len(self.reports) % len(self._sides)]
        judge = Judge(
            Task(model, self._objective, examples, self.training.ranks),
            live.rule,
            self._policy,
            choosing,
            Scoring(removal=options.removal),
            options.snapshots,
            options.snapshots,
            differences=self._differences,
        )
        selector = Selector(
            judge,
            self._budget,
            options.horizon,
            strata=window.labels,
            groups=window.groups,
        )
        state = live.state()
        require_same_state(state, self.training.ranks)
        self._witness.open(state)
        judged = judge.judge(state, steps, first_step=self._steps_decided, known=known)
        self._rehearsal.note_use(model)
        return selector.decide(judged, self._steps_decided, parts)

    def _steps(self, spread: Spread) -> list[Step]:
        """The loop's next steps, still without learning rates."""
        held = [spread.held(k) for k in range(len(spread))]
        totals = [sum(lengths) for lengths in held]
        return [
            Step(
                rows=rows,
                weights=torch.ones(len(rows)),
                lrs=(),
                seed=int(torch.randint(2**62, (), generator=self._seeds)),
                micro_batch=self.options.micro_batch or 0,
                cuts=tuple(piece.rows.start for piece in spread.pieces(k))[1:],
                scale=self._scale(len(spread.own(k))),
                held=held[k],
            )
            for k, rows in enumerate(torch.arange(sum(totals)).split(totals))
        ]

    def _try(self, decided: Decided) -> float | None:
        """What training on what is kept would gain on the judging half, unless it is done anyway.

        Where it is, only the loss after training on everything is taken down, for `settle`.
        """
        if self._paying is None:
            return None
        model = decided.judge.task.model
        self._everything = self._judged_loss(model, decided.judged.final.theta)
        if self._paying.pays:
            return None
        final = decided.trained(self.training.read()[1].state())
        gain = self._everything - self._judged_loss(model, final.theta)
        self._paying.enter(gain)
        return gain

    def _judged_loss(self, model: FlatModel, theta: Tensor) -> float:
        """The mean loss, at theta, of the targets that judge the window."""
        ranks = self.training.ranks
        return float(target_losses(model, self._objective, self._judging, theta, ranks).mean())

    def _part(self, batch: Any, decision: Decision) -> Any:
        if self.options.keep == WEIGHTS:
            return batch, torch.from_numpy(decision.weights).float()
        return take(batch, torch.from_numpy(handed(decision.kept)))

    def _enter(self, window: Window, decided: Decided) -> None:
        """Put a window's candidates in the log."""
        assert self.options.log is not None
        spread, rows = window.spread, window.rows
        names = [target.name for target in self._targets]
        batches = spread.all_positions()
        self._log = self._log or AuditLog(self.options.log, names)
        self._log.candidates(
            {
                "window": np.full(len(decision.weights), len(self.reports)),
                "step": np.full(len(decision.weights), self._steps_decided + k // self.accumulate),
                "batch": np.full(len(decision.weights), k % self.accumulate),
                "position": np.arange(len(decision.weights)),
                "row": [None] * len(decision.weights) if rows is None else rows[positions],
                "influence": decision.influences.mean(dim=0).numpy(),
                "value": decision.values,
                "weight": decision.weights,
                "kept": decision.kept,
            }
            | {
                f"influence/{name}": part.numpy()
                for name, part in zip(names, decision.influences, strict=True)
            }
            for k, (positions, decision) in enumerate(
                zip(batches, _decisions(decided, batches), strict=True)
            )
        )

    def _record(self) -> None:
        """Put the last window itself in the log and send it to a tracker, once."""
        if self._unsettled is None:
            return
        report, self._unsettled = self.reports[-1], None
        log_metrics(self._trackers, "window", report.metrics(), report.first_step)
        if self._log is not None:
            self._log.window(window=len(self.reports) - 1, **vars(report))


def _decisions(decided: Decided, batches: Sequence[Array]) -> list[Decision]:
    """What becomes of every batch of a window, the batches being at these positions in it."""
    assert decided.judged.scores is not None
    influences = torch.cat(decided.judged.scores.influences, dim=1)
    values, weights = np.concatenate(decided.judged.values), np.concatenate(decided.weights)
    return [
        Decision(influences[:, torch.from_numpy(rows)], values[rows], weights[rows])
        for rows in batches
    ]


def _whole(size: int, targets: int) -> Decision:
    """Nothing dropped from a batch that was not scored."""
    influences = torch.full((targets, size), torch.nan, dtype=torch.float64)
    return Decision(influences, np.full(size, np.nan), np.ones(size))
