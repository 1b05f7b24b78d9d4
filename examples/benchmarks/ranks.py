"""What sharing a scored run among processes saves: time and memory, against one process.

K steps by AdamW, recorded (every gradient kept) and scored, as torchrun starts them on this machine
with the CPU and one thread each: alone; shared, every state kept whole by every process; shared,
every process keeping its share of each. Wall time per step (the best turn, since others may use
the machine), CPU time of a process, both over those of one process, and the peak memory of a
process above what it had after two steps. Last, how far the influences are from those of one
process, over the largest; for comparison, alone with every batch in two micro-batches, which adds
the same gradients up in another order, too.

    python examples/benchmarks/ranks.py [--processes 2] [--turns 3]

About four minutes.
"""

import argparse
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
from curate.runtime.ranks import ALONE, Ranks, join_group
from curate.trajectory import Step, Task, record

K = 16
MODELS = {
    "mlp 784-512-512-10": ("mlp", (784,), {"hidden": (512, 512)}, 256),
    "cnn 32-64": ("cnn", (1, 28, 28), {"channels": (32, 64)}, 64),
}


def examples(shape: tuple[int, ...], count: int, seed: int) -> TensorExamples:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, *shape, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return TensorExamples(features, labels, torch.arange(count))


def peak() -> int:
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(name: str, way: str, out: Path) -> None:
    """Score a run as one of the processes; the first leaves what it took in `out`."""
    ranks: Ranks = join_group() if int(os.environ["WORLD_SIZE"]) > 1 else ALONE
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind, shape, arguments, size = MODELS[name]
    model = FlatModel(BUILTIN_MODELS[kind](shape, 10, **arguments))
    task, rule = Task(model, Classification(), examples(shape, 4 * size, 1), ranks), AdamW()
    start, targets = initial_state(rule, model.read()), [Target("t", examples(shape, 64, 2))]
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randperm(4 * size, generator=generator)[:size] for _ in range(K)]
    micro = size // 2 if way == "halves" else 0
    steps = [Step(own, torch.ones(size), (1e-3,), t, micro) for t, own in enumerate(rows)]
    score_window(task, rule, record(task, rule, start, steps[:2], snapshots=2), targets)
    ready, begin, cpu = peak(), time.perf_counter(), time.process_time()
    recording = record(task, rule, start, steps, snapshots=K, sharded=way == "shares", gradients=K)
    scores = score_window(task, rule, recording, targets)
    found = {
        "parameters": model.size,
        "wall": (time.perf_counter() - begin) / K,
        "cpu": (time.process_time() - cpu) / K,
        "grown": peak() - ready,
        "influences": torch.cat(scores.influences, dim=1).flatten().tolist(),
    }
    if ranks.rank == 0:
        out.write_text(json.dumps(found))


def measure(name: str, way: str, processes: int) -> dict[str, float | list[float]]:
    """One run in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        child = [__file__, "--child", name, way, str(out)]
        subprocess.run(
            [sys.executable, "-m", *torchrun, *child],
            check=True,
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        )
        found: dict[str, float | list[float]] = json.loads(out.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A scored run in one process and in several.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, way, out = arguments.child
        child(name, way, Path(out))
        return
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    print(
        "model               parameters  processes  way      s/step   of one  "
        "CPU s/step   of one  peak above start   off by"
    )
    many = arguments.processes
    ways = {"alone": 1, "halves": 1, "whole": many, "shares": many}
    for name in MODELS:
        turns = [
            {way: measure(name, way, ways[way]) for way in ways} for _ in range(arguments.turns)
        ]
        best = {
            way: {
                key: min(float(turn[way][key]) for turn in turns)  # type: ignore[arg-type]
                for key in ("parameters", "wall", "cpu", "grown")
            }
            for way in ways
        }
        expected = torch.tensor(turns[0]["alone"]["influences"])
        for way, own in best.items():
            off = (torch.tensor(turns[0][way]["influences"]) - expected).abs().max()
            wall, cpu = (own[key] / best["alone"][key] for key in ("wall", "cpu"))
            print(
                f"{name:18s}  {own['parameters']:10.0f}  {ways[way]:9d}  {way:6s}  "
                f"{own['wall']:7.3f}  {wall:7.2f}  {own['cpu']:10.3f}  {cpu:7.2f}  "
                f"{own['grown'] / 2**20:12.1f} MiB  {float(off / expected.abs().max()):7.1e}",
                flush=True,
            )
    print(f"load of the machine after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
