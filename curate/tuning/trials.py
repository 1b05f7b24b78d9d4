"""What pairs are measured on: the recipe's data, its validation set divided in two."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import numpy as np

from curate.errors import RecipeError, UserError
from curate.influence import mean_metrics
from curate.pipeline.candidates import Candidates, divide
from curate.pipeline.evaluate import retrain
from curate.pipeline.forecast import GLANCE, LONG, UNSURE, forecast, measure, seconds_of
from curate.pipeline.job import Job
from curate.pipeline.retraining import SMALL, Retraining, training_steps
from curate.pipeline.score import Chosen, choose, cut, require_kept, selector_for
from curate.pipeline.worth import FIRST, MORE, Appraiser, Worth, trainings
from curate.recipe import Keep, Recipe, Tune
from curate.recipe.names import POLICIES
from curate.runtime.progress import Phases
from curate.selection import Array
from curate.selection.budget import Budget
from curate.trajectory import forward_step
from curate.tuning.grid import Grid, Pair, make_grid
from curate.tuning.pilot import View, run_pilot

BUDGETS = 2
"""How many are tried for each pair where the recipe leaves the budget open."""


@dataclass(frozen=True)
class Trials:
    """Measures pairs: selection with one part of the validation set, judgment on the other.

    job: its validation set is the part that scores see. judging: has the part that they never do.
    """

    job: Job
    judging: Candidates
    grid: Grid

    @property
    def sign(self) -> int:
        """1 where lower values are better, -1 where higher ones are."""
        return 1 if self.grid.tune.metric == "loss" else -1

    def seconds(self) -> float:
        """About how long it all takes at most; without a closer look where that is not long."""
        plan = forecast(self.job)
        task, rule, total = plan.selector.judge.task, plan.selector.judge.rule, self.grid.at_most()
        total += trainings(False, SMALL) * training_steps(self.job)
        one = seconds_of(lambda: forward_step(task, rule, plan.state, plan.steps[0]), task, GLANCE)
        if one * total < LONG / UNSURE:
            return one * total
        times = plan.seconds(measure(plan))
        scored = sum(times[part] for part in ("score", "judge", "evaluate"))
        return total * scored / plan.passes()["total"]

    def run_pilot(
        self, learning_rate: float, tick: Callable[[], None]
    ) -> tuple[float | None, list[View]]:
        """Pilot a learning rate.

        Returns:
            the metric of training on everything (None if it diverged), and a view per horizon.
        """
        grid = self.grid
        job = self._at(Pair(grid.horizons[-1], learning_rate))
        selector, state, _ = selector_for(job, job.recipe.selection.policy)
        judge, steps = selector.judge, job.steps(job.recipe.training.seed)
        end, views = run_pilot(judge, state, steps, grid.horizons, grid.tune.coverage, tick)
        metrics = [
            mean_metrics(judge.task.model, judge.task.objective, examples, end.theta)
            for examples in self.judging.validation.values()
        ]
        diverged = not all(np.isfinite(target["loss"]) for target in metrics)
        return None if diverged else self._over_targets(metrics), views

    def run(self, pair: Pair, phases: Phases) -> tuple[Chosen, list[float]]:
        """Select with a pair, retrain on what was kept: the choice, and the metric per seed.

        Raises:
            NonFiniteError: it diverged. NothingKeptError: nothing is kept.
        """
        job, seeds = self._at(pair), self.grid.tune.seeds
        runs = []
        for chosen in self._budgets(job, choose(job, job.recipe.selection.policy, phases)):
            with phases.phase("retrain", len(seeds) * self.grid.steps) as tick:
                metrics = [
                    retrain(job, chosen.choice.kept, seed, self.judging.validation, tick)
                    for seed in seeds
                ]
            runs.append((chosen, [self._over_targets(targets.values()) for targets in metrics]))
        return min(runs, key=lambda run: self.sign * mean(run[1]))

    def _budgets(self, job: Job, chosen: Chosen) -> list[Chosen]:
        """The choice under every budget that is tried: the recipe's, if it has one.

        Else one by a guess at what should go and a smaller one; without a guess, larger ones.
        """
        if not job.recipe.selection.keep.auto:
            require_kept(job, chosen.scores.score, chosen.choice)
            return [chosen]
        guess = 0.0 if chosen.plain is None else chosen.plain.watched.unlike()
        first, more = (guess, 1 / MORE) if guess > FIRST else (FIRST, MORE)
        budgets = [Budget(fraction=1 - first * more**k) for k in range(BUDGETS)]
        score = chosen.scores.score
        return [replace(chosen, choice=cut(job, score, budget)) for budget in budgets]

    def test(self, pair: Pair, kept: Array, tick: Callable[[], None]) -> list[dict[str, float]]:
        """Metrics on the test set after training on what was kept, one dict per seed."""
        job = self._at(pair)
        assert job.data.test is not None
        return [
            retrain(job, kept, seed, {"test": job.data.test}, tick)["test"]
            for seed in self.grid.tune.seeds
        ]

    def worth(
        self, pair: Pair, kept: Array, learning_rate: float, tick: Callable[[], None]
    ) -> Worth:
        """What a pair's choice is worth, by the rows that no score saw.

        learning_rate: that of the training on everything that it is compared with, the best
        there is. All trainings start as the recipe says.

        Raises:
            NonFiniteError: a training ends in a loss that is not finite.
        """
        job = self._at(pair, keep=Keep(count=int(kept.sum())))
        parts = [self.judging, job.data]
        at_rate = self._at(Pair(pair.horizon, learning_rate))
        everything = Retraining(at_rate, tick, parts=parts, juries=[0]).on(
            job.data.examples, np.arange(len(kept)), [0]
        )
        retraining = Retraining(job, tick, parts=parts, juries=[0])
        by_half = np.zeros((2, len(kept)))
        return Appraiser(retraining, by_half, lambda *_: kept, everything).weigh()

    def _over_targets(self, metrics: Iterable[Mapping[str, float]]) -> float:
        """The mean metric of the judging sets, by the weights of their targets."""
        values = [target[self.grid.tune.metric] for target in metrics]
        weights = [self.job.data.target_weights[name] for name in self.judging.validation]
        return float(np.average(values, weights=weights))

    def _at(self, pair: Pair, **selection_keys: Any) -> Job:
        recipe = with_pair(self.job.recipe, pair, self.grid.steps)
        selection = recipe.selection.model_copy(update={"probing": 0.0, **selection_keys})
        return replace(self.job, recipe=recipe.model_copy(update={"selection": selection}))


def set_up(job: Job) -> Trials:
    """Divide the validation set, once and for good, and make the grid that the recipe asks for.

    Raises:
        UserError: there is no horizon to tune, too little validation data, no such metric, or
            a grid or budget that makes no sense.
    """
    selection, tune = job.recipe.selection, job.recipe.tune or Tune()
    if not POLICIES[selection.policy].goes_back:
        raise UserError(
            f"selection.policy: {selection.policy} has no horizon to tune; tune needs look_ahead."
        )
    seen, judging = divide(job.data.validation, tune.validation, job.recipe.data.seed + 1)
    task, _, state = job.start(job.recipe.training.seed)
    metrics = mean_metrics(task.model, task.objective, next(iter(judging.values())), state.theta)
    if tune.metric not in metrics:
        raise RecipeError(
            f"tune.metric: {tune.metric} is none of this objective's; it has {', '.join(metrics)}."
        )
    seen_by = replace(job, data=replace(job.data, validation=seen))
    selector, _, steps = selector_for(seen_by, selection.policy, halved=True)
    grid = make_grid(
        job.recipe,
        job.total_steps(),
        replace(selector.shape(steps), memory=len(steps), gradients=len(steps), probing=0.0),
        scored=job.scored_steps(),
        plain=job.total_steps() if selection.rounds == 1 else 0,
        budgets=BUDGETS if selection.keep.auto else 1,
    )
    return Trials(seen_by, replace(job.data, validation=judging), grid)


def with_pair(recipe: Recipe, pair: Pair, steps: int) -> Recipe:
    """The recipe with this horizon and learning rate, and nothing left to tune.

    The learning rates of param groups keep their ratio to the base group's.
    """
    optimizer, selection = recipe.training.optimizer, recipe.selection
    factor = pair.learning_rate / optimizer.lr
    groups = [
        group if group.lr is None else group.model_copy(update={"lr": group.lr * factor})
        for group in optimizer.groups
    ]
    optimizer = optimizer.model_copy(update={"lr": pair.learning_rate, "groups": groups})
    horizon = "full" if pair.horizon == steps else pair.horizon
    return recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update={"optimizer": optimizer}),
            "selection": selection.model_copy(update={"horizon": horizon}),
            "tune": None,
        }
    )
