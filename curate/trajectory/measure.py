"""What a training step costs: its arithmetic, and the memory of its graph."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from curate.runtime.ranks import ALONE
from curate.trajectory.step import Step, Task, chunk_losses, gradient


def step_flops(task: Task, step: Step) -> int:
    """Multiplications and additions in the matrix products of one training step, about.

    Only layers with a weight matrix count; where there are none, two by every parameter and row.
    (torch's own counter loads its compiler, which takes longer than a small run.)
    """
    few = step.keep(torch.arange(min(2, len(step.rows))))
    flops = []

    def count(layer: Any, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            flops.append(2 * layer.weight[0].numel() * output.numel())

    with ExitStack() as hooks, torch.no_grad():
        for layer in task.model.module.modules():
            weight, embeds = getattr(layer, "weight", None), isinstance(layer, nn.Embedding)
            if isinstance(weight, Tensor) and weight.ndim > 1 and not embeds:
                hooks.enter_context(layer.register_forward_hook(count))
        chunk_losses(task, task.model.read(), few, slice(0, None))
    forward = sum(flops) or 2 * task.model.size * len(few.rows)
    return 3 * forward * len(step.rows) // len(few.rows)


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

    Storages of `held` do not count: theta and a model's frozen parameters are there anyway.
    """
    sizes: dict[int, int] = {}
    there = {tensor.untyped_storage().data_ptr() for tensor in held}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself, if an output, would keep its graph alive

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
