"""Pairs of texts as examples: of two completions of a prompt, which one is preferred."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from curate.datasets.examples import SourceExamples
from curate.datasets.tensors import joined, large_tensor, picked
from curate.datasets.tokens import IGNORED, TokenExamples

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True)
class PairExamples(SourceExamples):
    """The texts with the chosen completions and those with the rejected ones, row by row.

    reference: log-probabilities of both completions under the reference, float32, shape (N, 2).
    """

    chosen: TokenExamples
    rejected: TokenExamples
    reference: Tensor
    labels: None = None

    @classmethod
    def of(cls, chosen: TokenExamples, rejected: TokenExamples) -> "PairExamples":
        """Pairs whose reference is not known yet."""
        return cls(chosen, rejected, large_tensor((len(chosen), 2), torch.float32))

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def rows(self) -> Tensor:  # type: ignore[override]
        return self.chosen.rows

    @property
    def pad(self) -> int:
        """See `TokenExamples`."""
        return self.chosen.pad

    @property
    def cut(self) -> Tensor:
        """Whether tokens were left out at the end of either text, shape (N,)."""
        return self.chosen.cut | self.rejected.cut

    def terms(self) -> Tensor:
        """Tokens to learn of the completion that has fewer, shape (N,)."""
        return torch.minimum(self.chosen.terms(), self.rejected.terms())

    def batch(self, rows: Tensor, device: torch.device) -> Mapping[str, Tensor]:
        sides = [side.batch(rows, device) for side in (self.chosen, self.rejected)]
        longest = max(side["input_ids"].shape[1] for side in sides)

        def both(key: str, fill: int) -> Tensor:
            parts = [F.pad(s[key], (0, longest - s[key].shape[1]), value=fill) for s in sides]
            return torch.stack(parts, dim=1)

        known = self.reference[rows].to(device).unbind(dim=1)
        return {
            "input_ids": both("input_ids", self.pad),
            "attention_mask": both("attention_mask", 0),
            "completion_mask": (both("labels", IGNORED) != IGNORED).long(),
            **dict(zip(REFERENCE, known, strict=True)),
        }

    def chunks(self, size: int) -> Iterable[Tensor]:
        for rows in self.chosen.chunks(size):
            yield from rows.split(max(1, len(rows) // 2))

    def contents(self) -> Iterator[bytes]:
        for one, other in zip(self.chosen.contents(), self.rejected.contents(), strict=True):
            yield len(one).to_bytes(8) + one + other

    def take(self, positions: Tensor) -> "PairExamples":
        sides = self.chosen.take(positions), self.rejected.take(positions)
        return PairExamples(*sides, picked(self.reference, positions))

    def joined(self, other: Self) -> "PairExamples":
        sides = self.chosen.joined(other.chosen), self.rejected.joined(other.rejected)
        return PairExamples(*sides, joined(self.reference, other.reference))

    def with_labels(self, labels: Tensor) -> "PairExamples":
        raise NotImplementedError("pairs have no labels")

    def knowing(self, reference: Tensor) -> "PairExamples":
        """These pairs with the log-probabilities that the reference gives, shape (N, 2)."""
        return replace(self, reference=reference)
