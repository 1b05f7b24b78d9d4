"""Texts as examples: token ids end to end, padded batch by batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from curate.datasets.examples import SourceExamples, joined_labels
from curate.datasets.tensors import FAR, counted, joined, large_tensor, picked
from curate.runtime.arrays import Arrays, kept
from curate.runtime.large import AROUND, Growing, pieces, released, touched

IGNORED = -100
CHUNK_TOKENS = 1024
"""Tokens, padding included, that go through a model together in a pass over all examples: no
more than a small step has, because the graph of a language model with 100 million parameters
takes some 1.3 MB a token, and with a billion 3 MB."""


TOGETHER, ROWS = 2**20, 1000
"""Tokens, and texts, that are gone through at a time."""


class Encoded(NamedTuple):
    """One text as token ids.

    learned: which of them the loss is about. cut: whether tokens are missing at its end.
    """

    ids: Sequence[int]
    learned: Sequence[bool]
    cut: bool = False


@dataclass(frozen=True)
class TokenExamples(SourceExamples):
    """Texts as token ids, 5 bytes a token, which may lie in files, see `large`.

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
    def gather(
        cls, texts: Iterable[Encoded], labels: Tensor | None, pad: int, keep: Path | None = None
    ) -> "TokenExamples":
        """Examples from encoded texts, in the order of the source.

        keep: the file for all that there is to know of these texts, see `kept`; if it has them,
        none is asked for.
        """
        arrays = _gathered(texts) if keep is None else kept(keep, lambda: _gathered(texts))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cls(**tensors, labels=labels, rows=counted(len(arrays["cut"])), pad=pad)

    def contents(self) -> Iterator[bytes]:
        tokens = self.tokens.numpy()
        for part in pieces(len(self)):
            for start, end in pairwise(self.starts[part.start : part.stop + 1].tolist()):
                yield tokens[start:end].tobytes()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor, device: torch.device) -> Mapping[str, Tensor]:
        starts, ends = self.starts[rows], self.starts[rows + 1]
        places = starts[:, None] + torch.arange(int((ends - starts).max()))
        inside = places < ends[:, None]
        touched(4 * len(rows) + 5 * places.numel() // AROUND)
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
        lengths = chain.from_iterable(self.lengths(p).tolist() for p in pieces(len(self)))
        for end, length in enumerate(lengths):
            wider = max(longest, length)
            if end > first and (end - first == size or wider * (end + 1 - first) > CHUNK_TOKENS):
                yield torch.arange(first, end)
                first, wider = end, length
            longest = wider
        yield torch.arange(first, len(self))

    def lengths(self, part: slice = slice(None)) -> Tensor:
        """Tokens of every text, or of some that follow on one another, shape (n,)."""
        starts, ends = self.starts[:-1][part], self.starts[1:][part]
        return ends - starts

    def terms(self) -> Tensor:
        """Learned tokens of every text but its first, which nothing predicts, shape (N,)."""
        found = counted(len(self))
        for part in self._parts():
            starts, lengths = self.starts[part], self.lengths(part)
            first, end = int(starts[0]), int(starts[-1] + lengths[-1])
            predicted = self.learned[first:end].clone()
            predicted[starts[lengths > 0] - first] = False
            sums = torch.cat([torch.zeros(1, dtype=torch.int64), predicted.cumsum(0)])
            found[part] = sums[starts + lengths - first] - sums[starts - first]
        return found

    def _parts(self) -> Iterator[slice]:
        """Texts that follow on one another, `FAR` of about `TOGETHER` tokens at most."""
        first = 0
        while first < len(self):
            most = int(self.starts[first]) + TOGETHER
            end = int(np.searchsorted(self.starts.numpy(), most, "right")) - 1
            yield slice(first, first := max(first + 1, min(end, first + FAR)))
            released()

    def take(self, positions: Tensor) -> "TokenExamples":
        starts, end = large_tensor((len(positions) + 1,), torch.int64), 0
        for part in pieces(len(positions)):
            rows = positions[part].long()
            starts[part.start + 1 : part.stop + 1] = end + self.starts[rows + 1].sub(
                self.starts[rows]
            ).cumsum(0)
            end = int(starts[part.stop])
        found = replace(
            self,
            tokens=large_tensor((end,), self.tokens.dtype),
            learned=large_tensor((end,), self.learned.dtype),
            starts=starts,
            labels=None if self.labels is None else picked(self.labels, positions),
            rows=picked(self.rows, positions),
            cut=picked(self.cut, positions),
        )
        for part in found._parts():
            own = slice(int(starts[part.start]), int(starts[part.stop]))
            shift = self.starts[positions[part]] - starts[:-1][part]
            places = torch.arange(own.start, own.stop) + shift.repeat_interleave(
                found.lengths(part)
            )
            found.tokens[own] = self.tokens[places]
            found.learned[own] = self.learned[places]
        return found

    def joined(self, other: Self) -> "TokenExamples":
        return replace(
            self,
            tokens=joined(self.tokens, other.tokens),
            learned=joined(self.learned, other.learned),
            starts=joined(self.starts, self.starts[-1] + other.starts[1:]),
            labels=joined_labels(self, other),
            rows=joined(self.rows, other.rows),
            cut=joined(self.cut, other.cut),
        )

    def with_labels(self, labels: Tensor) -> "TokenExamples":
        return replace(self, labels=labels)


def _gathered(texts: Iterable[Encoded]) -> Arrays:
    """The tensors of some texts: `tokens`, `learned`, `starts` and `cut`."""
    kinds = {"tokens": np.int32, "learned": np.bool_, "starts": np.int64, "cut": np.bool_}
    found, end = {name: Growing(kind) for name, kind in kinds.items()}, 0
    found["starts"].append([0])
    rest = iter(texts)
    while some := [*islice(rest, ROWS)]:
        ends = end + np.cumsum([len(text.ids) for text in some])
        count, end = int(ends[-1]) - end, int(ends[-1])
        found["starts"].append(ends)
        found["cut"].append([text.cut for text in some])
        for name, parts in (
            ("tokens", [t.ids for t in some]),
            ("learned", [t.learned for t in some]),
        ):
            found[name].append(np.fromiter(chain.from_iterable(parts), kinds[name], count))
    return {name: growing.array() for name, growing in found.items()}
