"""Texts as examples: token ids end to end in memory, padded batch by batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from curate.datasets.examples import SourceExamples, joined_labels

IGNORED = -100
CHUNK_TOKENS = 1024
"""Tokens, padding included, that go through a model together in a pass over all examples: no
more than a small step has, because the graph of a language model with 100 million parameters
takes some 1.3 MB a token, and with a billion 3 MB."""


class Encoded(NamedTuple):
    """One text as token ids.

    learned: which of them the loss is about. cut: whether tokens are missing at its end.
    """

    ids: Sequence[int]
    learned: Sequence[bool]
    cut: bool = False


@dataclass(frozen=True)
class TokenExamples(SourceExamples):
    """Texts held in memory as token ids, 5 bytes a token.

    tokens: ids of all texts, one after the other, int32, shape (T,).
    learned: whether the loss is about a token, shape (T,).
    starts: where each text begins in `tokens`, and T, int64, shape (N + 1,).
    labels: class of every text, int64, shape (N,); None where a text's tokens are its labels.
    rows: the position of every text in the source, shape (N,).
    cut: whether tokens were left out at the end of a text, shape (N,).
    pad: id that shorter texts of a batch are filled up with, on the right.
    """

    tokens: Tensor
    learned: Tensor
    starts: Tensor
    labels: Tensor | None
    rows: Tensor
    cut: Tensor
    pad: int = 0

    @classmethod
    def gather(cls, texts: Iterable[Encoded], labels: Tensor | None, pad: int) -> "TokenExamples":
        """Examples from encoded texts, in the order of the source."""
        tokens, learned, lengths, cut = [], [], [0], []
        for text in texts:
            tokens.append(np.asarray(text.ids, dtype=np.int32))
            learned.append(np.asarray(text.learned, dtype=bool))
            lengths.append(len(text.ids))
            cut.append(text.cut)
        return cls(
            tokens=torch.from_numpy(np.concatenate(tokens)),
            learned=torch.from_numpy(np.concatenate(learned)),
            starts=torch.tensor(lengths).cumsum(0),
            labels=labels,
            rows=torch.arange(len(cut)),
            cut=torch.tensor(cut),
            pad=pad,
        )

    def contents(self) -> Iterator[bytes]:
        tokens, starts = self.tokens.numpy(), self.starts.tolist()
        return (tokens[start:end].tobytes() for start, end in pairwise(starts))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor, device: torch.device) -> Mapping[str, Tensor]:
        starts, ends = self.starts[rows], self.starts[rows + 1]
        places = starts[:, None] + torch.arange(int((ends - starts).max()))
        inside = places < ends[:, None]
        places = places.where(inside, 0)
        ids = self.tokens[places].long()
        if self.labels is None:
            labels = ids.where(inside & self.learned[places], IGNORED)
        else:
            labels = self.labels[rows]
        ids, mask = ids.where(inside, self.pad), inside.long()
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All positions in order, at most `size` and about CHUNK_TOKENS tokens at a time."""
        first = longest = 0
        for end, length in enumerate(self.lengths().tolist()):
            wider = max(longest, length)
            if end > first and (end - first == size or wider * (end + 1 - first) > CHUNK_TOKENS):
                yield torch.arange(first, end)
                first, wider = end, length
            longest = wider
        yield torch.arange(first, len(self))

    def lengths(self) -> Tensor:
        """Tokens of every text, shape (N,)."""
        return self.starts.diff()

    def terms(self) -> Tensor:
        """Learned tokens of every text but its first, which nothing predicts, shape (N,)."""
        counted = self.learned.clone()
        counted[self.starts[:-1][self.lengths() > 0]] = False
        sums = torch.cat([torch.zeros(1, dtype=torch.int64), counted.cumsum(0)])
        return sums[self.starts].diff()

    def take(self, positions: Tensor) -> "TokenExamples":
        lengths = self.lengths()[positions]
        ends = lengths.cumsum(0)
        shift = self.starts[:-1][positions] - (ends - lengths)
        places = torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)
        return replace(
            self,
            tokens=self.tokens[places],
            learned=self.learned[places],
            starts=torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
            labels=None if self.labels is None else self.labels[positions],
            rows=self.rows[positions],
            cut=self.cut[positions],
        )

    def joined(self, other: Self) -> "TokenExamples":
        return replace(
            self,
            tokens=torch.cat([self.tokens, other.tokens]),
            learned=torch.cat([self.learned, other.learned]),
            starts=torch.cat([self.starts, self.starts[-1] + other.starts[1:]]),
            labels=joined_labels(self, other),
            rows=torch.cat([self.rows, other.rows]),
            cut=torch.cat([self.cut, other.cut]),
        )

    def with_labels(self, labels: Tensor) -> "TokenExamples":
        return replace(self, labels=labels)
