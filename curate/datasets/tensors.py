"""Tensors as long as the data: made in files where they are large, gone through in pieces."""

from collections.abc import Iterator

import torch
from torch import Tensor

from curate.runtime.large import large, pieces

PIECE = 2**20
"""Bytes that are converted at a time."""
FAR = 2**12
"""Rows that are looked up at a time, each on a page of its own."""


def large_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros, in a file where it is large, see `large`."""
    return torch.from_numpy(large(shape, torch.empty(0, dtype=dtype).numpy().dtype))


def parts(tensor: Tensor, most: int = PIECE) -> Iterator[slice]:
    """Slices of the first dimension of about `PIECE` bytes each, or of `most` rows."""
    row = max(1, tensor[:1].nbytes)
    return pieces(len(tensor), max(1, min(most, PIECE // row)))


def picked(tensor: Tensor, positions: Tensor) -> Tensor:
    """Some rows of a tensor, by position, shape (n,)."""
    found = large_tensor((len(positions), *tensor.shape[1:]), tensor.dtype)
    for part in parts(found, FAR):
        found[part] = tensor[positions[part]]
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
