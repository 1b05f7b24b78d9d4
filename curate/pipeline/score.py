"""Score and choose: a job and a policy's name in, a kept set with reasons out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from curate.datasets import SourceExamples, TensorExamples
from curate.errors import NothingKeptError
from curate.influence import Scoring
from curate.influence.cost import passes
from curate.models import load_attribute
from curate.pipeline.job import Job, room_for_states
from curate.pipeline.retraining import Plain, Retraining
from curate.recipe.names import POLICIES
from curate.rules import State
from curate.runtime.large import pieces
from curate.runtime.progress import Phases
from curate.runtime.resume import Unfinished
from curate.runtime.savepoints import Savepoints
from curate.runtime.units import memory_bytes
from curate.selection import Array
from curate.selection.budget import Budget, Choice
from curate.selection.driver import Selector
from curate.selection.judge import Judge
from curate.selection.ledger import Outcome, Scores, score_table
from curate.selection.policies import (
    Combined,
    Evidence,
    Halves,
    Offer,
    Policy,
    Repeatability,
    combine,
)
from curate.selection.policies.base import Setting
from curate.trajectory import Step

MOST_TOKENS = 0.999999
"""The largest share of tokens that is a share."""


@dataclass(frozen=True)
class Chosen:
    """What a policy thought of every candidate, and what the budget made of it.

    passes: gradients of one batch that scoring takes. by_half: what scores are if only one half
    of the target has a say, or only the other, shape (2, N); None without a target. repeats: how
    far they repeat from one to the other. plain: the training on everything whose losses are
    evidence.
    """

    scores: Scores
    choice: Choice
    passes: float
    by_half: Array | None = None
    repeats: Repeatability | None = None
    plain: Plain | None = None


def budget_of(job: Job) -> Budget:
    """The recipe's budget; everything, where it is still to be found; for a sample, its share.

    Raises:
        UserError: it asks for more than there is.
    """
    keep = job.recipe.selection.keep
    if keep.auto:
        return Budget(fraction=1.0)
    budget, whole = Budget(**keep.model_dump(exclude={"auto"})), job.whole or job.data
    budget.refuse_excess(len(whole.examples), whole.tokens)
    if job.whole is not None and keep.count is not None:
        return Budget(fraction=keep.count / len(whole.examples))
    if job.whole is not None and isinstance(keep.tokens, int) and whole.tokens is not None:
        return Budget(tokens=min(keep.tokens / int(whole.tokens.sum()), MOST_TOKENS))
    return budget


def cut(job: Job, values: Array, budget: Budget | None = None) -> Choice:
    """Apply a budget, the recipe's if None, to the values of all candidates, shape (N,)."""
    return (budget or budget_of(job)).choose(values, _groups(job), job.data.tokens)


def require_kept(job: Job, values: Array, choice: Choice) -> None:
    """Raise NothingKeptError if the recipe's budget keeps none of the rows of these values."""
    if choice.kept.any():
        return
    keep, tokens, best = job.recipe.selection.keep, job.data.tokens, int(values.argmax())
    if keep.threshold is not None:
        raise NothingKeptError(
            f"selection.keep.threshold: {keep.threshold} keeps no row; the highest score is "
            f"{values[best]:.4g}."
        )
    assert tokens is not None
    raise NothingKeptError(
        f"selection.keep.tokens: {keep.tokens} keeps no row; the one that scores highest has "
        f"{tokens[best]}."
    )


def _groups(job: Job) -> Array | None:
    group_by = job.recipe.selection.group_by
    return None if group_by is None else job.data.groups(group_by)


def chosen_table(job: Job, chosen: Chosen, width: float | None = None) -> pl.DataFrame:
    """`scores.parquet` of a choice, see `score_table`; reasons name rows that no step judged.

    width: half of the interval of a score that is predicted; influences are of the sample then.
    """
    data, choice, scores = job.data, chosen.choice, chosen.scores
    if scores.influence is not None and width is None:
        unseen = [f"{why}, but not judged by any step" for why in choice.words]
        codes = choice.codes.astype(np.min_scalar_type(2 * len(unseen)))
        for part in pieces(len(codes)):
            codes[part] += (len(unseen) * (scores.seen[part] == 0)).astype(codes.dtype)
        choice = replace(choice, codes=codes, words=[*choice.words, *unseen])
    rows, targets = data.examples.rows.numpy(), [*data.validation]
    table = score_table(scores, choice, rows, targets, data.tokens)
    if width is None:
        return table
    return table.with_columns(
        pl.col("^(influence.*|error)$").fill_nan(None),
        low=pl.col("score") - width,
        high=pl.col("score") + width,
    )


def choose(
    job: Job,
    policy: str,
    phases: Phases,
    unfinished: Unfinished | None = None,
    on_outcome: Callable[[Outcome, float | None], None] | None = None,
) -> Chosen:
    """Value all candidates of a job by the named policy and apply the recipe's budget.

    Influences are taken on two halves of the target. Where one round is scored, a row's score is
    made of these and of what a training on everything says of it (`combined`).

    Args:
        unfinished: has savepoints to resume from, and takes new ones.
        on_outcome: see `Selector.run`.
    """
    selector, state, steps = selector_for(job, policy, halved=True)

    def savepoints(name: str) -> Savepoints | None:
        return None if unfinished is None else unfinished.savepoints(name)

    with phases.phase(f"score ({policy})", selector.ticks(len(steps))) as tick:
        scores = selector.run(
            state, steps, tick, savepoints=savepoints(policy), on_outcome=on_outcome
        )
    spent = passes(selector.shape(steps)).total
    if scores.halves is None:
        by_half = _by_half(job, policy, scores.score)
        return Chosen(scores, cut(job, scores.score), spent, by_half)
    if selector.judge.policy.rounds > 1:
        with phases.phase("choose"):
            repeats = combined(job, scores.halves).repeats
            choice = cut(job, scores.score)
        return Chosen(scores, choice, spent, scores.halves.means, repeats)
    with phases.phase("train on everything", job.total_steps()) as tick:
        plain = Retraining(job, tick).plain(savepoints("everything"))
    with phases.phase("choose"):
        found = combined(job, scores.halves, plain)
        choice = cut(job, found.values)
    scores = replace(scores, score=found.values)
    return Chosen(scores, choice, spent, found.by_half, found.repeats, plain)


def combined(job: Job, halves: Halves, plain: Plain | None = None) -> Combined:
    """Scores by influences on halves of the target, and by a training on everything."""
    if plain is None:
        return combine(halves, job.data.target_rows)
    return combine(
        halves,
        job.data.target_rows,
        plain.watched.evidence(),
        plain.watched.unlike(),
        wary=job.data.tokens is not None,
    )


def selector_for(
    job: Job, policy: str, *, halved: bool = False
) -> tuple[Selector, State, Sequence[Step]]:
    """The selector that goes through the recipe's run by the named policy, its start and steps.

    `halved`: whether influences are taken on the two halves of every target separately.
    """
    selection, data = job.recipe.selection, job.data
    task, rule, state = job.start(job.recipe.training.seed)
    valued = policy_for(job, policy)
    steps = job.steps(job.recipe.training.seed)
    looks = valued.needs is Evidence.INFLUENCE
    if looks:
        steps = steps[: job.scored_steps()]
    horizon = len(steps) if selection.horizon == "full" else min(selection.horizon, len(steps))
    room = room_for_states(job, state, horizon)
    exact = selection.jump == "exact"
    jump_bytes = memory_bytes(job.recipe.trajectory.gradients) if exact else None
    halved = halved and looks
    judge = Judge(
        task,
        rule,
        valued,
        data.half_targets if halved else data.targets,
        Scoring(removal=selection.removal, jump_bytes=jump_bytes),
        snapshots=room.memory,
        gradients=room.gradients,
        disk=room.disk,
        sharded=room.sharded,
        per=data.tokens if selection.per == "token" else None,
    )
    selector = Selector(
        judge,
        budget_of(job),
        horizon,
        strata=data.classes,
        groups=_groups(job),
        tokens=data.tokens,
        halves=data.half_shares() if halved else None,
        probing=selection.probing,
    )
    return selector, state, steps


def policy_for(job: Job, name: str) -> Policy:
    """The named policy, as the recipe sets it."""
    setting = Setting(
        rounds=job.recipe.selection.rounds,
        seed=job.recipe.training.seed,
        neighbors=job.recipe.selection.neighbors,
        candidates=len(job.data.examples),
        points=lambda: (*_points([job.data.examples]), *_points(job.data.validation.values())),
    )
    policy: Policy = load_attribute(POLICIES[name].path, "selection.policy").of(setting)
    return policy


def _by_half(job: Job, policy: str, score: Array) -> Array | None:
    """Scores that each half of the target would give, shape (2, N); None without a target."""
    if not job.data.validation:
        return None
    if not POLICIES[policy].validation:
        return np.stack([score, score])
    every = Offer(np.arange(len(score)), np.ones(len(score)))
    halves = [policy_for(replace(job, data=half), policy) for half in job.data.halves]
    return np.stack([half.values(every) for half in halves])


def _points(parts: Iterable[SourceExamples]) -> tuple[Array, Array]:
    """Features and labels of all examples, shapes (n, F) and (n,)."""
    features, labels = [], []
    for examples in parts:
        assert isinstance(examples, TensorExamples)
        assert examples.labels is not None
        features.append(examples.all_features().flatten(1).double().numpy())
        labels.append(examples.labels.numpy())
    return np.concatenate(features), np.concatenate(labels)
