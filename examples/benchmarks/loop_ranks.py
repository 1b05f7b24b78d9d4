"""What several processes make of a loop with look-ahead: steps per second, against one process.

A GPT of 4 layers of width 256 (sdpa, random tokens) trains by AdamW on batches of 32 sequences of
128 tokens, plain and with half of each batch kept (K = 4, one round, 16 target sequences), in one
process and in several under DistributedDataParallel, each with its even part of the batch, with
the CPU and one thread each. Wall and CPU time per step, the best of the turns, and how many times
the steps of one process that makes: by the clock, and by the CPU time of a process, which is what
the clock would say on idle cores if processes never waited for each other. Last, the share of a
step's CPU time that no process can leave to others: the optimizer's rule and the way back
through it, on all parameters.

    python examples/benchmarks/loop_ranks.py [--processes 2] [--steps 8] [--turns 3]

About eight minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from small_gpt import losses, small_gpt
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from curate import LookAheadLoader
from curate.influence import adjoint
from curate.influence.through_rule import through_rule
from curate.trajectory import forward_step, recording

BATCH, LENGTH, VOCABULARY, K = 32, 128, 2048, 4
TARGETS = 16


def timed(spent: list[float], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which adds its CPU time, less that of what is timed within it."""

    def run(*arguments: Any, **options: Any) -> Any:
        begin, before = time.process_time(), spent[0]
        try:
            return function(*arguments, **options)
        finally:
            spent[0] = before + time.process_time() - begin

    return run


def child(way: str, steps: int, out: Path) -> None:
    """Train as one of the processes; the first leaves what it took in `out`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = int(os.environ["WORLD_SIZE"])
    model = small_gpt(layers=4, width=256, heads=4, vocabulary=VOCABULARY, length=LENGTH)
    if size > 1:
        distributed.init_process_group("gloo")
        model = DistributedDataParallel(model)
    rank = int(os.environ["RANK"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (steps + K, BATCH, LENGTH), generator=generator)
    batches = [batch.tensor_split(size)[rank] for batch in tokens]
    target = torch.randint(VOCABULARY, (TARGETS, LENGTH), generator=generator)
    chosen: Any = batches
    if way == "look-ahead":
        chosen = LookAheadLoader(
            batches, model, optimizer, losses, target, horizon=K, keep=0.5, rounds=1
        )
    model.train()
    begin = cpu = rules = 0.0
    spent = [0.0]
    with (
        patch.object(recording, "forward_step", timed(spent, forward_step)),
        patch.object(adjoint, "through_rule", timed(spent, through_rule)),
    ):
        for number, batch in enumerate(chosen, start=1):
            losses(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if number == K:  # the first window tries the optimizer and watches two steps
                begin, cpu, rules = time.perf_counter(), time.process_time(), spent[0]
    found = {
        "wall": (time.perf_counter() - begin) / steps,
        "cpu": (time.process_time() - cpu) / steps,
        "rules": (spent[0] - rules) / steps,
    }
    if rank == 0:
        out.write_text(json.dumps(found))
    if size > 1:
        distributed.destroy_process_group()


def measure(way: str, processes: int, steps: int) -> dict[str, float]:
    """One run in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        line = [__file__, "--child", way, str(out), "--steps", str(steps)]
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", *torchrun, *line],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        found: dict[str, float] = json.loads(out.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A loop in one process and in several.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.steps, Path(arguments.child[1]))
        return
    many = arguments.processes
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    print("loop        processes  wall s/step  CPU s/step  times one: wall    CPU  not shared")
    for way in ("plain", "look-ahead"):
        turns = [
            {size: measure(way, size, arguments.steps) for size in (1, many)}
            for _ in range(arguments.turns)
        ]
        best = {
            size: {key: min(turn[size][key] for turn in turns) for key in ("wall", "cpu", "rules")}
            for size in (1, many)
        }
        for size, own in best.items():
            wall, cpu = (best[1][key] / own[key] for key in ("wall", "cpu"))
            print(
                f"{way:10s}  {size:9d}  {own['wall']:11.2f}  {own['cpu']:10.2f}  {wall:15.2f}  "
                f"{cpu:5.2f}  {own['rules'] / own['cpu']:10.0%}",
                flush=True,
            )
    print(f"load of the machine after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
