"""How near is a candidate to target rows of its own label, and how far from those of others?

By what goes into the last layer of a model that was trained on everything. With u(x) the direction
from the mean over the target to x, and k(x, z) = exp((u(x) . u(z) - 1) / tau), a candidate's value
is the mean of k over the target rows that have its label, less the mean of such means over the
other labels: the witness of the kernel mean embedding, at the candidate, between the rows of one
label and the rest (Gretton et al., "A kernel two-sample test", JMLR 2012, section 2.3). Like what
KNN-Shapley values say, it needs no more than labels, and sees both those that are wrong and rows of
another kind; and it takes no sorting.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from curate.datasets import SourceExamples
from curate.influence.cost import FORWARD
from curate.models.features import last_features, last_layer
from curate.pipeline.candidates import Candidates
from curate.pipeline.job import Job
from curate.runtime.large import large, touched
from curate.selection import Array
from curate.trajectory import Task

TAU, MOST, AT_ONCE = 0.1, 2000, 1024
"""Of the kernel; rows of half of the target, about, of which there may be more; rows that go
through the model together, fewer if they are long texts."""

Entered = Callable[[SourceExamples, Tensor], Tensor]
"""Features of some examples at some positions, shape (n, F)."""


class Nearness(NamedTuple):
    """Higher for nearer.

    candidates: by each half of the target, shape (2, N). target: of the rows of each half, by the
    other, shape (M,).
    """

    candidates: Array
    target: Array


def nearness(job: Job, task: Task, theta: Tensor) -> Nearness | None:
    """By the layer of the model at theta that works last.

    None where there are no classes, where the target is about something else, and where no layer
    tells rows apart. Cost: a forward pass over all rows, and O(N min(M, MOST)).
    """
    data = job.data
    if not _compares(job):
        return None
    assert data.classes is not None
    first = data.examples.batch(torch.arange(min(2, len(data.examples))), task.model.device)
    layer = last_layer(task.model, task.objective, first)
    if layer is None:
        return None

    def entered(examples: SourceExamples, rows: Tensor) -> Tensor:
        """What goes into the layer of some examples, shape (n, F)."""
        batch = examples.batch(rows, task.model.device)
        features = last_features(task.model, task.objective, batch, theta, layer).inner
        assert features is not None
        return job.ranks.same(features)

    seen = [[*_rows(half, entered)] for half in data.halves]
    halves = [_Witness.of(own, data.outputs) for own in seen]
    target = [
        half.values(features, labels)
        for half, other in zip(halves, reversed(seen), strict=True)
        for features, labels, _ in other
    ]
    found = large((2, len(data.examples)), np.float64, job.scratch)
    for rows in data.examples.chunks(AT_ONCE):
        features, positions = entered(data.examples, rows), rows.numpy()
        labels = torch.from_numpy(data.classes[positions])
        for k, half in enumerate(halves):
            found[k, positions] = half.values(features, labels)
        touched(2 * len(rows))
    return Nearness(found, np.concatenate(target))


def nearness_passes(job: Job) -> float:
    """What it takes to look at all rows, in steps of the recipe's batches."""
    if not _compares(job):
        return 0.0
    rows = len(job.data.examples) + min(job.data.target_rows, 2 * MOST)
    return FORWARD * rows / min(job.recipe.training.batch_size, len(job.data.examples))


def _compares(job: Job) -> bool:
    """Whether candidates and targets have labels of one kind."""
    return job.data.classes is not None and job.data.goal is None


def _rows(half: Candidates, entered: Entered) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features, labels and weights of a half of the target, target by target."""
    every = -(-half.target_rows // MOST)
    for name, whole in half.validation.items():
        examples = whole.take(torch.arange(0, len(whole), every)) if every > 1 else whole
        assert examples.labels is not None
        weight = half.target_weights[name] / len(examples)
        for rows in examples.chunks(AT_ONCE):
            features = entered(examples, rows)
            yield features, examples.labels[rows], torch.full_like(features[:, 0], weight)


@dataclass(frozen=True)
class _Witness:
    """Target rows that candidates are compared with.

    center: the mean of their features, shape (F,). directions: from there to each, shape (M, F).
    shares: of every row in the mean over those of its label, shape (M, C), a row's other entries 0.
    """

    center: Tensor
    directions: Tensor
    shares: Tensor

    @classmethod
    def of(cls, rows: Sequence[tuple[Tensor, Tensor, Tensor]], classes: int) -> Self:
        """rows: their features, labels and weights."""
        features, labels, weights = map(torch.cat, zip(*rows, strict=True))
        shares = F.one_hot(labels, classes) * weights[:, None]
        shares /= shares.sum(dim=0).clamp_min(torch.finfo(shares.dtype).tiny)
        center = features.mean(dim=0)
        return cls(center, F.normalize(features - center), shares)

    def values(self, features: Tensor, labels: Tensor) -> Array:
        """Of candidates, shape (n,); 0 for one whose label no target row has.

        features: shape (n, F). labels: shape (n,).
        """
        alike = (F.normalize(features - self.center) @ self.directions.T - 1) / TAU
        means = alike.exp() @ self.shares
        own = means.gather(1, labels[:, None])[:, 0]
        there = self.shares.any(dim=0)
        others = (means.sum(dim=1) - own) / max(1, int(there.sum()) - 1)
        values: Array = (own - others).where(there[labels], 0.0).numpy()
        return values
