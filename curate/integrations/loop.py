"""Look-ahead in somebody's own loop: draw a window ahead, judge, decide, hand the batches out."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.datasets import BatchExamples, batch_length, take
from curate.errors import DataError
from curate.influence import Differences, Scoring, Target, target_losses
from curate.integrations.options import AUTO, SHARE, WEIGHTS, Options
from curate.integrations.paying import Paying, halved
from curate.integrations.training import Training
from curate.models import Objective, require_trainable
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

    realised is measured when the loop has trained on the window and asks for the next; None until
    then. horizon: K asked for. seconds: spent choosing.
    gain: with `keep="auto"`, the loss on target rows that did not choose after training on
    everything, less that after training on what was or would have been kept; None until known.
    """

    horizon: int = 1
    seconds: float = 0.0
    gain: float | None = None

    @property
    def ratio(self) -> float | None:
        """Realized over predicted: near 1 where the linear picture holds."""
        if self.realised is None or not self.predicted:
            return None
        return self.realised / self.predicted

    def metrics(self) -> dict[str, float | None]:
        """Its numbers by name for a tracker."""
        return super().metrics() | {
            "gain": self.gain,
            "horizon": self.horizon,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Decision:
    """What becomes of one batch.

    influences: shape (Q, n), all weights 1. values: the policy's, shape (n,).
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
    """Chooses for a loop that trains with `training`, windows of steps of batches at a time."""

    def __init__(
        self,
        training: Training,
        objective: Objective,
        targets: Sequence[Target],
        options: Options,
        accumulate: int = 1,
        scale: Callable[[int], float] = one_mean,
    ) -> None:
        """`accumulate` batches make a step; of one of n, the loop's gradient is scale(n) means."""
        self.training, self.options, self.accumulate = training, options, accumulate
        self._scale = scale
        self.reports: list[WindowReport] = []
        self._objective, self._targets = objective, targets
        self._paying = Paying() if options.keep == AUTO else None
        self._halves = halved(targets, options.seed) if self._paying else ()
        self._everything = 0.0  # loss of the judging half at the end of the window handed out last
        self._policy, self._differences = LookAhead(options.scored_rounds), Differences()
        share = SHARE if self._paying else options.keep
        self._budget = None if isinstance(share, str) else Budget(float(share))
        self._seeds = torch.Generator().manual_seed(options.seed)
        self._log: AuditLog | None = None
        self._trackers = careful([] if options.tracker is None else [options.tracker])
        self._unsettled: Decided | None = None
        self._steps_decided = 0
        training.learning_rates(training.read()[1], 1)
        with training.simulated():
            require_trainable(training.read()[0], objective, targets[0].examples)

    def stream(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, cut to what is kept, or with `keep="weights"` as pairs (batch, weights).

        Drawn a window ahead. With everything kept they go through as they are.
        """
        if self.options.keep == 1:
            yield from batches
            return
        source, ahead = iter(batches), list[Any]()
        while True:
            self.settle()
            length = self.options.horizon * self.accumulate
            ahead += islice(source, length - len(ahead))
            if not ahead:
                return
            decisions = self.choose(ahead)
            decided, ahead = ahead[: len(decisions)], ahead[len(decisions) :]
            for handed, (batch, decision) in enumerate(zip(decided, decisions, strict=True)):
                if handed == len(decided) - 1:
                    yield self._part(batch, decision)
                    continue
                try:
                    yield self._part(batch, decision)
                except GeneratorExit:  # the loop was left before the window's end
                    self._record(None)
                    raise

    def choose(self, batches: Sequence[Any]) -> list[Decision]:
        """Decide on a window, given as its batches in order.

        With `keep="auto"` it may be that nothing is dropped, and that nothing was scored: there is
        no report of such a window then.
        """
        if self._paying and not self._paying.due():
            self._steps_decided += -(-len(batches) // self.accumulate)
            return [_whole(batch, len(self._targets)) for batch in batches]
        begin = time.monotonic()
        with self.training.simulated():
            decided, lengths = self._decide(batches)
            gain = self._try(decided)
            if self._paying and not self._paying.pays:
                whole = [np.ones(len(weights)) for weights in decided.weights]
                decided = replace(decided, weights=whole)
            report = WindowReport(
                **vars(decided.outcome()), horizon=self.options.horizon, gain=gain
            )
        report.seconds = time.monotonic() - begin
        decisions = [_decisions(decided, k, sizes) for k, sizes in enumerate(lengths)]
        flat = list(chain.from_iterable(decisions))
        if self.options.log is not None:
            self._enter(batches, flat)
        self.reports.append(report)
        self._unsettled = decided
        self._steps_decided += len(decided.weights)
        return flat

    def settle(self) -> None:
        """Measure what the last window, now trained on, did."""
        if self._unsettled is None:
            return
        report, decided = self.reports[-1], self._unsettled
        with self.training.simulated():
            theta = self.training.read()[0].read()
            report.realised = decided.realized(theta)
            if self._paying and report.gain is None:
                report.gain = self._everything - self._judged_loss(theta, len(self.reports) - 1)
                self._paying.enter(report.gain)
        self._record(report.realised)

    def _decide(self, batches: Sequence[Any]) -> tuple[Decided, list[list[int]]]:
        """A window judged by the targets whose turn it is; the sizes of every step's batches."""
        options, examples = self.options, BatchExamples(batches)
        model, live = self.training.read()
        members = [
            batches[first : first + self.accumulate]
            for first in range(0, len(batches), self.accumulate)
        ]
        lengths = [[batch_length(batch) for batch in step] for step in members]
        judge = Judge(
            Task(model, self._objective, examples),
            live.rule,
            self._policy,
            self._sides(len(self.reports))[0],
            Scoring(removal=options.removal),
            options.snapshots,
            options.snapshots,
            differences=self._differences,
        )
        selector = Selector(
            judge,
            self._budget,
            options.horizon,
            strata=_of_every_row(options.label, batches, "label"),
            groups=_of_every_row(options.group_by, batches, "group_by"),
        )
        rates = self.training.learning_rates(live, len(members))
        rows = torch.arange(len(examples)).split([sum(sizes) for sizes in lengths])
        steps = [
            Step(
                rows=rows[k],
                weights=torch.ones(len(rows[k])),
                lrs=rates[k],
                seed=int(torch.randint(2**62, (), generator=self._seeds)),
                micro_batch=options.micro_batch or 0,
                cuts=tuple(accumulate(sizes))[:-1],
                scale=self._scale(len(sizes)),
            )
            for k, sizes in enumerate(lengths)
        ]
        judged = judge.judge(live.state(), steps, first_step=self._steps_decided)
        lengths = lengths[: len(judged.steps)]
        return selector.decide(judged, self._steps_decided, lengths), lengths

    def _try(self, decided: Decided) -> float | None:
        """What training on what is kept would gain on the judging half, if it is not done anyway.

        Where it is, only the loss after training on everything is taken down, for `settle`.
        """
        if self._paying is None:
            return None
        self._everything = self._judged_loss(decided.judged.final.theta, len(self.reports))
        if self._paying.pays:
            return None
        final = decided.trained(self.training.read()[1].state())
        gain = self._everything - self._judged_loss(final.theta, len(self.reports))
        self._paying.enter(gain)
        return gain

    def _sides(self, number: int) -> tuple[Sequence[Target], Sequence[Target]]:
        """The targets that choose in a window that is scored, and those that judge it.

        Halves take turns by the window's number among the reports; without, all choose.
        """
        if not self._halves:
            return self._targets, ()
        return self._halves if number % 2 else self._halves[::-1]

    def _judged_loss(self, theta: Tensor, number: int) -> float:
        """The mean loss, at theta, of the targets that judge a window."""
        _, judging = self._sides(number)
        model, _ = self.training.read()
        return float(target_losses(model, self._objective, judging, theta).mean())

    def _part(self, batch: Any, decision: Decision) -> Any:
        if self.options.keep == WEIGHTS:
            return batch, torch.from_numpy(decision.weights).float()
        return take(batch, torch.from_numpy(np.flatnonzero(decision.kept)))

    def _enter(self, batches: Sequence[Any], decisions: Sequence[Decision]) -> None:
        """Put a window's candidates in the log."""
        assert self.options.log is not None
        names = [target.name for target in self._targets]
        self._log = self._log or AuditLog(self.options.log, names)
        self._log.candidates(
            {
                "window": np.full(len(decision.weights), len(self.reports)),
                "step": np.full(len(decision.weights), self._steps_decided + k // self.accumulate),
                "batch": np.full(len(decision.weights), k % self.accumulate),
                "position": np.arange(len(decision.weights)),
                "row": self._rows(batch),
                "influence": decision.influences.mean(dim=0).numpy(),
                "value": decision.values,
                "weight": decision.weights,
                "kept": decision.kept,
            }
            | {
                f"influence/{name}": part.numpy()
                for name, part in zip(names, decision.influences, strict=True)
            }
            for k, (batch, decision) in enumerate(zip(batches, decisions, strict=False))
        )

    def _rows(self, batch: Any) -> Array | list[None]:
        """The positions in the dataset that a batch says its examples have."""
        row = self.options.row
        if row is None:
            return [None] * batch_length(batch)
        if isinstance(row, str) and not (isinstance(batch, Mapping) and row in batch):
            raise DataError(
                f"row is {row!r}, but a batch of type {type(batch).__name__} has no such key."
            )
        rows = _as_array(batch[row] if isinstance(row, str) else row(batch), batch, "row")
        if rows.dtype.kind not in "iu":
            raise DataError(
                f"row must give integers, positions in the dataset, but got {rows.dtype}."
            )
        return rows

    def _record(self, realised: float | None) -> None:
        """Put the last window itself in the log and send it to a tracker, once."""
        if self._unsettled is None:
            return
        report, self._unsettled = self.reports[-1], None
        log_metrics(self._trackers, "window", report.metrics(), report.first_step)
        if self._log is not None:
            self._log.window(
                window=len(self.reports) - 1,
                horizon=report.horizon,
                steps=report.steps,
                target_loss=report.target_loss,
                predicted=report.predicted,
                realised=realised,
                seconds=report.seconds,
            )


def _decisions(decided: Decided, k: int, lengths: Sequence[int]) -> list[Decision]:
    """What becomes of every batch of step k."""
    assert decided.judged.scores is not None
    ends = np.cumsum(lengths)[:-1]
    influences = decided.judged.scores.influences[k].split([*lengths], dim=1)
    values = np.split(decided.judged.values[k], ends)
    weights = np.split(decided.weights[k], ends)
    return [Decision(*parts) for parts in zip(influences, values, weights, strict=True)]


def _whole(batch: Any, targets: int) -> Decision:
    """Nothing dropped of a batch that was not scored."""
    count = batch_length(batch)
    unknown = torch.full((targets, count), torch.nan, dtype=torch.float64)
    return Decision(unknown, np.full(count, np.nan), np.ones(count))


def _of_every_row(
    read: str | Callable[[Any], Any] | None, batches: Sequence[Any], name: str
) -> Array | None:
    """What a key or a function has for every example of the batches, shape (N,)."""
    if read is None:
        return None
    values = ((batch[read] if isinstance(read, str) else read(batch)) for batch in batches)
    return np.concatenate(
        [_as_array(value, batch, name) for value, batch in zip(values, batches, strict=True)]
    )


def _as_array(values: Any, batch: Any, name: str) -> Array:
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    count = batch_length(batch)
    if array.shape != (count,):
        raise DataError(
            f"{name} must give one value per example, shape ({count},), but got {array.shape}."
        )
    return array
