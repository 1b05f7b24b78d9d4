"""What is choosing worth? Models trained from scratch, judged by target rows that did not choose.

The target is halved. What is chosen by one half is retrained on and judged by the other, against
training on everything: the same start, the same number of steps at most, each stopped where the
judging rows' loss is lowest, as a user would. Where the target is small and one half leaves it
open, both take their turn (cross-fitting). Losses are compared row by row, so that what all
models find hard cancels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from curate.datasets import SourceExamples
from curate.pipeline.candidates import Candidates
from curate.pipeline.retraining import SMALL, Measured, Retraining
from curate.selection import Array
from curate.selection.budget import Budget

FIRST, LEAST, MORE, MOST = 0.1, 0.05, 1.7, 0.7
"""Share that the first budget drops where no guess is at hand; the smallest guess that is taken;
how many times more every next budget drops; the most."""
SURE = 1.96
"""Standard errors on either side of a 95 % interval."""

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
        """The upper end of it."""
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
    trainings took, that on everything included; limit: that one takes at most.
    """

    answer: Answer
    share: float | None
    chosen: Compared
    tried: list[Compared]
    against: list[Compared]
    judging: int
    target_rows: int
    steps: int
    limit: int

    def row(self) -> dict[str, Any]:
        """Plain values, for provenance and `--json`."""
        names = ("answer", "share", "judging", "target_rows", "steps", "limit")
        return {name: getattr(self, name) for name in names} | {
            "chosen": self.chosen.row(),
            "tried": [own.row() for own in self.tried],
            "against": [own.row() for own in self.against],
        }


@dataclass
class Judge:
    """Retrains, and compares with training on everything.

    by_half: what is chosen by, made from one half of the target alone and from the other, shape
    (2, N). choose: the rows kept by such scores under a budget; None is the recipe's.
    everything: what training on everything came to, by jury.
    """

    retraining: Retraining
    by_half: Array
    choose: Choose
    everything: list[Measured]

    def __post_init__(self) -> None:
        self.job = self.retraining.job
        self.juries = self.retraining.juries

    def weigh(self, unlike: float = 0.0) -> Worth:
        """Find a budget where the recipe leaves it open, and say what it is worth.

        `unlike`: a guess at the share of candidates that should go, 0 for none.

        Raises:
            NonFiniteError: a retraining ends in a loss that is no number.
        """
        auto = bool(self.job.recipe.selection.keep.auto)
        tried = self._search(unlike) if auto else [self.kept(None)]
        share, chosen = self._one_standard_error(tried) if auto else (None, tried[0])
        rows = len(self.job.data.examples)
        against = [self._compare("everything", rows, self.everything)]
        if share != 1:
            against += self._others(None if share is None else Budget(fraction=share))
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
        )

    def kept(self, share: float | None) -> Compared:
        """Training on what is kept under a budget: a share of the candidates, or the recipe's.

        The second half of the target judges, too, where the first leaves it open.
        """
        budget = None if share is None else Budget(fraction=share)
        found, rows = list[Measured](), list[int]()
        for jury in self.juries:
            kept = self.choose(self.by_half[1 - jury], budget)
            rows.append(int(kept.sum()))
            found += self.retraining.on(self.job.data.examples, np.flatnonzero(kept), [jury])
            compared = self._compare("kept", round(float(np.mean(rows))), found, share)
            if abs(compared.gain) > SURE * compared.error:
                break
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
        while tried[-1].gain > max((own.gain for own in tried[:-1]), default=0.0):
            drop *= MORE
            if drop > MOST:
                break
            tried.append(self.kept(1 - drop))
        return tried

    def _one_standard_error(self, tried: Sequence[Compared]) -> tuple[float, Compared]:
        """The largest share that is no more than a standard error worse than the best.

        Everything is among them, and wins where the best gains less than its standard error.
        """
        best = max(tried, key=lambda own: own.gain)
        if best.gain <= best.error:
            return 1.0, best
        close = [own for own in tried if best.gain - own.gain <= best.error]
        chosen = max(close, key=lambda own: own.share or 0.0)
        assert chosen.share is not None
        return chosen.share, chosen

    def _others(self, budget: Budget | None) -> list[Compared]:
        """What a skeptic would try instead of what such a budget keeps.

        What has target rows in it has those of the half that the first jury is not.
        """
        data, jury = self.job.data, self.juries[0]
        kept = self.choose(self.by_half[1 - jury], budget)
        alike = np.flatnonzero(_random_like(kept, _strata(data), self.job.recipe.data.seed))
        random = self.retraining.on(data.examples, alike, self.juries)
        joined = reduce(_join, self.retraining.parts[1 - jury].validation.values(), data.examples)
        rows, count = np.arange(len(joined)), len(data.examples)
        alone = self.retraining.on(joined, rows[count:], [jury])
        both = self.retraining.on(joined, rows, [jury])
        return [
            self._compare("random", len(alike), random),
            self._compare("target alone", len(joined) - count, alone),
            self._compare("everything and target", len(joined), both),
        ]

    def _compare(
        self, name: str, rows: int, found: Sequence[Measured], share: float | None = None
    ) -> Compared:
        """One way to train beside training on everything, on the same rows.

        `found`: by the first of the juries, or by all of them.
        """
        gains = np.concatenate(
            [
                own.shares * (base.losses - own.losses) / len(found)
                for own, base in zip(found, self.everything, strict=False)
            ]
        )
        return Compared(
            name=name,
            rows=rows,
            share=share,
            loss=float(np.mean([own.loss for own in found])),
            last=float(np.mean([own.last for own in found])),
            metrics={
                key: float(np.mean([own.metrics[key] for own in found])) for key in found[0].metrics
            },
            gain=float(gains.sum()),
            error=_error(gains),
            judging=len(gains),
        )


def trainings(auto: bool, target_rows: int) -> float:
    """How many retrainings a verdict takes, about, if choosing pays."""
    turns = 1.5 if target_rows < SMALL else 1
    return 4 + turns * (1.5 if auto else 1)


def _answer(chosen: Compared, against: Sequence[Compared], *, kept: bool) -> Answer:
    if not kept:
        return "does not pay" if chosen.gain <= 0 else "cannot tell"
    random = next((own for own in against if own.name == "random"), None)
    if chosen.low > 0 and (random is None or chosen.gain > random.gain):
        return "pays"
    return "does not pay" if chosen.high < 0 else "cannot tell"


def _error(gains: Array) -> float:
    """Standard error of the sum of weighted gains, over the rows."""
    count = len(gains)
    return float(np.sqrt(np.square(gains - gains.mean()).sum() * count / max(1, count - 1)))


def _join(one: SourceExamples, other: SourceExamples) -> SourceExamples:
    return one.joined(other)


def _strata(data: Candidates) -> Array:
    """What a random choice is to have the same of: labels, or lengths of texts by tenths."""
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
    random, found = np.random.default_rng([seed, 1]), np.zeros(len(kept), dtype=bool)
    for stratum in np.unique(strata):
        own = np.flatnonzero(strata == stratum)
        found[random.permutation(own)[: int(kept[own].sum())]] = True
    return found
