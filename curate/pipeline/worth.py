"""What is choosing worth? Models trained from scratch, judged by target rows that did not choose.

The target is halved. What one half chooses is retrained on and judged by the other, against
training on everything: the same start, at most as many steps, each stopped where the
judging rows' loss is lowest, as a user would. Where the target is small and one half leaves it
open, both take their turn (cross-fitting). Losses are compared row by row, so that what all
models find hard cancels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from curate.output.verdict import AS_READ
from curate.pipeline.candidates import Candidates
from curate.pipeline.label_guesses import Guesses, lowest
from curate.pipeline.retraining import SMALL, Measured, Retraining
from curate.selection import Array
from curate.selection.budget import Budget
from curate.selection.ranking import SURE

FIRST, LEAST, MORE, MOST = 0.1, 0.05, 1.7, 0.7
"""Share that the first budget drops where no guess is at hand; the smallest guess that is taken;
how many times more every next budget drops; the most."""

Answer = Literal["pays", "does not pay", "cannot tell"]
Choose = Callable[[Array, Budget | None], Array]


@dataclass(frozen=True)
class Compared:
    """One way to train, beside training on everything. Losses and gains in the unit of the loss.

    name: of the way. rows: trained on. share: of the candidates, for a budget. loss, metrics: on
    the judging rows, as stopped; last: where runs ended. gain: everything's loss less this one's,
    on the same rows; error: its standard error over the judging rows; judging: how many those are.
    """

    name: str
    rows: int
    share: float | None
    loss: float
    last: float
    metrics: dict[str, float]
    gain: float
    error: float
    judging: int

    @property
    def low(self) -> float:
        """The lower end of the gain's 95 % interval."""
        return self.gain - SURE * self.error

    @property
    def high(self) -> float:
        """The upper end of the gain's 95 % interval."""
        return self.gain + SURE * self.error

    def row(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"low": self.low, "high": self.high}


@dataclass(frozen=True)
class Worth:
    """What a selection is worth.

    answer: to whether choosing pays. share: of the candidates to keep, as found; None where
    the user said how much. chosen: the budget that the answer is about: what is kept, or, where
    that is everything, the best of those tried. tried: all of them. against: other ways to
    train, everything first. judging: rows that judged, of `target_rows`. steps: that all
    trainings took, that on everything included, and what measuring them took; limit: that one takes
    at most. guesses: of the model that was trained under the chosen budget, at the labels of rows
    that it lacks. untrained: the model that all trainings start with, where it was measured.
    """

    answer: Answer
    share: float | None
    chosen: Compared
    tried: list[Compared]
    against: list[Compared]
    judging: int
    target_rows: int
    steps: float
    limit: int
    guesses: Guesses | None = None
    untrained: Compared | None = None

    def row(self) -> dict[str, Any]:
        """Plain values, for provenance and `--json`."""
        names = ("answer", "share", "judging", "target_rows", "steps", "limit")
        return {name: getattr(self, name) for name in names} | {
            "chosen": self.chosen.row(),
            "tried": [way.row() for way in self.tried],
            "against": [way.row() for way in self.against],
            "untrained": None if self.untrained is None else self.untrained.row(),
        }


@dataclass
class Appraiser:
    """Retrains, and compares with training on everything.

    by_half: scores by one half of the target alone and by the other, shape (2, N). choose: the
    rows kept by such scores under a budget, the recipe's if None. everything: training on
    everything, as measured by each jury; before: the model that it starts with.
    """

    retraining: Retraining
    by_half: Array
    choose: Choose
    everything: list[Measured]
    before: Sequence[Measured] = ()

    def __post_init__(self) -> None:
        self.job = self.retraining.job
        self.juries = self.retraining.juries
        self.guesses: dict[float | None, Guesses | None] = {}
        self.turns: dict[float | None, int] = {}  # how many juries a budget was judged by

    def weigh(self, unlike: float = 0.0) -> Worth:
        """Find a budget where the recipe leaves it open, and say what it is worth.

        `unlike`: a guess at the share of candidates that should go, 0 for none.

        Raises:
            NonFiniteError: a retraining ends in a loss that is not finite.
        """
        auto = bool(self.job.recipe.selection.keep.auto)
        tried = self._search(unlike) if auto else [self.kept(None)]
        share, chosen = one_standard_error(tried) if auto else (None, tried[0])
        rows, turns = len(self.job.data.examples), self.turns[chosen.share]
        against = [self._compare("everything", rows, self.everything[:turns])]
        if (formerly := self.job.data.formerly) is not None:
            read = self.job.data.examples.with_labels(formerly)
            measured = self.retraining.on(read, None, self.juries[:turns])
            against.append(self._compare(AS_READ, rows, measured))
        if share != 1:
            budget = None if share is None else Budget(fraction=share)
            against += self._others(budget, self.juries[:turns])
        return Worth(
            answer=_answer(chosen, against, kept=share != 1),
            share=share,
            chosen=chosen,
            tried=tried,
            against=against,
            judging=chosen.judging,
            target_rows=self.job.data.target_rows,
            steps=self.retraining.steps + self.everything[0].steps,
            limit=self.job.total_steps(),
            guesses=self.guesses[chosen.share],
            untrained=self._compare("untrained", 0, self.before) if self.before else None,
        )

    def kept(self, share: float | None) -> Compared:
        """Training on what is kept under a budget: a share of the candidates, or the recipe's.

        The second half of the target judges, too, where the first leaves it open.
        """
        budget = None if share is None else Budget(fraction=share)
        measured, rows = list[Measured](), list[int]()
        for jury in self.juries:
            scores = self.by_half[1 - jury]
            kept = self.choose(scores, budget)
            rows.append(int(kept.sum()))
            first = self.job.data.classes is not None and not measured
            ask = lowest(scores, kept) if first else None
            train = self.retraining.on
            measured += train(self.job.data.examples, np.flatnonzero(kept), [jury], ask)
            compared = self._compare("kept", round(float(np.mean(rows))), measured, share)
            if abs(compared.gain) > SURE * compared.error:
                break
        self.guesses[share], self.turns[share] = measured[0].guesses, len(measured)
        return compared

    def _search(self, unlike: float) -> list[Compared]:
        """Budgets to choose from: one by a guess, if there is one, or more and more dropped.

        A guess that does not help is halved once. Without one, every budget that helps is
        followed by one that drops more.
        """
        guessed = unlike >= LEAST
        drop = unlike if guessed else FIRST
        tried = [self.kept(1 - drop)]
        if guessed:
            return tried if tried[0].gain > 0 else [*tried, self.kept(1 - drop / 2)]
        while tried[-1].gain > max((way.gain for way in tried[:-1]), default=0.0):
            drop *= MORE
            if drop > MOST:
                break
            tried.append(self.kept(1 - drop))
        return tried

    def _others(self, budget: Budget | None, juries: Sequence[int]) -> list[Compared]:
        """What a skeptic would try instead of what such a budget keeps, judged by the same juries.

        Where target rows are trained on, they are those of the half that is not the first jury.
        """
        data, jury = self.job.data, self.juries[0]
        kept = self.choose(self.by_half[1 - jury], budget)
        alike = np.flatnonzero(_random_like(kept, _strata(data), self.job.recipe.data.seed))
        joined = data.examples
        for target in self.retraining.parts[1 - jury].validation.values():
            joined = joined.joined(target)
        rows, count = np.arange(len(joined)), len(data.examples)
        train = self.retraining.on
        return [
            self._compare("random", len(alike), train(data.examples, alike, juries)),
            self._compare("target alone", len(rows) - count, train(joined, rows[count:], [jury])),
            self._compare("everything and target", len(rows), train(joined, rows, [jury])),
        ]

    def _compare(
        self, name: str, rows: int, measured: Sequence[Measured], share: float | None = None
    ) -> Compared:
        """One way to train beside training on everything, on the same rows.

        `measured`: by the first of the juries, or by all of them.
        """
        gains = np.concatenate(
            [
                jury.shares * (base.losses - jury.losses) / len(measured)
                for jury, base in zip(measured, self.everything, strict=False)
            ]
        )
        return Compared(
            name=name,
            rows=rows,
            share=share,
            loss=_mean(jury.loss for jury in measured),
            last=_mean(jury.last for jury in measured),
            metrics={
                key: _mean(jury.metrics[key] for jury in measured) for key in measured[0].metrics
            },
            gain=float(gains.sum()),
            error=_error(gains),
            judging=len(gains),
        )


def one_standard_error(tried: Sequence[Compared]) -> tuple[float, Compared]:
    """The largest share that is no more than a standard error worse than the best.

    Everything is among them, and wins against each that gains less than its standard error.
    """
    best = max(tried, key=lambda way: way.gain)
    if best.gain <= best.error:
        return 1.0, best
    better = [way for way in tried if way.gain > way.error]
    close = [way for way in better if best.gain - way.gain <= best.error]
    chosen = max(close, key=lambda way: way.share or 0.0)
    assert chosen.share is not None
    return chosen.share, chosen


def trainings(auto: bool, target_rows: int, *, corrected: bool = False) -> float:
    """About how many retrainings a verdict takes, if choosing pays."""
    turns = 1.5 if target_rows < SMALL else 1
    return 4 + corrected + turns * (1.5 if auto else 1)


def _answer(chosen: Compared, against: Sequence[Compared], *, kept: bool) -> Answer:
    if not kept:
        return "does not pay" if chosen.gain <= 0 else "cannot tell"
    random = next((way for way in against if way.name == "random"), None)
    if chosen.low > 0 and (random is None or chosen.gain > random.gain):
        return "pays"
    return "does not pay" if chosen.high < 0 else "cannot tell"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))


def _error(gains: Array) -> float:
    """Standard error of the sum of weighted gains, over the rows."""
    count = len(gains)
    return float(np.sqrt(np.square(gains - gains.mean()).sum() * count / max(1, count - 1)))


def _strata(data: Candidates) -> Array:
    """What a random choice should have the same of: labels, or lengths of texts by tenths."""
    if data.classes is not None:
        return data.classes
    tokens = data.tokens
    if tokens is None:
        return np.zeros(len(data.examples), dtype=np.int64)
    ranks = np.argsort(np.argsort(tokens, kind="stable"), kind="stable")
    tenths: Array = ranks * 10 // len(ranks)
    return tenths


def _random_like(kept: Array, strata: Array, seed: int) -> Array:
    """As many rows of every stratum as are kept, at random, shape (N,), bool."""
    random, chosen = np.random.default_rng([seed, 1]), np.zeros(len(kept), dtype=bool)
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        chosen[random.permutation(rows)[: int(kept[rows].sum())]] = True
    return chosen
