"""Tensors as long as the data: made in files where they are large, gone through in pieces."""

from collections.abc import Iterator

import torch
from torch import Tensor

from curate.runtime.large import large, pieces, touched

PIECE = 2**20
"""Bytes that are converted at a time."""
FAR = 2**8
"""Rows that are looked up at a time, where they are far from one another."""


def large_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros, in a file where it is large, see `large`."""
    return torch.from_numpy(large(shape, torch.empty(0, dtype=dtype).numpy().dtype))


def parts(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first dimension of about `PIECE` bytes each, one row at least."""
    row = max(1, tensor[:1].nbytes)
    return pieces(len(tensor), max(1, PIECE // row))


def picked(tensor: Tensor, positions: Tensor) -> Tensor:
    """Some rows of a tensor, by position, shape (n,)."""
    found = large_tensor((len(positions), *tensor.shape[1:]), tensor.dtype)
    for part in parts(found):
        rows, own = positions[part], found[part]
        near = int(rows.max() - rows.min()) < 4 * len(rows)
        size = len(rows) if near else FAR
        for some, target in zip(rows.split(size), own.split(size), strict=True):
            target[:] = tensor[some]
            touched(min(len(some), FAR))
    return found


def joined(one: Tensor, other: Tensor) -> Tensor:
    """The rows of one tensor and then of another."""
    found = large_tensor((len(one) + len(other), *one.shape[1:]), one.dtype)
    for source, target in ((one, found[: len(one)]), (other, found[len(one) :])):
        for part in parts(source):
            target[part] = source[part]
    return found


def counted(count: int) -> Tensor:
    """The positions 0..N-1, shape (N,), int64."""
    found = large_tensor((count,), torch.int64)
    for part in parts(found):
        torch.arange(part.start, part.stop, out=found[part])
    return found
