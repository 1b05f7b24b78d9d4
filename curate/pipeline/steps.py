"""The steps of a planned run, each made when it is asked for, and the same one every time."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import overload

import numpy as np
import torch
from torch import Tensor

from curate.runtime.large import large, released, touched
from curate.trajectory import Step

TOGETHER = 2**16
"""Rows of the epochs that are shuffled together: one epoch, or some short ones."""
AT_HAND = 128
"""Steps that are held."""


class Planned(Sequence[Step]):
    """Steps of a run over some rows, shuffled every epoch, or every so many of them.

    Memory: the order of the epochs around the step that was asked for last, 4 bytes a row, and
    what the generator remembers at the beginning of each, 5 KB.
    """

    def __init__(self, made: Callable[[int], Step], places: range) -> None:
        self._made, self._places = made, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, key: int) -> Step: ...
    @overload
    def __getitem__(self, key: slice) -> "Planned": ...
    def __getitem__(self, key: int | slice) -> "Step | Planned":
        places = self._places[key]
        return Planned(self._made, places) if isinstance(places, range) else self._made(places)


def planned(
    pool: Tensor | int,
    size: int,
    total: int,
    seed: int,
    lrs: Callable[[int], tuple[float, ...]],
    micro_batch: int,
) -> Planned:
    """The `total` steps of a run, in batches of `size`; the last of an epoch may be shorter.

    Args:
        pool: the rows, shape (n,), or how many there are.
        lrs: step -> its learning rates.
    """
    epochs = _Epochs(pool if isinstance(pool, int) else len(pool), size, total, seed)

    @lru_cache(AT_HAND)
    def made(t: int) -> Step:
        places, own = epochs.at(t)
        rows = places if isinstance(pool, int) else pool[places]
        return Step(rows, torch.ones(len(rows)), lrs(t), own, micro_batch)

    return Planned(made, range(total))


class _Epochs:
    """Places 0..n-1 in a new order every epoch, and a seed for every batch of them.

    They are drawn in turn from one generator: an epoch's order, then its seeds.
    """

    def __init__(self, count: int, size: int, total: int, seed: int) -> None:
        self._count, self._size = count, size
        self._batches = max(1, -(-count // size))
        self._epochs = max(1, min(TOGETHER // max(1, count), -(-total // self._batches)))
        self._generator = torch.Generator().manual_seed(seed)
        self._starts = [self._generator.get_state()]
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, t: int) -> tuple[Tensor, int]:
        """The places of batch t, int64, and its seed."""
        part, batch = divmod(t, self._epochs * self._batches)
        if part not in self._held:
            self._held = dict([*self._held.items()][-1:]) | {part: self._drawn(part)}
        orders, seeds = self._held[part]
        epoch, k = divmod(batch, self._batches)
        touched(2)
        places = orders[epoch, k * self._size : (k + 1) * self._size].long()
        return places, int(seeds[epoch, k])

    def _drawn(self, part: int) -> tuple[Tensor, Tensor]:
        """The orders of some epochs, int32, and their seeds, a row for each."""
        while len(self._starts) <= part:
            self._drawn(len(self._starts) - 1)
        self._generator.set_state(self._starts[part])
        orders = torch.from_numpy(large((self._epochs, self._count), np.int32))
        seeds = torch.from_numpy(large((self._epochs, self._batches), np.int64))
        for order, own in zip(orders, seeds, strict=True):
            torch.randperm(self._count, generator=self._generator, out=order, dtype=torch.int32)
            torch.randint(2**62, own.shape, generator=self._generator, out=own)
        released()
        if part + 1 == len(self._starts):
            self._starts.append(self._generator.get_state())
        return orders, seeds
