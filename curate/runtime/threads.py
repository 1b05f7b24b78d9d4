"""How many CPU threads a job deserves.

Sharing a tiny matrix product among threads gains nothing on an idle machine,
and on a busy one each thread waits for the others at every operation: digits,
two cores, one of them busy: 28 s with two threads, 0.8 s with one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curate.trajectory import Step, Task, chunk_losses

TINY_STEP = 10**8
"""Floating-point operations of a step below which one thread does it: a few milliseconds."""


def step_flops(task: Task, step: Step) -> int:
    """Multiplications and additions in the matrix products of one training step, about.

    Those of layers with a weight matrix; where there are none, two by every parameter and row.
    (torch's own counter loads its compiler, which takes longer than a small run.)
    """
    few = step.keep(torch.arange(min(2, len(step.rows))))
    found = 0

    def add(layer: Any, _: Any, output: Any) -> None:
        nonlocal found
        if isinstance(output, Tensor):
            found += 2 * layer.weight[0].numel() * output.numel()

    layers = [layer for layer in task.model.module.modules() if _has_matrix(layer)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        with torch.no_grad():
            chunk_losses(task, task.model.read(), few, slice(0, None))
    finally:
        for hook in hooks:
            hook.remove()
    found = found or 2 * task.model.size * len(few.rows)
    return 3 * found * len(step.rows) // len(few.rows)


def _has_matrix(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 1 and not isinstance(layer, nn.Embedding)


@contextmanager
def suitable_threads(flops: int) -> Iterator[int]:
    """Run with one thread if a step of `flops` is tiny; yields the number of threads.

    `OMP_NUM_THREADS` in the environment is the user's own choice and stands.
    """
    before = torch.get_num_threads()
    if flops < TINY_STEP and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
