"""A window whose batches are spread over the processes that train together.

Each process has batches of its own, and of the others' it knows what decisions take: how many
examples, their labels and groups. What one process would decide with all of them in one batch,
all decide alike.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from curate.datasets import BatchExamples, batch_length
from curate.datasets.batches import named_leaves
from curate.errors import DataError, UserError
from curate.influence import Target
from curate.integrations.columns import read_column
from curate.integrations.options import Options
from curate.rules import State
from curate.runtime.ranks import Ranks, exchanged, require_same
from curate.selection import Array
from curate.trajectory import Step

ALIKE = 1e-3
"""How far the norms of a state may be apart between processes, relative."""


class Piece(NamedTuple):
    """A batch of one process, as a part of its step.

    rank: whose it is. number: of the batch in the window. rows: where it is in the step.
    """

    rank: int
    number: int
    rows: slice


@dataclass(frozen=True)
class Spread:
    """Where a window's candidates are. Those of a step stand rank by rank, batch by batch.

    sizes: examples in each batch of the window, by rank, as many batches for each.
    together: how many batches of each make a step. rank: of this process.
    """

    sizes: Sequence[Sequence[int]]
    together: int
    rank: int

    def __len__(self) -> int:
        return -(-len(self.sizes[0]) // self.together)

    def pieces(self, k: int) -> list[Piece]:
        """All of step k, in the order of its rows."""
        numbers = range(len(self.sizes[0]))[k * self.together : (k + 1) * self.together]
        named = [(rank, number) for rank in range(len(self.sizes)) for number in numbers]
        ends = [0, *accumulate(self.sizes[rank][number] for rank, number in named)]
        return [Piece(*name, slice(*ends[i : i + 2])) for i, name in enumerate(named)]

    def own(self, k: int) -> list[Piece]:
        """This process's of step k."""
        return [piece for piece in self.pieces(k) if piece.rank == self.rank]

    def batches(self, k: int) -> list[Array]:
        """The positions in step k of every batch, all processes' pieces of it together."""
        by_number: dict[int, list[Array]] = {}
        for piece in self.pieces(k):
            positions = np.arange(piece.rows.start, piece.rows.stop)
            by_number.setdefault(piece.number, []).append(positions)
        return [np.concatenate(parts) for parts in by_number.values()]

    def held(self, k: int) -> tuple[int, ...]:
        """How many rows of step k each rank has."""
        numbers = slice(k * self.together, (k + 1) * self.together)
        return tuple(sum(sizes[numbers]) for sizes in self.sizes)

    def own_positions(self) -> list[Array]:
        """The positions in the window of every batch of this process."""
        return [
            before + np.arange(piece.rows.start, piece.rows.stop)
            for k, before in enumerate(self._before())
            for piece in self.own(k)
        ]

    def all_positions(self) -> list[Array]:
        """The positions in the window of every batch, all processes' pieces of it together."""
        return [before + at for k, before in enumerate(self._before()) for at in self.batches(k)]

    def _before(self) -> list[int]:
        """Rows of the window before each step."""
        return [0, *accumulate(sum(self.held(k)) for k in range(len(self)))][:-1]

    def steps(
        self, seeds: torch.Generator, micro_batch: int | None, scale: Callable[[int], float]
    ) -> list[Step]:
        """The loop's next steps, still without learning rates.

        scale: of the loop's gradient for a step of so many batches, see `LookAheadLoader`.
        """
        held = [self.held(k) for k in range(len(self))]
        totals = [sum(lengths) for lengths in held]
        return [
            Step(
                rows=rows,
                weights=torch.ones(len(rows)),
                lrs=(),
                seed=int(torch.randint(2**62, (), generator=seeds)),
                micro_batch=micro_batch or 0,
                cuts=tuple(piece.rows.start for piece in self.pieces(k))[1:],
                scale=scale(len(self.own(k))),
                held=held[k],
            )
            for k, rows in enumerate(torch.arange(sum(totals)).split(totals))
        ]

    def in_order(self, columns: Sequence[Sequence[Any]]) -> Array:
        """One value per example, given by rank and batch, in the order of the window's rows."""
        pieces = (piece for k in range(len(self)) for piece in self.pieces(k))
        return np.concatenate([np.asarray(columns[piece.rank][piece.number]) for piece in pieces])


@dataclass(frozen=True)
class Offered:
    """What is decided on: this process's batches, and of all processes' the rest.

    labels, groups, rows: of all examples, in their order; None where they are not read. Rows
    are positions in the dataset, for the log.
    """

    batches: Sequence[Any]
    spread: Spread
    labels: Array | None
    groups: Array | None
    rows: Array | None

    @property
    def examples(self) -> BatchExamples:
        """Of this process, by their positions among all."""
        return BatchExamples(self.batches, [int(at[0]) for at in self.spread.own_positions()])


def offered(batches: Sequence[Any], options: Options, together: int, ranks: Ranks) -> Offered:
    """A window, `batches` being this process's. Waits for the others."""
    sizes = [batch_length(batch) for batch in batches]
    read = {
        "label": options.label,
        "group_by": options.group_by,
        "row": options.row if options.log is not None else None,
    }
    own = {
        name: None if how is None else [read_column(how, batch, name) for batch in batches]
        for name, how in read.items()
    }
    for column in own["row"] or ():
        if column.dtype.kind not in "iu":
            raise DataError(
                f"row must give integers, positions in the dataset, but got {column.dtype}."
            )
    every = exchanged(ranks, {"sizes": sizes, **own})
    spread = Spread([one["sizes"] for one in every], together, ranks.rank)
    columns = [
        None if how is None else spread.in_order([one[name] for one in every])
        for name, how in read.items()
    ]
    return Offered(batches, spread, *columns)


def common(
    drawn: Sequence[Any], together: int, ranks: Ranks
) -> tuple[Sequence[Any], Sequence[Any] | None]:
    """The batches drawn that are a window, and those beyond it once no other window follows.

    It has as many in all processes; whole steps, where one of them has drawn fewer than another.
    """
    counts = exchanged(ranks, len(drawn))
    count: int = min(counts)
    if count == max(counts):
        return drawn, None if count else ()
    count -= count % together
    return drawn[:count], drawn[count:]


def require_same_targets(targets: Sequence[Target], ranks: Ranks) -> None:
    """Raise UserError unless all processes have the same targets, each of them whole."""
    if ranks.size == 1:
        return
    parts = []
    for target in targets:
        assert isinstance(target.examples, BatchExamples)
        for batch in target.examples.batches:
            for name, leaf in named_leaves(batch):
                if isinstance(leaf, Tensor):
                    raw = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                    digest = hashlib.blake2b(raw.numpy().tobytes()).hexdigest()
                    parts.append(f"{target.name} {name} {leaf.shape} {digest}")
    require_same(ranks, "targets (all of their rows, in one order)", "\n".join(parts))


def require_same_state(state: State, ranks: Ranks) -> None:
    """Raise UserError unless training stands at the same point in all processes."""
    if ranks.size == 1:
        return
    norms = [float(tensor.double().norm()) for tensor in state.tensors()]
    every = np.array(exchanged(ranks, [float(state.step), *norms]))
    if not np.allclose(every, every[0], rtol=ALIKE, atol=0, equal_nan=True):
        raise UserError(
            f"the {ranks.size} processes do not have the same weights and optimizer state: train "
            "one model in all of them (DistributedDataParallel), and give each as many batches "
            "(join leaves the optimizer of a process that ends early behind)."
        )
