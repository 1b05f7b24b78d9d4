"""Which pairs are tried, in which order, and at what price: arithmetic, without a model.

Cost is counted in *passes*, gradients of one batch, see `curate/influence/cost.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import mean
from typing import NamedTuple

from curate.errors import RecipeError
from curate.influence.cost import RunShape, passes, scoring_passes
from curate.recipe import Recipe, Tune
from curate.recipe.optimizers import MOST_RATE

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
MOST_HORIZONS = 6
PROBING = 0.3
"""Share of a pilot's scoring that goes into following removals exactly."""
BATCH = 2
"""Runs that are started together, after the first."""


class Pair(NamedTuple):
    """What is tuned. A horizon of the run's length is what a recipe calls `full`."""

    horizon: int
    learning_rate: float

    def __str__(self) -> str:
        return f"K = {self.horizon}, lr {self.learning_rate:g}"


@dataclass(frozen=True)
class Grid:
    """The pairs and their prices, for a run of `steps` steps.

    shape: of the recipe's run, whatever its horizon: targets, rounds, jump, and what every step
    keeps while it is scored. scored: steps that are scored, unless the horizon is the whole run.
    plain: steps of training on everything besides. budgets: how many are retrained on.
    """

    horizons: tuple[int, ...]
    learning_rates: tuple[float, ...]
    steps: int
    shape: RunShape
    tune: Tune
    scored: int
    plain: int
    budgets: int

    @property
    def pairs(self) -> list[Pair]:
        """All pairs, by learning rate, then by horizon."""
        return [Pair(k, lr) for lr in self.learning_rates for k in self.horizons]

    def run_passes(self, horizon: int) -> float:
        """Passes of a selection run and its retrainings."""
        scored = self.steps if horizon == self.steps else self.scored
        shape = replace(self.shape, kept=[self.shape.kept[0]] * scored, horizon=horizon)
        retrained = self.budgets * len(self.tune.seeds) * self.steps
        return passes(shape).total + self.plain + retrained

    def pilot_passes(self) -> float:
        """Passes of one pilot: its training, and every horizon's windows scored and probed."""
        looks = sum(
            scoring_passes(self.shape, len(window))
            for horizon in self.horizons
            for window in looked_at(self.steps, horizon, self.tune.coverage)
        )
        return self.steps + looks * (1 + PROBING)

    def grid_passes(self) -> float:
        """Passes of a selection run of every pair: what the budget is a share of."""
        return len(self.pairs) * mean(self.run_passes(k) for k in self.horizons)

    def at_most(self) -> float:
        """Passes of pilots and runs at most, and of the test of the best pair."""
        tested = 2 * len(self.tune.seeds) * self.steps
        return self.tune.budget * self.grid_passes() + tested

    def left(self) -> float:
        """Passes that the budget leaves for runs."""
        pilots = len(self.learning_rates) * self.pilot_passes()
        return self.tune.budget * self.grid_passes() - pilots

    def batches(
        self,
        everything: Mapping[float, float],
        trusted: Collection[Pair],
        values: Mapping[Pair, float],
    ) -> list[list[Pair]]:
        """The pairs to run, batch after batch, as far as finished values tell.

        First the middle one of the horizons that can be trusted, at the learning rate that
        trains best on everything. Then from the best pair so far to its neighbors: the
        learning rate beside it that trains better on everything, one horizon longer, one
        shorter, the other learning rate, two longer, two shorter. When these are done, whatever
        is nearest. The loss over this grid is smooth with one valley, so a walk finds the
        bottom. Cheaper runs, in one round or on part of the data, have their valley elsewhere
        and cannot halve the field (`examples/benchmarks/RESULTS.md`).

        Args:
            everything: value of training on all rows, by learning rate; lower is better.
            trusted: the pairs that may be run.
            values: those of finished runs; lower is better.

        Returns:
            the batches that are settled: all but the last have all their values. The
            last of them ends where the budget does.
        """
        left, batches = self.left(), list[list[Pair]]()
        tried: list[Pair] = []
        while set(tried) <= values.keys():
            order = self._order(everything, trusted, values, tried)
            batch: list[Pair] = []
            for pair in order[: BATCH if tried else 1]:
                left -= self.run_passes(pair.horizon)
                if left < 0 and tried:
                    break
                batch.append(pair)
            if not batch:
                break
            batches.append(batch)
            tried += batch
        return batches

    def _order(
        self,
        everything: Mapping[float, float],
        trusted: Collection[Pair],
        values: Mapping[Pair, float],
        tried: Sequence[Pair],
    ) -> list[Pair]:
        """The pairs not tried yet, the one to run next first."""
        untried = [pair for pair in sorted(trusted) if pair not in tried]
        if not tried:
            _, best = min((everything[pair.learning_rate], pair.learning_rate) for pair in untried)
            at_best = [pair for pair in untried if pair.learning_rate == best]
            return at_best[len(at_best) // 2 :]
        rate, horizon = self._place(min(tried, key=lambda pair: (values[pair], pair)))
        losses = [inf, *(everything[lr] for lr in self.learning_rates), inf]
        side = 1 if losses[rate + 2] < losses[rate] else -1  # losses[rate + 1] is the center's
        neighbors = [(side, 0), (0, 1), (0, -1), (-side, 0), (0, 2), (0, -2)]

        def rank(pair: Pair) -> tuple[int, int, Pair]:
            """Neighbors in their order, then others by distance; a learning rate counts thrice."""
            i, k = self._place(pair)
            away = i - rate, k - horizon
            near = neighbors.index(away) if away in neighbors else len(neighbors)
            return near, 3 * abs(away[0]) + abs(away[1]), pair

        return sorted(untried, key=rank)

    def _place(self, pair: Pair) -> tuple[int, int]:
        return self.learning_rates.index(pair.learning_rate), self.horizons.index(pair.horizon)

    def describe(self) -> str:
        """What is going to be tried, in one line."""
        return (
            f"tuning {len(self.pairs)} pairs: K {', '.join(map(str, self.horizons))} x lr "
            f"{', '.join(f'{lr:g}' for lr in self.learning_rates)}; {self.steps} steps a run; "
            f"at most {self.tune.budget:.0%} of what runs of all would cost"
        )


def make_grid(
    recipe: Recipe,
    steps: int,
    shape: RunShape,
    scored: int | None = None,
    plain: int = 0,
    budgets: int = 1,
) -> Grid:
    """The grid that a recipe names, or one derived from it. Arguments: see `Grid`.

    Raises:
        RecipeError: a horizon is longer than the run, or the budget pays for nothing; one that
            is not named is as large as it has to be.
    """
    tune = recipe.tune or Tune()
    grid = Grid(
        horizons=_horizons(tune.horizons, steps),
        learning_rates=tuple(sorted(tune.learning_rates or _rates(recipe))),
        steps=steps,
        shape=shape,
        tune=tune,
        scored=scored or steps,
        plain=plain,
        budgets=budgets,
    )
    least = max(grid.run_passes(k) for k in grid.horizons)
    share = tune.budget + (least - grid.left()) / grid.grid_passes()
    if "budget" not in tune.model_fields_set:
        enough = min(1.0, ceil(100 * share) / 100)
        return replace(grid, tune=tune.model_copy(update={"budget": max(tune.budget, enough)}))
    if tune.budget < share <= 1:
        raise RecipeError(
            f"tune.budget: {tune.budget:g} of the grid of {len(grid.pairs)} pairs does not pay for "
            f"the pilots and one run, which take {share:.2f}; raise it, or lower tune.coverage."
        )
    return grid


def looked_at(steps: int, horizon: int, coverage: float) -> list[range]:
    """The windows of `horizon` steps that a pilot looks at, spread evenly over the run.

    As many as `coverage`, a share of the run's steps, has room for, but at least one.
    """
    firsts = range(0, steps, horizon)
    count = max(1, round(coverage * len(firsts)))
    chosen = (firsts[int((k + 0.5) * len(firsts) / count)] for k in range(count))
    return [range(first, min(first + horizon, steps)) for first in chosen]


def _horizons(named: Sequence[int | str] | None, steps: int) -> tuple[int, ...]:
    """Powers of two up to a quarter of the run, at most five of them, and the whole run."""
    if named is None:
        powers = [2**k for k in range(steps.bit_length()) if 4 * 2**k <= max(4, steps)]
        few = min(len(powers), MOST_HORIZONS - 1)
        spread = {powers[round(k * (len(powers) - 1) / max(1, few - 1))] for k in range(few)}
        return tuple(sorted(spread | {steps}))
    horizons = {steps if k == "full" else int(k) for k in named}
    if max(horizons) > steps:
        raise RecipeError(
            f"tune.horizons: {max(horizons)} is longer than the run, which has {steps} steps; "
            "use full for all of them."
        )
    return tuple(sorted(horizons))


def _rates(recipe: Recipe) -> list[float]:
    base = recipe.training.optimizer.lr
    rates = [base if factor == 1 else float(f"{base * factor:.3g}") for factor in FACTORS]
    return [lr for lr in dict.fromkeys(rates) if 0 < lr <= MOST_RATE]
