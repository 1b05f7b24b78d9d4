"""Labels that the target would like better: of rows that a model has not trained on, its guesses.

The model is one that was retrained on what is kept and stopped where the target's loss is lowest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from curate.datasets import Examples, SourceExamples
from curate.datasets.examples import Some
from curate.models import class_losses
from curate.pipeline.candidates import Candidates
from curate.selection import Array
from curate.trajectory import Task

MOST = 10_000
"""Rows that are asked about, those of the lowest scores: more than anybody looks at."""
AT_ONCE = 1024
"""Rows that go through the model together; fewer if they are long texts."""


@dataclass(frozen=True)
class Guesses:
    """What a model says of the labels of some candidates that it has not trained on.

    rows: their positions, ascending. labels: the likeliest class of each; probabilities: of that;
    own: of the label that the row has; all of shape (n,). sure: the mean probability of the labels
    that the target's rows have. A guess is as good as those if it is as probable.
    """

    rows: Array
    labels: Array
    probabilities: Array
    own: Array
    sure: float

    def saved(self) -> dict[str, Any]:
        """Plain values, which `restored` reads."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> "Guesses":
        """The object that was `saved`."""
        arrays = {k: np.array(v) for k, v in plain.items() if isinstance(v, list)}
        return cls(**arrays, sure=plain["sure"])

    def table(self, data: Candidates) -> pl.DataFrame:
        """A line per row, by the names that cleanlab has for them; labels in words.

        label_score: the probability of the given label. is_label_issue: whether another label is
        likelier, and as probable as the target's rows' own.
        """
        examples = data.examples
        assert examples.labels is not None
        words = np.array(data.known.words)
        given = examples.labels[torch.from_numpy(self.rows)].numpy()
        issues = (self.labels != given) & (self.probabilities >= self.sure)
        columns = {
            "row": examples.rows[torch.from_numpy(self.rows)].numpy().astype(np.int64),
            "is_label_issue": issues,
            "label_score": self.own,
            "given_label": words[given],
            "predicted_label": words[self.labels],
            "probability": self.probabilities,
        }
        return pl.DataFrame(columns)


def lowest(scores: Array, kept: Array) -> Array:
    """Positions of rows that are not kept, ascending; where they are many, those that score least.

    Args:
        scores, kept: of all candidates, shape (N,).
    """
    dropped = np.flatnonzero(~kept)
    if len(dropped) > MOST:
        dropped = dropped[np.sort(np.argpartition(scores[dropped], MOST)[:MOST])]
    return dropped


def guess(
    task: Task,
    theta: Tensor,
    rows: Array,
    data: Candidates,
) -> Guesses:
    """Ask a model at theta for the labels of candidates at `rows`, which it has not trained on.

    Args:
        data: the candidates, whose labels are classes, and the target rows to compare with.
    """
    examples, labels, found = data.examples, np.zeros(len(rows), np.int64), np.zeros((2, len(rows)))
    for some, chances in _chances(task, theta, Some(examples, torch.from_numpy(rows)), data):
        places = np.searchsorted(rows, some.numpy())
        likeliest, labels[places] = chances.max(dim=1)
        found[0, places], found[1, places] = likeliest, _own(chances, examples, some)
    sure = [
        _own(chances, target, some)
        for target in data.validation.values()
        for some, chances in _chances(task, theta, target, data)
    ]
    return Guesses(rows, labels, found[0], found[1], float(torch.cat(sure).mean()))


def _chances(
    task: Task, theta: Tensor, examples: Examples, data: Candidates
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of some rows and the probabilities of all classes, shapes (n,) and (n, C)."""
    classes = data.known.classes
    assert classes is not None
    with task.model.at(theta, training=False) as module, torch.no_grad():
        for rows in examples.chunks(AT_ONCE):
            batch = examples.batch(rows, task.model.device)
            losses = class_losses(task.objective, module, batch, classes.count)
            yield rows, (-losses.double()).softmax(dim=1).cpu()


def _own(chances: Tensor, examples: SourceExamples, rows: Tensor) -> Tensor:
    """The probabilities of the labels that rows have, shape (n,)."""
    assert examples.labels is not None
    return chances.gather(1, examples.labels[rows][:, None])[:, 0]
