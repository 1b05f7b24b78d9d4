"""How many CPU threads a job deserves.

Sharing a tiny matrix product among threads gains nothing on an idle machine,
and on a busy one each thread waits for the others at every operation: digits,
two cores, one of them busy: 28 s with two threads, 0.8 s with one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TINY_STEP = 10**8
"""Floating-point operations of a step below which one thread does it: a few milliseconds."""


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
