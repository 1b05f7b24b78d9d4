"""Does memory stay flat when a run gets longer, and do influences stay the same?

One scored run per length T, each in a fresh process: with at most 4 states kept, with 4
in memory and the others on disk, and with all of them in memory; as many gradients are kept in
memory as states, each a third of one. Prints the peak
memory above what the process had after scoring two steps, what was on disk when the
way back began, and whether the influences of the three are the same bits. Then what
memory buys: CPU time of recording and scoring against plain training of the same steps,
for the middle T and more and more states kept.

    python examples/benchmarks/snapshot_memory.py [--steps 32 128 512] [--width 512]

About six minutes.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from curate.datasets import TensorExamples
from curate.influence import Target, score_window
from curate.models import BUILTIN_MODELS, Classification, FlatModel
from curate.rules import AdamW, initial_state
from curate.trajectory import Disk, Step, Task, record, replay

FEW = 4


def examples(count: int, seed: int) -> TensorExamples:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 256, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return TensorExamples(features, labels, torch.arange(count))


def peak() -> int:
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(total: int, snapshots: int, on_disk: int, width: int) -> None:
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
    begin = time.process_time()
    replay(task, rule, start, steps)
    plain = time.process_time() - begin
    ready, begin = peak(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(on_disk, Path(folder)) if on_disk else None
        recording = record(
            task, rule, start, steps, snapshots=snapshots, disk=disk, gradients=snapshots
        )
        stored = sum(path.stat().st_size for path in Path(folder).glob("*/*"))
        scores = score_window(task, rule, recording, targets)
        del recording
    digest = hashlib.sha256(b"".join(s.numpy().tobytes() for s in scores.influences))
    print(
        json.dumps(
            {
                "state": start.nbytes(),
                "grown": peak() - ready,
                "stored": stored,
                "seconds": time.process_time() - begin,
                "plain": plain,
                "influences": digest.hexdigest(),
            }
        )
    )


# the allocator gives freed tensors back at once, so that the peak is ours and not its cache
def measure(total: int, snapshots: int, on_disk: int, width: int) -> dict[str, float | str]:
    numbers = [str(number) for number in (total, snapshots, on_disk)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--child", *numbers, "--width", str(width)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
    )
    found: dict[str, float | str] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of scoring against run length.")
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--child", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        total, snapshots, on_disk = arguments.child
        child(total, snapshots, on_disk, arguments.width)
        return
    print("steps  states kept      peak above start  in states      on disk  seconds  influences")
    for total in arguments.steps:
        ways = {f"{FEW}": (FEW, 0), f"{FEW} and disk": (FEW, total), "all": (total, 0)}
        found = {name: measure(total, *way, arguments.width) for name, way in ways.items()}
        same = len({own["influences"] for own in found.values()}) == 1
        for name, own in found.items():
            grown, state, stored = (float(own[key]) for key in ("grown", "state", "stored"))
            print(
                f"{total:5d}  {name:>11}  {grown / 2**20:16.1f} MiB  {grown / state:9.1f}"
                f"  {stored / 2**20:7.1f} MiB  {float(own['seconds']):7.1f}"
                f"  {'same bits' if same else 'DIFFERENT'}",
                flush=True,
            )
    trade(sorted(arguments.steps)[len(arguments.steps) // 2], arguments.width)


def trade(total: int, width: int) -> None:
    """What memory, and disk, buys for a run of `total` steps."""
    print(f"\n{total} steps     peak above start  in states  record and score / plain training")
    kept = [2, 4]
    while kept[-1] < total:
        kept.append(kept[-1] * 2)
    ways = {str(min(n, total)): (min(n, total), 0) for n in kept}
    for name, way in (ways | {f"{FEW} and disk": (FEW, total)}).items():
        own = measure(total, *way, width)
        grown, state, seconds, plain = (
            float(own[key]) for key in ("grown", "state", "seconds", "plain")
        )
        print(
            f"{name:>11}  {grown / 2**20:16.1f} MiB  {grown / state:9.1f}  {seconds / plain:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
