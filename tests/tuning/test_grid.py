"""The grid, its prices, and the walk over it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from curate.errors import RecipeError
from curate.influence.cost import RunShape, passes, scoring_passes
from curate.recipe import Tune, check_recipe
from curate.tuning.grid import BATCH, PROBING, Grid, Pair, looked_at, make_grid

HORIZONS, RATES = (1, 4, 16, 64), (1e-4, 1e-3, 1e-2)
SHAPE = RunShape([0.5] * 64, 64, 4, targets=2, target_share=2.0)


def plan(budget: float = 1.0, **changes: object) -> Grid:
    made = Grid(HORIZONS, RATES, 64, SHAPE, Tune(budget=budget, seeds=[0, 1]), 64, 0, 1)
    return replace(made, **changes)  # type: ignore[arg-type]


def walk(plan: Grid, loss, everything=None, trusted=None) -> list[list[Pair]]:
    """Batches until there are no more, every run ending in `loss`."""
    everything = everything or {lr: abs(np.log(lr / 1e-3)) for lr in plan.learning_rates}
    values: dict[Pair, float] = {}
    while True:
        batches = plan.batches(everything, trusted or plan.pairs, values)
        missing = [pair for pair in batches[-1] if pair not in values]
        if not missing:
            return batches
        values |= {pair: loss(pair) for pair in missing}


def test_prices_are_those_of_the_work() -> None:
    """4 rounds of scoring, the targets once a window and round, the commit, two retrainings."""
    own = plan()
    for horizon in HORIZONS:
        scored = passes(replace(SHAPE, horizon=horizon)).total
        assert own.run_passes(horizon) == pytest.approx(scored + 2 * 64)
    assert own.run_passes(64) == pytest.approx(
        4 * (64 + 63 * 2 * 1.3 + 1 + 2 * 0.3 + 2) + 4 + 2 * 2 * 8 + 2 * 64  # nothing to commit
    )
    exact = plan(shape=replace(SHAPE, exact_jump=True))
    assert exact.run_passes(64) - own.run_passes(64) == pytest.approx(4 * 64 * 5)
    looks = [(1, 6), (4, 2), (16, 1), (64, 1)]  # steps of a window, and windows: a tenth of the run
    scoring = sum(scoring_passes(SHAPE, steps) * windows for steps, windows in looks)
    assert own.pilot_passes() == pytest.approx(64 + scoring * (1 + PROBING))
    assert own.grid_passes() == pytest.approx(3 * sum(own.run_passes(k) for k in HORIZONS))
    assert plan(0.3).left() == pytest.approx(0.3 * own.grid_passes() - 3 * own.pilot_passes())


@pytest.mark.parametrize("steps", [1, 5, 64, 100])
@pytest.mark.parametrize("coverage", [0.05, 0.3, 0.9])
def test_pilots_look_at_windows_of_the_run_spread_evenly(steps: int, coverage: float) -> None:
    for horizon in {1, 3, steps // 2 or 1, steps}:
        windows = looked_at(steps, horizon, coverage)
        whole = -(-steps // horizon)
        assert len(windows) == max(1, round(coverage * whole))
        assert all(
            w.start % horizon == 0 and w.stop == min(w.start + horizon, steps) for w in windows
        )
        gaps = np.diff([w.start // horizon for w in windows])
        assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_the_walk_starts_in_the_middle_of_what_can_be_trusted_at_the_best_learning_rate() -> None:
    everything = {1e-4: 3.0, 1e-3: 1.0, 1e-2: 0.5}
    (first, *_) = walk(plan(), lambda _: 1.0, everything)
    assert first == [Pair(16, 1e-2)]
    trusted = [pair for pair in plan().pairs if pair.learning_rate < 1e-2 and pair.horizon < 64]
    (first, *_) = walk(plan(), lambda _: 1.0, everything, trusted)
    assert first == [Pair(4, 1e-3)]


@pytest.mark.parametrize("bottom", [Pair(k, lr) for k in HORIZONS for lr in RATES])
def test_it_finds_the_bottom_of_a_valley_in_a_part_of_the_grid(bottom: Pair) -> None:
    """Whichever pair is best, if the loss rises from it: in at most 8 of 12 runs."""

    def loss(pair: Pair) -> float:
        return float(
            3 * abs(np.log10(pair.learning_rate / bottom.learning_rate))
            + abs(np.log(pair.horizon / bottom.horizon))
        )

    everything = {lr: abs(np.log10(lr / bottom.learning_rate)) for lr in RATES}
    tried = list(itertools.chain(*walk(plan(), loss, everything)))
    assert tried.index(bottom) < 8


def test_every_pair_is_tried_once_where_the_budget_allows_it_and_only_those_trusted() -> None:
    trusted = plan().pairs[3:]
    batches = walk(plan(), lambda pair: hash(pair) % 97, None, trusted)
    assert sorted(itertools.chain(*batches)) == sorted(trusted)
    assert [len(batch) for batch in batches] == [1] + [BATCH] * ((len(trusted) - 1) // BATCH)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_the_budget_holds_pilots_included(budget: float) -> None:
    own = plan(budget)
    tried = list(itertools.chain(*walk(own, lambda pair: pair.horizon)))
    spent = 3 * own.pilot_passes() + sum(own.run_passes(pair.horizon) for pair in tried)
    assert spent <= budget * own.grid_passes()
    assert spent + 2 * max(map(own.run_passes, HORIZONS)) > budget * own.grid_passes()


def test_an_unfinished_batch_ends_the_walk_for_the_time_being() -> None:
    own, everything = plan(), {1e-4: 3.0, 1e-3: 1.0, 1e-2: 2.0}
    assert own.batches(everything, own.pairs, {}) == [[Pair(16, 1e-3)]]
    values = {Pair(16, 1e-3): 1.0}
    second = [Pair(16, 1e-2), Pair(64, 1e-3)]
    assert own.batches(everything, own.pairs, values) == [[Pair(16, 1e-3)], second]
    values[second[0]] = 5.0
    assert own.batches(everything, own.pairs, values)[1:] == [second]
    values[second[1]] = 5.0
    assert own.batches(everything, own.pairs, values)[2:] == [[Pair(4, 1e-3), Pair(16, 1e-4)]]


RAW = {
    "data": {
        "train": "x.parquet",
        "validation": {"fraction": 0.2},
        "columns": {"features": ["x"], "label": "y"},
    },
    "training": {"optimizer": {"kind": "adamw", "lr": 2e-3}},
}


@pytest.mark.parametrize(
    ("steps", "horizons"),
    [
        (1, (1,)),
        (3, (1, 3)),
        (5, (1, 5)),
        (8, (1, 2, 8)),
        (136, (1, 2, 4, 16, 32, 136)),
        (1000, (1, 4, 16, 32, 128, 1000)),
    ],
)
def test_a_grid_that_is_not_given_comes_from_the_recipe(
    steps: int, horizons: tuple[int, ...]
) -> None:
    made = make_grid(check_recipe(RAW | {"tune": {"budget": 1.0}}), steps, SHAPE)
    assert made.horizons == horizons
    assert made.learning_rates == (2e-4, 6e-4, 2e-3, 6e-3, 2e-2)


def test_rates_that_are_not_given_have_the_recipes_own_and_are_ones_it_could_have() -> None:
    def rates(lr: float) -> tuple[float, ...]:
        training = {"optimizer": {"kind": "adamw", "lr": lr}}
        raw = RAW | {"training": training, "tune": {"budget": 1.0}}
        return make_grid(check_recipe(raw), 136, SHAPE).learning_rates

    assert rates(0.0012345)[2] == 0.0012345
    assert rates(1e6) == (1e5, 3e5, 1e6)
    assert min(rates(1e-323)) > 0


def test_a_grid_that_is_given_is_put_in_order() -> None:
    tune = {"horizons": ["full", 4, 1], "learning_rates": [1e-2, 1e-3], "budget": 1.0}
    made = make_grid(check_recipe(RAW | {"tune": tune}), 10, SHAPE)
    assert made.horizons == (1, 4, 10)
    assert made.learning_rates == (1e-3, 1e-2)


@pytest.mark.parametrize("steps", [1, 3, 10, 40, 500])
def test_a_budget_that_is_not_named_pays_for_the_pilots_and_a_run(steps: int) -> None:
    made = make_grid(check_recipe(RAW), steps, SHAPE)
    dearest = max(map(made.run_passes, made.horizons))
    assert made.left() >= dearest or made.tune.budget == 1
    named = Tune().budget
    if made.tune.budget > named:  # and for no more than that, by a hundredth of the grid
        assert made.left() - dearest <= 0.01 * made.grid_passes()
        with pytest.raises(RecipeError, match=r"tune.budget: 0.25 .* raise it"):
            make_grid(check_recipe(RAW | {"tune": {"budget": named}}), steps, SHAPE)
    assert (made.tune.budget > named) == (steps < 10)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"horizons": [11]}, r"tune.horizons: 11 is longer than the run, which has 10 steps"),
        ({"budget": 0.01}, r"tune.budget: 0.01 of the grid .* which take 0\.\d\d; raise it"),
    ],
)
def test_what_cannot_be_done_is_refused(tune: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_grid(check_recipe(RAW | {"tune": tune}), 10, SHAPE)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"horizons": []}, "tune.horizons: must be a list of numbers of steps"),
        ({"horizons": [0]}, "tune.horizons: must be a list of numbers of steps"),
        ({"horizons": [2, 2]}, r"tune.horizons: must not repeat itself but got \[2, 2\]"),
        ({"learning_rates": [-1.0]}, "tune.learning_rates.0: must be greater than 0"),
        ({"learning_rates": [1e300]}, "tune.learning_rates.0: must be less than or equal to"),
        ({"learning_rates": [0.01, 0.010000001]}, "must not repeat itself within six digits"),
        ({"budget": 1.5}, "tune.budget: must be less than or equal to 1"),
        ({"validation": 1.0}, "tune.validation: must be less than 1"),
        ({"seeds": []}, r"tune.seeds: must have at least 1 item"),
        ({"mode": "adaptive"}, "tune.mode: unknown key"),
    ],
)
def test_malformed_sections_are_refused(tune: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(RAW | {"tune": tune})
