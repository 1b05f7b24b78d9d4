"""Tapes: gradients recorded with their graphs, so that the way back need not redo them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from curate.trajectory.step import ChunkGradient, Gradient, Step, Task, chunk_gradient, gradient


class Tapes:
    """Recorded gradients of a window's last steps, as many as fit in `budget` bytes.

    A tape saves the way back one gradient of the four that it costs (DESIGN
    3.2). The newest push out the oldest, to which the way back comes last: so the first that it
    needs take no room beyond that of the step that it would build anyway. Its size is
    what autograd saves for it, counted as it is made. After the first, which is made to be
    counted, none is made before the last twice as many steps as fit. A step in
    micro-batches gets none, since those are there to save memory.
    """

    def __init__(self, budget: int, steps: int) -> None:
        self._budget, self._steps = budget, steps
        self._last = 0
        self._kept: dict[int, tuple[ChunkGradient, int]] = {}

    def gradient(self, task: Task, theta: Tensor, k: int, step: Step) -> Gradient | None:
        """The gradient of step k; what this rank adds to it is held with its graph if that fits.

        None if it will not, going by the size of the last that was made.
        """
        chunks, left = task.chunks(step), self._steps - k
        room = min(self._budget, 2 * self._budget // left)
        if len(chunks) != 1 or not self._last <= room or not room:
            return None
        self._make_room(self._last)
        part, self._last = _counted(task, theta, step, chunks[0])
        if self._last <= room:
            self._make_room(self._last)
            self._kept[k] = part, self._last
        return gradient(task, theta, step, part)

    def _make_room(self, size: int) -> None:
        """Drop the oldest until `size` more bytes fit."""
        while self._kept and sum(own for _, own in self._kept.values()) + size > self._budget:
            del self._kept[next(iter(self._kept))]

    def take(self, k: int) -> ChunkGradient | None:
        """Hand over the tape of step k, if there is one; it is no longer held here."""
        part, _ = self._kept.pop(k, (None, 0))
        return part


def tape_size(task: Task, theta: Tensor, step: Step) -> int:
    """Bytes of the graph of a step's first chunk on this rank. Cost: its gradient."""
    chunks = task.chunks(step)
    return _counted(task, theta, step, chunks[0])[1] if chunks else 0


def _counted(task: Task, theta: Tensor, step: Step, chunk: slice) -> tuple[ChunkGradient, int]:
    """The gradient of a chunk with its graph, and the bytes of that."""
    with counting(theta, *task.model.held) as sizes:
        part = chunk_gradient(task, theta, step, chunk, differentiable=True)
    return part, sum(sizes.values())


@contextmanager
def counting(*held: Tensor) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves in the block, by address.

    Those of `held` do not count: theta and a model's frozen parameters are there anyway.
    """
    sizes: dict[int, int] = {}
    known = {tensor.untyped_storage().data_ptr() for tensor in held}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself, if an output, would keep its graph alive

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
