"""Batches of another layout than an example a row, and the same with an example a row.

Flattened batches hold their sequences end to end in a single row, without padding; paired ones hold
the preferred text of every example, then the other text of every example.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from curate.datasets.batches import BatchExamples
from curate.datasets.examples import Examples
from curate.datasets.tokens import IGNORED

ENDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What flattened batches say of where sequences end, beside their positions."""
LENGTHS = "lengths"


class ByExample(dict[str, Any]):
    """A batch with the examples first, so that it can be cut by them.

    moved: the keys of what had another layout.
    """

    moved: tuple[str, ...] = ()

    @classmethod
    def of(cls, batch: Mapping[str, Any], moved: dict[str, Any]) -> Self:
        """A batch of which these parts have moved."""
        made = cls({**batch, **moved})
        made.moved = tuple(moved)
        return made

    def collated(self) -> dict[str, Any]:
        """The batch as it was laid out."""
        raise NotImplementedError


class Sequences(ByExample):
    """A flattened batch by sequence: tokens (n, longest), filled up, and `lengths`, (n,)."""

    ends: tuple[str, ...] = ()

    @classmethod
    def split(cls, batch: Mapping[str, Any]) -> Self:
        """The sequences of a flattened batch."""
        places = batch["position_ids"][0]
        starts = (places == 0).nonzero().flatten().tolist()
        lengths = [end - start for start, end in pairwise([*starts, len(places)])]
        moved = {
            key: pad_sequence(part[0].split(lengths), True, IGNORED if key == "labels" else 0)
            for key, part in batch.items()
            if key not in ENDS and isinstance(part, Tensor) and part.shape[:2] == (1, len(places))
        }
        made = cls.of({k: part for k, part in batch.items() if k not in ENDS}, moved)
        made.ends = tuple(key for key in ENDS if key in batch)
        made[LENGTHS] = torch.tensor(lengths, device=places.device)
        return made

    @property
    def inside(self) -> Tensor:
        """Where there are tokens, shape (n, longest)."""
        lengths: Tensor = self[LENGTHS]
        places = torch.arange(self["position_ids"].shape[1], device=lengths.device)
        return places < lengths[:, None]

    @property
    def owners(self) -> Tensor:
        """The sequence that every token is of, shape (T,)."""
        lengths: Tensor = self[LENGTHS]
        return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)

    def sums(self, of: Tensor) -> Tensor:
        """The sums by sequence of a value per token, shape (T,) -> (n,)."""
        inside = self.inside
        return of.new_zeros(inside.shape).masked_scatter(inside, of).sum(dim=1)

    def collated(self) -> dict[str, Any]:
        inside, lengths = self.inside, self[LENGTHS]
        made = {k: part[inside][None] if k in self.moved else part for k, part in self.items()}
        del made[LENGTHS]
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        known = {"cu_seq_lens": ends, "max_length": int(lengths.max())}
        known = {f"{name}_{side}": value for name, value in known.items() for side in "qk"}
        known["seq_idx"] = self.owners[None].int()
        return made | {key: known[key] for key in self.ends}


class Pairs(ByExample):
    """A paired batch by example: texts (n, 2, ...), the preferred one first.

    With `REFERENCE`, the log-probabilities of the completions under
    the reference, shape (n,); these go with the batch if it had them.
    """

    lent: tuple[str, ...] = ()

    @classmethod
    def split(cls, batch: Mapping[str, Any], reference: Mapping[str, Tensor]) -> Self:
        """The pairs of a batch; `reference`: the log-probabilities that it does not have."""
        rows = len(batch["input_ids"])
        moved = {
            key: part.unflatten(0, (2, rows // 2)).transpose(0, 1)
            for key, part in batch.items()
            if isinstance(part, Tensor) and part.ndim and len(part) == rows
        }
        made = cls.of({**batch, **reference}, moved)
        made.lent = tuple(reference)
        return made

    def collated(self) -> dict[str, Any]:
        return {
            key: part.transpose(0, 1).flatten(0, 1) if key in self.moved else part
            for key, part in self.items()
            if key not in self.lent
        }


def as_collated(batch: Any) -> Any:
    """A batch as it was laid out, before it was split by example if it was."""
    return batch.collated() if isinstance(batch, ByExample) else batch


def is_flattened(batch: Any) -> bool:
    """Whether a batch holds sequences end to end: one row of positions that begin anew."""
    if not isinstance(batch, Mapping) or isinstance(batch, ByExample) or "attention_mask" in batch:
        return False
    places = batch.get("position_ids")
    if not isinstance(places, Tensor) or places.ndim != 2 or len(places) != 1:
        return False
    return places.shape[1] > 0 and not places[0, 0]


def owners_of(examples: Examples, rows: Tensor, device: torch.device) -> Tensor | None:
    """The place among `rows` of every token's example, shape (T,), in a flattened batch of them."""
    if not isinstance(examples, BatchExamples):
        return None
    if not any(isinstance(batch, Sequences) for batch in examples.batches):
        return None  # as almost always: nothing is gathered for this
    batch = examples.batch(rows, device)
    return batch.owners if isinstance(batch, Sequences) else None
