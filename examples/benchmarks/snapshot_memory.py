"""Does memory stay flat when a run gets longer, and do influences stay the same?

One scored run per length T, each in a fresh process: first with at most 4
states kept, then with all of them. Prints the peak memory above what the
process had when the model and the data were ready, the forward steps redone,
and whether the influences of the two are the same bits.

    python examples/benchmarks/snapshot_memory.py [--steps 50 200 800] [--width 512]

About four minutes.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from curate.datasets import TensorExamples
from curate.influence import Target, score_window
from curate.models import BUILTIN_MODELS, Classification, FlatModel
from curate.rules import AdamW, initial_state
from curate.trajectory import Step, Task, record


def examples(count: int, seed: int) -> TensorExamples:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 256, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return TensorExamples(features, labels, torch.arange(count))


def peak() -> int:
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(total: int, snapshots: int, width: int) -> None:
    """Score one run and print what it took."""
    torch.manual_seed(0)
    model = FlatModel(BUILTIN_MODELS["mlp"]((256,), 10, hidden=(width, width)))
    task, rule = Task(model, Classification(), examples(256, 1)), AdamW()
    start, targets = initial_state(rule, model.read()), [Target("t", examples(64, 2))]
    generator = torch.Generator().manual_seed(3)
    steps = [
        Step(torch.randperm(256, generator=generator)[:32], torch.ones(32), (1e-4,), seed=t)
        for t in range(total)
    ]
    # the working set of any run: one step there and back
    score_window(task, rule, record(task, rule, start, steps[:2], snapshots=2), targets)
    ready, begin = peak(), time.monotonic()
    recording = record(task, rule, start, steps, snapshots=snapshots)
    scores = score_window(task, rule, recording, targets)
    digest = hashlib.sha256(b"".join(s.numpy().tobytes() for s in scores.influences))
    print(
        json.dumps(
            {
                "state": start.nbytes(),
                "grown": peak() - ready,
                "seconds": time.monotonic() - begin,
                "influences": digest.hexdigest(),
            }
        )
    )


# the allocator gives freed tensors back at once, so that the peak is ours and not its cache
def measure(total: int, snapshots: int, width: int) -> dict[str, float | str]:
    command = [sys.executable, str(Path(__file__)), "--child", str(total), str(snapshots)]
    done = subprocess.run(
        [*command, "--width", str(width)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
    )
    found: dict[str, float | str] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of scoring against run length.")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        total, snapshots = arguments.child
        child(total, snapshots, arguments.width)
        return
    print("steps  snapshots  peak above start  in states  seconds  influences")
    for total in arguments.steps:
        few, every = (measure(total, s, arguments.width) for s in (4, total))
        same = "same bits" if few["influences"] == every["influences"] else "DIFFERENT"
        for name, found in (("4", few), ("all", every)):
            grown, state = float(found["grown"]), float(found["state"])
            print(
                f"{total:5d}  {name:>9}  {grown / 2**20:12.1f} MiB  {grown / state:9.1f}"
                f"  {float(found['seconds']):7.1f}  {same}",
                flush=True,
            )


if __name__ == "__main__":
    main()
