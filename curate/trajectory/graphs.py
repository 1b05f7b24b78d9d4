"""How large the graph of a pass is: what autograd saves for its way back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from curate.runtime.ranks import ALONE
from curate.trajectory.step import Step, Task, gradient


def graph_size(task: Task, theta: Tensor, step: Step) -> int:
    """Bytes of the graph of a step's first chunk on this rank. Cost: its gradient."""
    chunks = task.chunks(step)
    if not chunks:
        return 0
    alone = step.keep(torch.arange(chunks[0].start, chunks[0].stop))
    with counting(theta, *task.model.held) as sizes:
        gradient(replace(task, ranks=ALONE), theta, alone)
    return sum(sizes.values())


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
