"""What does an optimizer's update of millions of parameters take?

AdamW after clipping, on gradients of which half is 0, as those of an embedding whose words do not
occur: by torch.optim, by the rule in one go, and block by block as `curate` has it. Prints
milliseconds, the median of several, in one process.

    python examples/benchmarks/long_vectors.py [--threads 2] [--keep]

About half a minute.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from curate.rules import AdamW, Clipped, initial_state, updated
from curate.runtime.allocator import keep_freed_memory, keep_large_blocks

SIZES, TURNS, LR = (30_000, 300_000, 3_000_000, 22_700_000), 9, 1e-3


def milliseconds(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median of each, taken in turn."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            spent[name].append(1000 * (time.perf_counter() - begin))
    return {name: median(values[1:]) for name, values in spent.items()}


def ways(size: int) -> dict[str, Callable[[], object]]:
    """One update of so many parameters, in every way."""
    used = torch.arange(size) < size // 2
    grad, theta = torch.randn(size) * used, torch.randn(size)
    rule = Clipped(AdamW(), 1.0)
    state = rule.update(grad, initial_state(rule, theta), (LR,))
    parameter = torch.nn.Parameter(theta.clone())
    optimizer = torch.optim.AdamW([parameter], lr=LR)

    def of_torch() -> None:
        parameter.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()

    return {
        "torch.optim": of_torch,
        "whole": lambda: rule.update(grad, state, (LR,)),
        "blocks": lambda: updated(rule, grad, state, (LR,)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="freed memory, as the commands do")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.keep:
        keep_freed_memory()
        keep_large_blocks(20 * 4 * max(SIZES))
    print("| parameters | torch.optim | rule, whole | in blocks |")
    print("|---|---|---|---|")
    for size in SIZES:
        found = milliseconds(ways(size))
        print(f"| {size:,} | " + " | ".join(f"{value:.2f} ms" for value in found.values()) + " |")


if __name__ == "__main__":
    main()
