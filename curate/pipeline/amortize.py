"""Amortized scores: look-ahead scores a sample, and a small model predicts those of other rows.

The features of a row are what a model says of it that trained on rows not of the sample, for as
many steps as the run that scores the sample: so the sample's rows are to it what all other rows
are. One of its states is early, the other its last.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.datasets import SourceExamples
from curate.models.features import LastFeatures, last_features, last_layer
from curate.pipeline.job import Job
from curate.pipeline.score import Chosen, cut
from curate.runtime.large import large, pieces
from curate.runtime.progress import Phases
from curate.selection import Array
from curate.selection.budget import Budget
from curate.selection.prediction import Predictor, Quality, learn
from curate.trajectory import Task, forward_step, ignore_step

EARLY = 3
"""The first of the two states is after one step in so many."""
AT_ONCE = 1024
"""Rows that go through the model together; fewer if they are long texts."""
FEW_CLASSES = 64
"""Most classes that are features each."""
SEED, ALL = 7, -np.finfo(np.float64).max  # a number that JSON has, and no score is below


@dataclass(frozen=True)
class Views:
    """What a model says of rows at two states of its parameters, of shape (P,).

    layer: see `last_layer`. directions: the mean gradient of the target's rows by that layer, at
    each state, shape (F,); None without a layer. classes: how many labels there are, 0 where they
    are not classes or are many.
    """

    states: Sequence[Tensor]
    layer: str | None
    directions: Sequence[Tensor | None]
    classes: int

    def blocks(self, task: Task, examples: SourceExamples, rows: Tensor) -> list[Array]:
        """Features of some rows in blocks, from few to many numbers, each of shape (n, F).

        Losses, slopes and gradients along the target's; the gradient by the last layer; what goes
        in and out of that layer, and the label. Cost: two forward passes.
        """
        batch = examples.batch(rows, task.model.device)
        seen = [
            last_features(task.model, task.objective, batch, theta, self.layer)
            for theta in self.states
        ]
        first = [x for pair in zip(seen, self.directions, strict=True) for x in _numbers(*pair)]
        last, labels = seen[-1], examples.labels
        third = [x for x in (last.inner, last.outer) if x is not None]
        if self.classes and labels is not None:
            third.append(torch.eye(self.classes)[labels[rows]])
        blocks = [torch.stack([*first, last.sizes.log1p()], dim=1)]
        blocks += [] if last.gradient is None else [last.gradient]
        blocks += [torch.cat(third, dim=1)] if third else []
        return [block.numpy() for block in blocks]


@dataclass(frozen=True)
class Amortized:
    """What was learned from a sample: enough to score any row, and how well that goes.

    cuts: from which predicted score on a row is kept, by group; under "" where there are none.
    """

    views: Views
    predictor: Predictor
    quality: Quality
    cuts: Mapping[str, float] = field(default_factory=dict)

    def scores(
        self, task: Task, examples: SourceExamples, tick: Callable[[int], None] = ignore_step
    ) -> Array:
        """Predicted scores of examples, shape (n,). Each rank predicts its share of them.

        tick: called with every number of rows that are done.
        """
        ranks, scores = task.ranks, large(len(examples), np.float64)
        for k, rows in enumerate(examples.chunks(AT_ONCE)):
            if k % ranks.size == ranks.rank:
                scores[rows.numpy()] = self.predictor(self.views.blocks(task, examples, rows))
            tick(len(rows))
        for part in pieces(len(scores) if ranks.size > 1 else 0):
            scores[part] = ranks.sum(torch.from_numpy(scores[part])).numpy()
        return scores


def _numbers(seen: LastFeatures, direction: Tensor | None) -> list[Tensor]:
    """A few numbers of every row at one state, each of shape (n,)."""
    numbers = [seen.losses, seen.losses.clamp_min(0).sqrt()]
    if seen.slope is not None and seen.gradient is not None and direction is not None:
        numbers += [seen.slope, seen.gradient @ direction]
    return numbers


def amortize(job: Job, scores: Array, share: float, tick: Callable[[], None]) -> Amortized:
    """Learn what a sample scored, to predict it for others.

    Costs as much as training on the sample, and two forward passes of its rows and the target's.

    Args:
        job: of the sample. scores: of all its rows, shape (n,). share: of them that is kept.
        tick: called `job.total_steps()` times.
    """
    taught, others = _apart(job)
    seed, total = job.recipe.training.seed, job.total_steps()
    task, rule, state = job.start(seed)
    training, states = replace(task, examples=others), list[Tensor]()
    steps = job.steps(seed, torch.arange(len(others)), total)
    for t, step in enumerate(steps, start=1):
        state, _ = forward_step(training, rule, state, step)
        if t in (-(-total // EARLY), total):
            states.append(state.theta)
        tick()
    views = _views(job, task, [states[0], states[-1]])
    examples = job.data.examples
    features, learned = list[Array](), examples.take(torch.from_numpy(taught))
    for rows in learned.chunks(AT_ONCE):
        blocks = views.blocks(task, learned, rows)
        if not features:
            sizes = [(len(taught), block.shape[1]) for block in blocks]
            features = [large(size, np.float32, job.scratch) for size in sizes]
        for whole, block in zip(features, blocks, strict=True):
            whole[rows.numpy()] = block
    return Amortized(views, *learn(features, scores[taught], share))


def extended(
    job: Job, chosen: Chosen, phases: Phases, share: float | None
) -> tuple[Chosen, Amortized]:
    """What was chosen of a sample, extended to all candidates by predicting their scores.

    Rows of the sample are ranked by their predictions, too, so that like is compared with like.
    Where all rows are of the sample, what was chosen stays.

    Args:
        job: of the sample. share: of the candidates to keep; that of the recipe's budget if None.
    """
    kept = float(chosen.choice.kept.mean()) if share is None else share
    with phases.phase("learn", job.total_steps()) as tick:
        amortized = amortize(job, chosen.scores.score, kept, tick)
    everything = job.on_whole()
    examples = everything.data.examples
    task, _, _ = job.start(job.recipe.training.seed)
    with phases.phase("predict", len(examples), "row") as tick:
        score = amortized.scores(task, examples, tick)
    choice = cut(everything, score, None if share is None else Budget(fraction=share))
    amortized = replace(amortized, cuts=_cuts(everything, score, choice.kept))
    chosen = replace(chosen, passes=chosen.passes + passes_to_predict(job))
    if job.whole is None:
        return chosen, amortized
    scores = replace(
        chosen.scores,
        score=score,
        seen=_spread(job, chosen.scores.seen, 0),
        influence=_spread(job, chosen.scores.influence, np.nan),
        influences=_spread(job, chosen.scores.influences, np.nan),
        halves=None,
        errors=_spread(job, chosen.scores.errors, np.nan),
    )
    return replace(chosen, scores=scores, choice=choice), amortized


def passes_to_predict(job: Job) -> float:
    """What it takes to learn to predict scores and to predict all, in gradients of one batch.

    job: of the sample.
    """
    count = len(job.on_whole().data.examples)
    return job.total_steps() + 2 / 3 * count / job.recipe.training.batch_size


def _cuts(job: Job, score: Array, kept: Array) -> dict[str, float]:
    """From which score on a row is kept, by group; groups of which none is have no entry.

    A threshold itself; else midway between the lowest score that is kept and the highest that is
    not, so that rounding does not matter.
    """
    selection = job.recipe.selection
    if selection.keep.threshold is not None:
        return {"": selection.keep.threshold}
    parts: Iterable[tuple[str, Any]] = [("", True)]
    if selection.group_by is not None:
        groups = job.data.groups(selection.group_by)
        parts = ((str(name), groups == name) for name in np.unique(groups))
    cuts = {}
    for name, rows in parts:
        lowest = np.min(score, where=kept & rows, initial=np.inf)
        highest = np.max(score, where=~kept & rows, initial=-np.inf)
        if lowest < np.inf:
            cuts[name] = float((lowest + highest) / 2) if highest > -np.inf else ALL
    return cuts


def _spread(job: Job, values: Any, fill: float) -> Any:
    """Values of the sample, shape (..., n), as those of all candidates, (..., N)."""
    if values is None:
        return None
    assert job.whole is not None
    count = len(job.whole.examples)
    spread = large((*values.shape[:-1], count), values.dtype, job.scratch)
    for part in pieces(count):
        spread[..., part] = fill
    spread[..., job.sample] = values
    return spread


def _apart(job: Job) -> tuple[Array, SourceExamples]:
    """Positions in the sample that are learned from, and examples that are not of them.

    The others of the whole, as many as training goes through; half of the sample if it is all.
    """
    recipe, count = job.recipe, len(job.data.examples)
    random = np.random.default_rng([recipe.data.seed, SEED])
    if job.whole is None:
        order = random.permutation(count)
        taught, others, whole = order[: count // 2], order[count // 2 :], job.data.examples
        return np.sort(taught), whole.take(torch.from_numpy(np.sort(others)))
    assert job.sample is not None
    rest = np.delete(np.arange(len(job.whole.examples)), job.sample)
    most = min(len(rest), job.total_steps() * recipe.training.batch_size)
    drawn = np.sort(random.choice(rest, most, replace=False))
    return np.arange(count), job.whole.examples.take(torch.from_numpy(drawn))


def _views(job: Job, task: Task, states: Sequence[Tensor]) -> Views:
    examples, counted = job.data.examples, job.data.classes is not None
    classes = job.data.outputs if counted and job.data.outputs <= FEW_CLASSES else 0
    batch = examples.batch(torch.arange(min(2, len(examples))), task.model.device)
    layer = last_layer(task.model, task.objective, batch)
    directions = [_direction(job, task, theta, layer) for theta in states]
    return Views(states, layer, directions, classes)


def _direction(job: Job, task: Task, theta: Tensor, layer: str | None) -> Tensor | None:
    """The mean over the targets of their gradient by the last layer, shape (F,)."""
    means, weights = list[Tensor](), list[float]()
    for target in job.data.targets:
        total, terms, about = None, 0.0, target.about(task.objective)
        for rows in target.examples.chunks(AT_ONCE):
            batch = target.examples.batch(rows, task.model.device)
            seen = last_features(task.model, about, batch, theta, layer)
            if seen.gradient is None:
                return None
            total = seen.gradient.sum(dim=0) + (0 if total is None else total)
            terms += float(seen.sizes.sum())
        assert total is not None
        means.append(total / terms)
        weights.append(target.weight)
    return torch.stack(means).T @ torch.tensor(weights) / sum(weights)
