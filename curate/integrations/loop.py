"""Window by window: draw ahead, simulate, decide, hand out; the same in everybody's loop."""

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
from curate.influence import Differences, Scoring, Target, reweighting, target_losses
from curate.integrations.options import AUTO, SHARE, WEIGHTS, Options
from curate.integrations.paying import Paying, halved
from curate.integrations.training import Training
from curate.models import Objective, require_trainable
from curate.output.audit_log import AuditLog
from curate.runtime.trackers import careful
from curate.runtime.trackers.base import tell
from curate.selection.judge import Judge, Judged
from curate.selection.policies import Array, Budget, LookAhead
from curate.trajectory import Step, Task, replay


def one_mean(batches: int) -> float:
    """The scale of a loop whose gradient is the mean over a step's candidates."""
    del batches
    return 1.0


@dataclass
class WindowReport:
    """What one window came to.

    horizon: K asked for. steps: how many were decided; fewer at the end of an
    epoch. offered, kept: candidates.
    target_loss: mean over the targets where the window would end with everything kept.
    predicted: change of it that is expected of the decision, to first order in
    the steps' gradients. realised: what it was, measured when the loop has
    trained on the window and asks for the next; None until then. seconds: spent choosing.
    gain: with `keep="auto"`, the loss on target rows that did not choose after training on
    everything, less that after training on what was or would have been kept; None until known.
    """

    horizon: int
    steps: int
    offered: int
    kept: int
    target_loss: float
    predicted: float
    seconds: float
    realised: float | None = None
    gain: float | None = None

    @property
    def ratio(self) -> float | None:
        """Realised over predicted: near 1 where the linear picture holds."""
        if self.realised is None or self.predicted == 0:
            return None
        return self.realised / self.predicted

    def metrics(self) -> dict[str, float | None]:
        """For a tracker: its numbers by name, what was kept as a share."""
        return {
            "target_loss": self.target_loss,
            "predicted": self.predicted,
            "realised": self.realised,
            "gain": self.gain,
            "kept": self.kept / self.offered,
            "horizon": self.horizon,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Decision:
    """What becomes of one batch.

    influences: shape (Q, n), all weights 1. values: what was ranked, shape (n,).
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


class WindowChooser:
    """Chooses for a loop that trains with `training`, windows of steps of batches at a time."""

    def __init__(
        self, training: Training, objective: Objective, targets: Sequence[Target],
        options: Options, accumulate: int = 1, scale: Callable[[int], float] = one_mean,
    ) -> None:  # fmt: skip
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
        self._untold: WindowReport | None = None
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
                    self._tell(self._untold)
                    raise

    def choose(self, window: Sequence[Any]) -> list[Decision]:
        """Decide on a window, given as its batches in order.

        With `keep="auto"` it may be that nothing is dropped, and that nothing was scored: there is
        no report of such a window then.
        """
        if self._paying and not self._paying.due():
            self._steps_decided += -(-len(window) // self.accumulate)
            return [_whole(batch, len(self._targets)) for batch in window]
        begin = time.monotonic()
        members = [
            window[first : first + self.accumulate]
            for first in range(0, len(window), self.accumulate)
        ]
        with self.training.simulated():
            judged = self._judge(window, members)
            decisions, predicted = [], 0.0
            for k, batches in enumerate(members):
                own = self._decide(judged, k, batches)
                decisions.append(own)
                predicted += self._predict(judged, k, own)
            gain = self._try(window, judged, decisions)
        assert judged.scores is not None
        flat = list(chain.from_iterable(decisions))
        if self._paying and not self._paying.pays:
            flat = [replace(own, weights=np.ones(len(own.weights))) for own in flat]
            predicted = 0.0
        report = WindowReport(
            horizon=self.options.horizon,
            steps=len(decisions),
            offered=sum(len(decision.weights) for decision in flat),
            kept=sum(int(decision.kept.sum()) for decision in flat),
            target_loss=float(judged.scores.target_losses.mean()),
            predicted=predicted,
            seconds=time.monotonic() - begin,
            gain=gain,
        )
        cut = iter(flat)
        self._enter(members, [list(islice(cut, len(batches))) for batches in members])
        self.reports.append(report)
        self._untold = report
        self._steps_decided += len(decisions)
        return flat

    def settle(self) -> None:
        """Measure what the last window, now trained on, did."""
        report = self._untold
        if report is None:
            return
        choosing, judging = self._sides(len(self.reports) - 1)
        with self.training.simulated():
            model, _ = self.training.read()
            losses = target_losses(model, self._objective, choosing, model.read())
            if self._paying and report.gain is None:
                after = target_losses(model, self._objective, judging, model.read())
                report.gain = self._everything - float(after.mean())
                self._paying.enter(report.gain)
        report.realised = float(losses.mean()) - report.target_loss
        self._tell(report)

    def _sides(self, number: int) -> tuple[Sequence[Target], Sequence[Target]]:
        """The targets that choose in a window that is scored, and those that judge it.

        Halves take turns by the window's number among the reports; without, all choose.
        """
        if not self._halves:
            return self._targets, ()
        return self._halves if number % 2 else self._halves[::-1]

    def _try(
        self, window: Sequence[Any], judged: Judged, decisions: Sequence[Sequence[Decision]]
    ) -> float | None:
        """What training on what is kept would gain on the judging half, if it is not done anyway.

        Where it is, only the loss after training on everything is taken down, for `settle`.
        """
        if self._paying is None:
            return None
        model, live = self.training.read()
        _, judging = self._sides(len(self.reports))
        self._everything = float(
            target_losses(model, self._objective, judging, judged.final.theta).mean()
        )
        if self._paying.pays:
            return None
        kept = [
            step.keep(torch.from_numpy(np.flatnonzero(np.concatenate([d.kept for d in own]))))
            for step, own in zip(judged.steps, decisions, strict=True)
        ]
        task = Task(model, self._objective, BatchExamples(window))
        final = replay(task, live.rule, live.state(), kept)
        after = target_losses(model, self._objective, judging, final.theta)
        gain = self._everything - float(after.mean())
        self._paying.enter(gain)
        return gain

    def _judge(self, window: Sequence[Any], members: Sequence[Sequence[Any]]) -> Judged:
        """A window's steps, trained on everything and scored by the targets whose turn it is."""
        targets, _ = self._sides(len(self.reports))
        options, examples = self.options, BatchExamples(window)
        model, live = self.training.read()
        judge = Judge(
            Task(model, self._objective, examples), live.rule, self._policy, targets,
            Scoring(removal=options.removal), options.snapshots, options.snapshots,
            differences=self._differences,
        )  # fmt: skip
        rates = self.training.learning_rates(live, len(members))
        lengths = [[batch_length(batch) for batch in batches] for batches in members]
        rows = torch.arange(len(examples)).split([sum(own) for own in lengths])
        steps = [
            Step(
                rows=own_rows,
                weights=torch.ones(len(own_rows)),
                lrs=lrs,
                seed=int(torch.randint(2**62, (), generator=self._seeds)),
                micro_batch=options.micro_batch or 0,
                cuts=tuple(accumulate(own))[:-1],
                scale=self._scale(len(own)),
            )
            for own_rows, own, lrs in zip(rows, lengths, rates, strict=True)
        ]
        return judge.judge(live.state(), steps, first_step=self._steps_decided)

    def _decide(self, judged: Judged, k: int, batches: Sequence[Any]) -> list[Decision]:
        """The decision on each batch of step k."""
        assert judged.scores is not None
        lengths = [batch_length(batch) for batch in batches]
        values = np.split(judged.values[k], np.cumsum(lengths)[:-1])
        influences = judged.scores.influences[k].split(lengths, dim=1)
        if self._budget is None:
            total = judged.values[k].mean()
            weights = [own / total for own in values]
        else:
            weights = [
                self._budget.choose(own, self._groups(batch)).kept.astype(float)
                for own, batch in zip(values, batches, strict=True)
            ]
        return [Decision(*parts) for parts in zip(influences, values, weights, strict=True)]

    def _predict(self, judged: Judged, k: int, decisions: Sequence[Decision]) -> float:
        assert judged.scores is not None
        after = torch.from_numpy(np.concatenate([decision.weights for decision in decisions]))
        change = reweighting(
            judged.scores.derivatives[k], judged.scores.sizes[k], torch.ones_like(after), after
        )
        return float(change.mean())

    def _groups(self, batch: Any) -> Array | None:
        group_by = self.options.group_by
        return None if group_by is None else _as_array(group_by(batch), batch, "group_by")

    def _part(self, batch: Any, decision: Decision) -> Any:
        if self.options.keep == WEIGHTS:
            return batch, torch.from_numpy(decision.weights).float()
        return take(batch, torch.from_numpy(np.flatnonzero(decision.kept)))

    def _enter(
        self, members: Sequence[Sequence[Any]], decisions: Sequence[Sequence[Decision]]
    ) -> None:
        """Put a window's candidates in the log, if there is one."""
        if self.options.log is None:
            return
        names = [target.name for target in self._targets]
        self._log = self._log or AuditLog(self.options.log, names)
        self._log.candidates(
            {
                "window": np.full(len(decision.weights), len(self.reports)),
                "step": np.full(len(decision.weights), self._steps_decided + k),
                "batch": np.full(len(decision.weights), number),
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
            for k, (batches, own) in enumerate(zip(members, decisions, strict=False))
            for number, (batch, decision) in enumerate(zip(batches, own, strict=True))
        )

    def _rows(self, batch: Any) -> Array | list[None]:
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

    def _tell(self, report: WindowReport | None) -> None:
        """Put a window itself in the log and tell a tracker of it, now or never."""
        if report is not None and self._trackers:
            first = self._steps_decided - report.steps
            tell(self._trackers, "window", report.metrics(), first)
        if report is not None and self._log is not None:
            self._log.window(
                window=len(self.reports) - 1, horizon=report.horizon, steps=report.steps,
                target_loss=report.target_loss, predicted=report.predicted,
                realised=report.realised, seconds=report.seconds,
            )  # fmt: skip
        self._untold = None


def _whole(batch: Any, targets: int) -> Decision:
    """Nothing dropped of a batch that was not scored."""
    count = batch_length(batch)
    unknown = torch.full((targets, count), torch.nan, dtype=torch.float64)
    return Decision(unknown, np.full(count, np.nan), np.ones(count))


def _as_array(values: Any, batch: Any, name: str) -> Array:
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    count = batch_length(batch)
    if array.shape != (count,):
        raise DataError(
            f"{name} must give one value per example, shape ({count},), but got {array.shape}."
        )
    return array
