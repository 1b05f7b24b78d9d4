"""Examples as the trainer sees them: batches of tensors, by position."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from curate.datasets.tensors import joined, parts, picked
from curate.runtime.large import AROUND, touched


class Examples(Protocol):
    """Something that batches can be taken from by position. Identity is the position."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, device: torch.device) -> Any:
        """The examples at positions `rows`, shape (n,), as tensors of first dimension n."""
        ...

    def chunks(self, size: int) -> Iterable[Tensor]:
        """All positions, in pieces of at most `size` that `batch` takes together."""
        ...

    def source_row(self, position: int) -> int:
        """Where the example at `position` stands in the source the user gave."""
        ...


@dataclass(frozen=True)
class Some(Examples):
    """Some of other examples, by their positions there, shape (n,), ascending."""

    examples: Examples
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor, device: torch.device) -> Any:
        return self.examples.batch(rows, device)

    def chunks(self, size: int) -> Iterable[Tensor]:
        for positions in self.examples.chunks(len(self.examples)):
            mine = positions[torch.isin(positions, self.rows)]
            yield from mine.split(size) if len(mine) else ()

    def source_row(self, position: int) -> int:
        return self.examples.source_row(position)


def drawn(examples: Examples, count: int, generator: torch.Generator) -> Examples:
    """At least one of some examples, `count` of them at random; all if there are no more.

    Those that batches take together are drawn from as few batches as have enough.
    """
    if count >= len(examples):
        return examples
    rows, left = list[Tensor](), list(examples.chunks(len(examples)))
    while (missing := max(count, 1) - sum(map(len, rows))) > 0:
        sizes = torch.tensor([len(part) for part in left], dtype=torch.float64)
        part = left.pop(int(sizes.multinomial(1, generator=generator)))
        rows.append(part[torch.randperm(len(part), generator=generator)[:missing]])
    return Some(examples, torch.cat(rows).sort().values)


class SourceExamples(Examples, Protocol):
    """Examples read from a source: they know their rows there, and can be divided.

    labels: the class or number of every example, shape (N,) or (N, k); None without any.
    rows: the position of every example in the source, shape (N,).
    """

    labels: Tensor | None
    rows: Tensor

    def source_row(self, position: int) -> int:
        return int(self.rows[position])

    def take(self, positions: Tensor) -> Self:
        """The examples at `positions`, shape (n,), as examples of their own."""
        ...

    def joined(self, other: Self) -> Self:
        """These examples and then those of `other`, of the same kind."""
        ...

    def contents(self) -> Iterator[bytes]:
        """The content of every example as bytes, its label aside: equal for equal ones."""
        ...

    def with_labels(self, labels: Tensor) -> Self:
        """These examples with other labels."""
        ...


def joined_labels(one: SourceExamples, other: SourceExamples) -> Tensor | None:
    """The labels of some examples and then of others; None where there are none."""
    if one.labels is None or other.labels is None:
        return None
    return joined(one.labels, other.labels)


@dataclass(frozen=True)
class Scaling:
    """features -> (features - shift) * factor, each broadcast over one example."""

    shift: Tensor
    factor: Tensor

    @classmethod
    def standardizing(cls, features: Tensor, dtype: torch.dtype) -> "Scaling":
        """To mean 0 and variance 1: per feature for (N, F), one pair for images and others.

        Bytes are numbers in 0..1. A feature that never varies becomes 0.
        """
        dims = (0,) if features.ndim == 2 else tuple(range(features.ndim))
        first = features[(0,) * len(dims)]
        count, mean, spread = 0, torch.zeros((), dtype=torch.float64), torch.tensor(0.0)
        varies = torch.tensor(False)
        for part in parts(features):  # joined as Chan, Golub and LeVeque (1983) do
            values = features[part]
            varies = varies | (values[(0,) * len(dims)] != first)
            values = (values / 255 if values.dtype == torch.uint8 else values).double()
            share = len(values) / (count + len(values))
            own, apart = values.std(dim=dims, correction=0), values.mean(dim=dims) - mean
            varies = varies | (own > 0)
            if count:
                own = (own**2 * share + (spread**2 + apart**2 * share) * (1 - share)).sqrt()
            count, mean, spread = count + len(values), mean + apart * share, own
        factor = torch.where(varies, 1 / spread.where(varies, 1.0), 0.0)
        return cls(mean.to(dtype), factor.to(dtype))


@dataclass(frozen=True)
class TensorExamples(SourceExamples):
    """Examples with features and labels as tensors, which may lie in files, see `large`.

    features: shape (N, ...); uint8 images stay bytes and become floats in 0..1 batch by batch.
    labels: shape (N,) int64 for classes, (N,) or (N, k) floats for numbers, None without labels.
    rows: the position of every example in the source, shape (N,).
    scaling: applied on the way into a batch.
    """

    features: Tensor
    labels: Tensor | None
    rows: Tensor
    dtype: torch.dtype = torch.float32
    scaling: Scaling | None = None

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, rows: Tensor, device: torch.device) -> Mapping[str, Tensor]:
        features = self.features[rows]
        touched(2 * len(rows) + features.nbytes // AROUND)  # a feature's, a label's
        features = features.to(device)
        if features.dtype == torch.uint8:
            features = features.to(self.dtype) / 255
        if self.scaling is not None:
            shift, factor = self.scaling.shift.to(device), self.scaling.factor.to(device)
            features = (features - shift) * factor
        batch = {"features": features}
        if self.labels is not None:
            batch["label"] = self.labels[rows].to(device)
        return batch

    def chunks(self, size: int) -> Iterable[Tensor]:
        ends = range(size, len(self) + size, size)
        return (torch.arange(end - size, min(end, len(self))) for end in ends)

    def all_features(self) -> Tensor:
        """The features of all examples as a batch would have them, shape (N, ...)."""
        return self.batch(torch.arange(len(self)), self.features.device)["features"]

    def contents(self) -> Iterator[bytes]:
        for part in parts(self.features):
            yield from (row.tobytes() for row in self.features[part].numpy())

    def take(self, positions: Tensor) -> "TensorExamples":
        labels = None if self.labels is None else picked(self.labels, positions)
        features, rows = picked(self.features, positions), picked(self.rows, positions)
        return replace(self, features=features, labels=labels, rows=rows)

    def joined(self, other: Self) -> "TensorExamples":
        features, rows = joined(self.features, other.features), joined(self.rows, other.rows)
        return replace(self, features=features, labels=joined_labels(self, other), rows=rows)

    def with_labels(self, labels: Tensor) -> "TensorExamples":
        return replace(self, labels=labels)

    def standardized_by(self, scaling: Scaling | None) -> "TensorExamples":
        """These examples, scaled on the way into a batch."""
        return replace(self, scaling=scaling)
