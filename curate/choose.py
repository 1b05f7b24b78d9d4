"""Score and choose: a job and a policy's name in, a kept set with reasons out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from curate.datasets import SourceExamples, TensorExamples
from curate.influence import Scoring
from curate.ledger import Outcome, Scores
from curate.policies import (
    Array,
    Budget,
    Choice,
    KNNShapley,
    LookAhead,
    Policy,
    Random,
    SmallLoss,
    shapley_values,
)
from curate.prepare import Job, memory_bytes, room_for_states
from curate.progress import Phases
from curate.rules import State
from curate.savepoints import Savepoints
from curate.select import Selector
from curate.trajectory import Step
from curate.windows import Judge


@dataclass(frozen=True)
class Chosen:
    """What a policy thought of every candidate, and what the budget made of it."""

    scores: Scores
    choice: Choice


def budget_of(job: Job) -> Budget:
    """The recipe's budget.

    Raises:
        UserError: it asks for more than there is.
    """
    budget = Budget(**job.recipe.selection.keep.model_dump())
    budget.refuse_excess(len(job.data.examples), job.data.tokens)
    return budget


def nothing_kept(job: Job, chosen: Chosen) -> str | None:
    """Why nothing was kept, in a sentence without its full stop; None if something was."""
    keep, best = job.recipe.selection.keep, int(chosen.scores.score.argmax())
    if chosen.choice.kept.any():
        return None
    if keep.threshold is not None:
        return (
            f"selection.keep.threshold: {keep.threshold} keeps no row; the highest score is "
            f"{chosen.scores.score[best]:.4g}"
        )
    assert job.data.tokens is not None
    return (
        f"selection.keep.tokens: {keep.tokens} keeps no row; the one that scores highest has "
        f"{job.data.tokens[best]}"
    )


def choose(
    job: Job, policy: str, phases: Phases, savepoints: Savepoints | None = None,
    on_outcome: Callable[[Outcome, float | None], None] | None = None,
) -> Chosen:  # fmt: skip
    """Value all candidates of a job by the named policy and apply the recipe's budget.

    `savepoints`: to go on from, and to leave behind. `on_outcome`: see `Selector.run`.
    """
    selector, state, steps = selector_for(job, policy)
    with phases.phase(f"score ({policy})", selector.ticks(len(steps))) as tick:
        scores = selector.run(state, steps, tick, savepoints=savepoints, on_outcome=on_outcome)
    return Chosen(scores, selector.choose(scores))


def selector_for(job: Job, policy: str) -> tuple[Selector, State, list[Step]]:
    """What goes through the recipe's run by the named policy, the run's start and its steps."""
    selection = job.recipe.selection
    task, rule, state = job.start(job.recipe.training.seed)
    tokens = job.data.tokens
    steps = job.steps(job.recipe.training.seed)
    horizon = len(steps) if selection.horizon == "full" else min(selection.horizon, len(steps))
    room = room_for_states(job, state, horizon)
    selector = Selector(
        judge=Judge(
            task=task,
            rule=rule,
            policy=POLICIES[policy](job),
            targets=job.data.targets,
            scoring=Scoring(
                removal=selection.removal,
                jump_bytes=memory_bytes(job.recipe.trajectory.gradients)
                if selection.jump == "exact"
                else None,
            ),
            snapshots=room.memory,
            gradients=room.gradients,
            disk=room.disk,
            sharded=room.sharded,
            strata=job.data.classes,
            tokens=tokens if selection.per == "token" else None,
        ),
        budget=budget_of(job),
        horizon=horizon,
        groups=None if selection.group_by is None else job.data.groups(selection.group_by),
        tokens=tokens,
        probing=selection.probing,
    )
    return selector, state, steps


def _knn_shapley(job: Job) -> Policy:
    points = job.data.validation.values()
    return KNNShapley(
        shapley_values(
            _features(job.data.examples),
            _ids(job.data.examples),
            np.concatenate([_features(examples) for examples in points]),
            np.concatenate([_ids(examples) for examples in points]),
            job.recipe.selection.neighbors,
        )
    )


def _ids(examples: SourceExamples) -> Array:
    assert examples.labels is not None
    ids: Array = examples.labels.numpy()
    return ids


def _features(examples: SourceExamples) -> Array:
    assert isinstance(examples, TensorExamples)
    flat: Array = examples.all_features().flatten(1).double().numpy()
    return flat


POLICIES: dict[str, Callable[[Job], Policy]] = {
    "look_ahead": lambda job: LookAhead(job.recipe.selection.rounds),
    "random": lambda job: Random(len(job.data.examples), seed=job.recipe.training.seed),
    "loss": lambda _: SmallLoss(),
    "knn_shapley": _knn_shapley,
}
