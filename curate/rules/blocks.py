"""Updates of long vectors part by part, so that what is in between is as long as a part.

Where freed memory goes back to the system, as by default, a vector that comes and goes is paid for
by the page: an update takes two thirds of the time so. Where it is kept (`runtime.allocator`) it
takes a tenth more (`examples/benchmarks/long_vectors.py`).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from curate.rules.base import Rule, State
from curate.rules.wrappers import Clipped, Grouped

CPU_BLOCK = 1 << 17
"""Parameters per block and thread: a dozen float32 vectors of it fit in a core's cache."""
GPU_BLOCK = 1 << 24


def blocks_of(vector: Tensor) -> Iterator[slice]:
    """Where the blocks of a vector as long as this one lie."""
    on_cpu = vector.device.type == "cpu"
    size = CPU_BLOCK * torch.get_num_threads() if on_cpu else GPU_BLOCK
    return (slice(start, start + size) for start in range(0, len(vector), size))


@torch.no_grad()
def updated(rule: Rule, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
    """What `rule.update` returns, without a graph, with the same bits."""
    if isinstance(rule, Clipped):
        return updated(rule.rule, rule.clip(grad), state, lrs)
    if isinstance(rule, Grouped):
        return rule.joined([updated(*part) for part in rule.split(grad, state, lrs)])
    parts = [*blocks_of(grad)]
    if not rule.elementwise or len(parts) < 2:
        return rule.update(grad, state, lrs)
    tensors = tuple(torch.empty_like(t) for t in state.tensors())
    for part in parts:
        before = state.with_tensors(tuple(t[part] for t in state.tensors()))
        after = rule.update(grad[part], before, lrs)
        for whole, piece in zip(tensors, after.tensors(), strict=True):
            whole[part] = piece
    return state.with_tensors(tensors)._replace(step=after.step)
