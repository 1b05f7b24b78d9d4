"""What pairs are measured on: the recipe's data, its validation set divided in two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import numpy as np

from curate.errors import NothingKeptError, RecipeError, UserError
from curate.influence import mean_metrics
from curate.pipeline.candidates import Candidates, divide
from curate.pipeline.evaluate import retrain
from curate.pipeline.job import Job
from curate.pipeline.retraining import Retraining
from curate.pipeline.score import Chosen, choose, cut, nothing_kept, selector_for
from curate.pipeline.worth import FIRST, MORE, Judge, Worth
from curate.recipe import Keep, Recipe, Tune
from curate.runtime.progress import Phases
from curate.selection import Array
from curate.selection.budget import Budget
from curate.tuning.grid import Pair, Plan, make_plan
from curate.tuning.pilot import View, fly

BUDGETS = 2
"""How many are tried for each pair where the recipe leaves the budget open."""


@dataclass(frozen=True)
class Bench:
    """Measures pairs: selection with one part of the validation set, judgment on the other.

    job: whose validation set is the part that scores see. judging: the part that they never do.
    """

    job: Job
    judging: Candidates
    plan: Plan

    @property
    def sign(self) -> int:
        """1 where lower values are better, -1 where higher ones are."""
        return 1 if self.plan.tune.metric == "loss" else -1

    def fly(
        self, learning_rate: float, tick: Callable[[], None]
    ) -> tuple[float | None, list[View]]:
        """Pilot a learning rate.

        Returns:
            the metric of training on everything (None if it diverged), and a view per horizon.
        """
        plan = self.plan
        job = self._at(Pair(plan.horizons[-1], learning_rate))
        selector, state, _ = selector_for(job, "look_ahead")
        judge, steps = selector.judge, job.steps(job.recipe.training.seed)
        end, views = fly(judge, state, steps, plan.horizons, plan.tune.coverage, tick)
        found = [
            mean_metrics(judge.task.model, judge.task.objective, examples, end.theta)
            for examples in self.judging.validation.values()
        ]
        if not all(np.isfinite(metrics["loss"]) for metrics in found):
            return None, views
        return self._over_targets(found), views

    def run(self, pair: Pair, phases: Phases) -> tuple[Chosen, list[float]]:
        """Select with a pair, retrain on what was kept: the choice, and the metric per seed.

        Raises:
            NonFiniteError: it diverged. NothingKeptError: nothing is kept.
        """
        job, plan = self._at(pair), self.plan
        chosen = choose(job, "look_ahead", phases)
        best: tuple[Chosen, list[float]] | None = None
        for own in self._budgets(job, chosen):
            if (why_nothing := nothing_kept(job, own)) is not None:
                raise NothingKeptError(f"{pair}: {why_nothing}")
            values = []
            with phases.phase("retrain", len(plan.tune.seeds) * plan.steps) as tick:
                for seed in plan.tune.seeds:
                    found = retrain(job, own.choice.kept, seed, self.judging.validation, tick)
                    values.append(
                        self._over_targets([found[name] for name in self.judging.validation])
                    )
            if best is None or self.sign * mean(values) < self.sign * mean(best[1]):
                best = own, values
        assert best is not None
        return best

    def _budgets(self, job: Job, chosen: Chosen) -> list[Chosen]:
        """The choice under every budget that is tried: the recipe's, if it has one."""
        if not job.recipe.selection.keep.auto:
            return [chosen]
        drop = max(FIRST, 0.0 if chosen.plain is None else chosen.plain.unlike())
        shares = [1 - drop * MORE**k for k in range(BUDGETS)]
        return [
            replace(chosen, choice=cut(job, chosen.scores.score, Budget(fraction=share)))
            for share in shares
        ]

    def test(self, pair: Pair, kept: Array, tick: Callable[[], None]) -> list[dict[str, float]]:
        """Metrics on the test set after training on what was kept, one per seed."""
        job = self._at(pair)
        assert job.data.test is not None
        return [
            retrain(job, kept, seed, {"test": job.data.test}, tick)["test"]
            for seed in self.plan.tune.seeds
        ]

    def worth(
        self, pair: Pair, kept: Array, learning_rate: float, tick: Callable[[], None]
    ) -> Worth:
        """What a pair's choice is worth, by the rows that no score saw.

        learning_rate: of the training on everything that it is compared with, the best of those.
        All trainings start as the recipe says.

        Raises:
            NonFiniteError: one of them ends in a loss that is no number.
        """
        job = self._at(pair, keep=Keep(count=int(kept.sum())))
        parts = [self.judging, job.data]
        everything = Retraining(
            self._at(Pair(pair.horizon, learning_rate)), tick, parts=parts, juries=[0]
        ).on(job.data.examples, np.arange(len(kept)), [0])
        retraining = Retraining(job, tick, parts=parts, juries=[0])
        return Judge(retraining, np.zeros((2, len(kept))), lambda *_: kept, everything).weigh()

    def _over_targets(self, found: Sequence[Mapping[str, float]]) -> float:
        """The mean metric of the judging sets, by the weights of their targets."""
        return float(
            np.average(
                [metrics[self.plan.tune.metric] for metrics in found],
                weights=[self.job.data.target_weights[name] for name in self.judging.validation],
            )
        )

    def _at(self, pair: Pair, **selection_keys: Any) -> Job:
        recipe = with_pair(self.job.recipe, pair, self.plan.steps)
        selection = recipe.selection.model_copy(update={"probing": 0.0, **selection_keys})
        return replace(self.job, recipe=recipe.model_copy(update={"selection": selection}))


def set_up(job: Job) -> Bench:
    """Divide the validation set, once and for good, and plan what its recipe asks for.

    Raises:
        UserError: there is no horizon to tune, too little validation data, no such metric, or
            a grid or budget that makes no sense.
    """
    if job.recipe.selection.policy != "look_ahead":
        raise UserError(
            f"selection.policy: {job.recipe.selection.policy} has no horizon to tune; "
            "tune needs look_ahead."
        )
    tune = job.recipe.tune or Tune()
    seen, judging = divide(job.data.validation, tune.validation, job.recipe.data.seed + 1)
    data = replace(job.data, validation=seen)
    task, _, state = job.start(job.recipe.training.seed)
    first = next(iter(judging.values()))
    known = mean_metrics(task.model, task.objective, first, state.theta)
    if tune.metric not in known:
        raise RecipeError(
            f"tune.metric: {tune.metric} is none of this objective's; it has {', '.join(known)}."
        )
    selection = job.recipe.selection
    seen_by = replace(job, data=data)
    selector, _, steps = selector_for(seen_by, "look_ahead", halved=True)
    plan = make_plan(
        job.recipe,
        job.total_steps(),
        replace(selector.shape(steps), memory=len(steps), gradients=len(steps), probing=0.0),
        scored=job.scored_steps(),
        plain=job.total_steps() if selection.rounds == 1 else 0,
        budgets=BUDGETS if selection.keep.auto else 1,
    )
    return Bench(seen_by, replace(data, validation=judging), plan)


def with_pair(recipe: Recipe, pair: Pair, steps: int) -> Recipe:
    """The recipe with a horizon and a learning rate for its own, and nothing left to tune.

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
