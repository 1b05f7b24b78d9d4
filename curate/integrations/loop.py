"""Look-ahead in somebody's own loop: draw a window ahead, judge, decide, hand the batches out."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.datasets import batch_length, take
from curate.errors import OptionError
from curate.influence import Differences, Scoring, Target, target_losses
from curate.integrations.drawing import Drawing
from curate.integrations.evening import Evening, factors, handed
from curate.integrations.logged import Logged
from curate.integrations.options import AUTO, SHARE, WEIGHTS, Options
from curate.integrations.paying import Paying, halved
from curate.integrations.place import Place
from curate.integrations.rehearsal import Rehearsal
from curate.integrations.resuming import (
    found_again,
    made,
    measurable,
    require_made,
    rest_of,
    take_up,
)
from curate.integrations.spread import (
    Offered,
    common,
    offered,
    require_same_state,
    require_same_targets,
)
from curate.integrations.training import LiveTraining
from curate.integrations.window import (
    Decision,
    Window,
    WindowReport,
    decisions_of,
    kept_whole,
    whole_window,
)
from curate.integrations.witness import Witness
from curate.models import FlatModel, Objective, require_trainable
from curate.runtime.files import Tree
from curate.runtime.trackers import careful
from curate.runtime.trackers.base import log_metrics
from curate.selection import Array
from curate.selection.budget import Budget
from curate.selection.driver import Decided, Selector
from curate.selection.effort import Pace
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead
from curate.trajectory import Task


def one_mean(batches: int) -> float:
    """The scale of a loop whose gradient is the mean over a step's candidates."""
    del batches
    return 1.0


class LiveLoop:
    """Chooses for a loop that trains with `training`, windows of steps of batches at a time.

    Where several processes train together, each with batches of its own, the batches that they
    draw at the same time are one: it is scored, and cut to its budget, as one process with all of
    it would. Each scores its own rows and an even share of all targets. All make the same calls.
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
        self.dataset: Any = None  # that batches are of, where it is not that of their loader
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
        # loss of the judging half where training on all of the window handed out last leads
        self._everything: float | None = None
        self._pace = Pace(options.scored_effort, len(self._sides), options.seed)
        self._policy, self._differences = LookAhead(options.scored_rounds), Differences()
        share = SHARE if self._paying else options.keep
        self._budget = None if isinstance(share, str) else Budget(float(share))
        self._seeds = torch.Generator().manual_seed(options.seed)
        first = training.ranks.rank == 0  # who speaks for all
        own = options if first else replace(options, log=None, tracker=None)
        self._logged = Logged(own, [target.name for target in targets])
        self._trackers = careful([] if own.tracker is None else [own.tracker])
        self._unsettled: Decided | None = None
        self._evening = Evening(training)
        self._drawing = Drawing()
        self._rehearsal = Rehearsal(training, objective)
        self._witness = Witness(training, objective)
        self._steps_decided = 0
        self._before = 0  # windows that were scored before a state was loaded
        self._window: Window | None = None
        self._place = Place()
        model, _ = training.read()
        training.learning_rates(1)
        require_same_targets(targets, training.ranks)
        with training.simulated(self._objective):
            require_trainable(model, objective, targets[0].examples)

    def stream(
        self,
        batches: Iterable[Any],
        left: Callable[[], int | None] = lambda: None,
        most: int | None = None,
    ) -> Iterator[Any]:
        """The batches, cut to what is kept, or with `keep="weights"` as pairs (batch, weights).

        They are drawn a window ahead. With everything kept they go through as they are, as do
        those that remain where another process has no more.

        left: gives how many steps the loop will still take, so that no window goes beyond; None
        where that is not known. most: batches of an epoch, None for all.
        """
        try:
            yield from self._stream(batches, left, most)
        finally:
            self._logged.flush()

    def _stream(
        self, batches: Iterable[Any], left: Callable[[], int | None], most: int | None
    ) -> Iterator[Any]:
        window = self._window if self._window and self._window.restored else None
        if window is None:
            self.settle()
        own = getattr(batches, "dataset", None)
        self._logged.dataset = own if self.dataset is None else self.dataset
        rest = window.ahead if window else 0
        source, first = self._place.begin(batches, most, rest, self._drawing.batches)
        if window:
            take_up(window, first, self.options.row)
            yield from self._hand(window)
        beyond: Sequence[Any] | None = () if self.options.keep == 1 else None
        while beyond is None:
            window, beyond = self._next(source, left)
            yield from self._hand(window)
        self.settle()
        yield from self._hand(whole_window(beyond))
        for batch in source:
            self._place.hand()
            yield (
                batch if self.options.keep == 1 else self._part(batch, np.ones(batch_length(batch)))
            )
        self._window = None
        self._place.end()

    def _next(
        self, source: Iterator[Any], left: Callable[[], int | None]
    ) -> tuple[Window, Sequence[Any] | None]:
        """Draw a window and decide on it.

        Returns:
            It, and what was drawn beyond once no other follows: where some process has no more.
        """
        self.settle()
        steps = left()
        horizon = self.options.horizon if steps is None else min(self.options.horizon, steps)
        count = max(horizon, 1) * self.accumulate
        self._place.mark(count)
        drawn = self._drawing.batches(source, count)
        self._place.drawn(len(drawn), count)
        batches, beyond = common(drawn, self.accumulate, self.training.ranks)
        if not batches:
            return whole_window(batches), beyond
        decisions = self.choose(batches)
        weights, factors = [d.weights for d in decisions], [d.factor for d in decisions]
        self._window = Window(batches, weights, factors, self._unsettled)
        return self._window, beyond

    def _hand(self, window: Window) -> Iterator[Any]:
        """A window's batches, as the loop is to train on them."""
        try:
            while window.ahead:
                handed = window.handed
                if handed % self.accumulate == 0:
                    if window.watched and self._unsettled:
                        self._witness.go_on(self._unsettled, handed // self.accumulate)
                    self._evening.begin(window.factors[handed : handed + self.accumulate])
                window.handed += 1
                self._place.hand()
                self._witness.hand()
                yield self._part(window.batches[handed], window.weights[handed])
        except GeneratorExit:
            self._witness.stop()
            self._evening.stop()
            if window.ahead:  # the loop was left before the window's end
                self._record()
            raise

    def choose(self, batches: Sequence[Any]) -> list[Decision]:
        """Decide on a window, given as its batches in order.

        With `keep="auto"` a window may go through whole and unscored, and one in which all
        learning rates are 0, as a warm-up begins, does, and the first ten steps of an optimizer
        where exact influences cost too much (`Pace`): it has no report then.
        """
        sizes = [batch_length(batch) for batch in batches]
        steps = -(-len(batches) // self.accumulate)
        rates = self.training.learning_rates(steps)
        moves = any(rate for step in rates for rate in step)
        if self._abstains(sizes) or (self._paying and not self._paying.due()) or not moves:
            self._steps_decided += steps
            return [kept_whole(size, len(self._targets)) for size in sizes]
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
        weighed = self._budget is None
        even = np.concatenate(factors(self.training, spread, decided, weighed=weighed))
        seconds = time.monotonic() - begin
        report = WindowReport(**outcome, horizon=self.options.horizon, seconds=seconds, gain=gain)
        self._enter(window, decided)
        self.reports.append(report)
        self._unsettled = decided
        self._steps_decided += len(decided.weights)
        decisions = zip(decisions_of(decided, spread.own_positions()), even, strict=True)
        if weighed:
            return [replace(d, weights=d.weights * factor) for d, factor in decisions]
        return [replace(d, factor=float(factor)) for d, factor in decisions]

    def _abstains(self, sizes: Sequence[int]) -> bool:
        """See `Pace`."""
        if not self._pace.early(self._steps_decided):
            return False
        count = self.training.ranks.sum(torch.tensor(float(sum(sizes))))
        price = sum(len(target.examples) for target in self._sides[0][0]) / float(count)
        return self._pace.abstains(price, self.training.read()[1].step)

    def finish(self) -> None:
        """Measure what the last window did, and write what is to be logged."""
        self.settle()
        self._logged.flush()

    def settle(self) -> None:
        """Measure what the last window, now trained on, did."""
        self._witness.check()
        self._evening.stop()
        window = self._window
        if self._unsettled is None or (window and window.restored):
            return
        if window and window.ahead and window.decided is self._unsettled:
            self._record()  # the loop was left before the window's end
            return
        report = self.reports[-1]
        with self.training.simulated(self._objective):
            model = self._unsettled.judge.task.model  # what trains may be another part by now
            theta = model.read()
            report.realized = self._unsettled.realized(theta)
            if self._paying and report.gain is None and self._everything is not None:
                report.gain = self._everything - self._judged_loss(model, theta)
                self._paying.enter(report.gain)
        self._record()

    def state_dict(self) -> Tree:
        """See `LookAheadLoader.state_dict`."""
        window, autocast = self._window, self.training.autocast
        ahead = window.ahead if window else 0
        decided = self._unsettled or (window.decided if window and ahead else None)
        there = decided.judged.scores if decided and decided.judged.final else None
        return {
            "made": self._made(),
            "seeds": self._seeds.get_state(),
            "steps": self._steps_decided,
            "windows": self._windows,
            "report": asdict(self.reports[-1]) if decided else None,
            "losses": there.target_losses.cpu() if there else None,
            "everything": self._everything,
            "paying": self._paying and self._paying.saved(),
            "pace": self._pace.saved(),
            "differences": self._differences.saved(),
            "rehearsal": self._rehearsal.saved(),
            "autocast": autocast and str(autocast).removeprefix("torch."),
            "rest": rest_of(window, self.options.row),
            "place": self._place.saved(ahead=ahead > 0),
            "log": self._logged.saved(self._windows, settled=self._windows - bool(decided)),
        }

    def load_state_dict(self, state: Tree) -> None:
        """See `LookAheadLoader.load_state_dict`."""
        require_made(state, self._made())
        self._seeds.set_state(state["seeds"].cpu())
        self._steps_decided, self._everything = state["steps"], state["everything"]
        if self._paying:
            self._paying.restore(state["paying"])
        self._pace.restore(state["pace"], self.training.device)
        self._differences.restore(state["differences"])
        self._rehearsal.restore(state["rehearsal"])
        if state["autocast"] is not None:
            self.training.autocast = getattr(torch, state["autocast"])
        self._place.restore(state["place"])
        self._logged.restore(state["log"])
        self.reports, self._unsettled = [], None
        self._before, report = state["windows"], state["report"]
        if report is not None:
            self._before -= 1
            choosing, self._judging = self._sides[self._before % len(self._sides)]
            model, live = self.training.read()
            task = Task(model, self._objective, choosing[0].examples, self.training.ranks)
            judge = Judge(task, live.rule, self._policy, choosing)
            losses, first = state["losses"], report["first_step"]
            self._unsettled = measurable(judge, live.state(), losses, first)
            self.reports.append(WindowReport(**report))
        self._window = found_again(state["rest"], self._unsettled)

    def _made(self) -> dict[str, Any]:
        return made(self.training, self.options, self._targets, self.accumulate)

    @property
    def _windows(self) -> int:
        """How many have been scored so far, in whatever process."""
        return self._before + len(self.reports)

    def _require_cuts(self, sizes: Sequence[int]) -> None:
        """Refuse batches that are too small for any row to be dropped."""
        budget = self._budget
        if budget is not None and all(budget.share(size) == 1 for size in sizes):
            raise OptionError(
                f"batches of {max(sizes)} cannot be cut: keep={budget.fraction} drops none of "
                "their rows; use larger batches, and accumulate fewer of them. Rows that are "
                "packed into one, without padding, count as one."
            )

    def _decide(self, window: Offered, rates: Sequence[tuple[float, ...]]) -> Decided:
        """A window, judged by the targets whose turn it is.

        rates: of all param groups, for each step.
        """
        options, spread = self.options, window.spread
        examples = window.examples
        parts = [spread.batches(k) for k in range(len(spread))]
        steps, known = spread.steps(self._seeds, options.micro_batch, self._scale), None
        if not self._rehearsal.done:
            self._require_cuts([len(batch) for batches in parts for batch in batches])
            known = self._rehearsal.take(examples, steps[0])
        model, live = self.training.read()
        steps = [
            replace(step, lrs=tuple(lrs[k] for k in live.groups))
            for step, lrs in zip(steps, rates, strict=True)
        ]
        side = self._windows % len(self._sides)
        choosing, self._judging = self._sides[side]
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
            pace=self._pace,
        )
        state = live.state()
        require_same_state(state, self.training.ranks)
        self._witness.open(state)
        decided = selector.look(
            state,
            steps,
            self._steps_decided,
            parts,
            known=known,
            exactly=self._paying is not None and self._paying.looks(self._windows),
            side=side,
        )
        self._rehearsal.note_use(model)
        return decided

    def _try(self, decided: Decided) -> float | None:
        """What training on what is kept would gain on the judging half, unless it is done anyway.

        Where it is, only the loss after training on everything is taken down, for `settle`.
        """
        final, self._everything = decided.judged.final, None
        if self._paying is None or final is None:
            return None
        model = decided.judge.task.model
        self._everything = self._judged_loss(model, final.theta)
        if self._paying.pays:
            return None
        kept = decided.trained(self.training.read()[1].state())
        gain = self._everything - self._judged_loss(model, kept.theta)
        self._paying.enter(gain)
        return gain

    def _judged_loss(self, model: FlatModel, theta: Tensor) -> float:
        """The mean loss, at theta, of the targets that judge the window."""
        ranks = self.training.ranks
        return float(target_losses(model, self._objective, self._judging, theta, ranks).mean())

    def _part(self, batch: Any, weights: Array) -> Any:
        if self.options.keep == WEIGHTS:
            return batch, torch.from_numpy(weights).float()
        return take(batch, torch.from_numpy(handed(weights > 0)))

    def _enter(self, window: Offered, decided: Decided) -> None:
        """Put the candidates of all processes in the log."""
        if not self._logged.wanted:
            return
        first, n = self._steps_decided, self.accumulate
        batches = window.spread.all_positions()
        places = [(self._windows, first + k // n, k % n) for k in range(len(batches))]
        rows = None if window.rows is None else [window.rows[at] for at in batches]
        self._logged.enter(places, rows, decisions_of(decided, batches))

    def _record(self) -> None:
        """Put the last window itself in the log and send it to a tracker, once."""
        if self._unsettled is None:
            return
        report, self._unsettled = self.reports[-1], None
        log_metrics(self._trackers, "window", report.metrics(), report.first_step)
        self._logged.record(self._windows - 1, report)
