"""What does each effort of look-ahead in a loop cost, and does it choose the same rows?

A GPT-2 of transformers (sdpa) is trained on sequences half of which are of the target's language,
by a plain PyTorch loop, and by the same loop with half of every batch chosen at horizon 1 with each
effort, and at horizon 4. Printed are seconds per step in plain steps on whole batches, in turn and
several times over, medians of the ratios within a turn; the share of rows that are decided as by
exact influences, where the run checked it; and of the rows that were kept, the share that are of
the target's language. An effort is kept up here whatever comes of it.

    python examples/benchmarks/loop_effort.py [--layers 4] [--width 256] [--device cpu]
    python examples/benchmarks/loop_effort.py --layers 12 --width 768 --length 128 --device cuda

About five minutes on two cores, one on a GPU.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from small_gpt import losses, small_gpt
from torch import Tensor

from curate import LookAheadLoader
from curate.selection import effort

sys.path.insert(0, str(Path(__file__).parent / "gpt"))
from setting import Setting, sequences

WAYS: dict[str, dict[str, Any]] = {
    "exact": {"effort": "exact"},
    "balanced": {"effort": "balanced"},
    "fast": {"effort": "fast"},
    "K = 4": {"horizon": 4},
}


class Loop:
    """A model, its optimizer and its batches, and where in them it is."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        setting = Setting(length=arguments.length)
        self.device, self.steps = torch.device(arguments.device), arguments.steps
        torch.manual_seed(0)
        self.model = small_gpt(
            layers=arguments.layers,
            width=arguments.width,
            heads=arguments.width // 64,
            vocabulary=setting.vocabulary,
            length=setting.length,
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        turns = arguments.repeats * (1 + len(WAYS)) + len(WAYS)
        count = arguments.batch * (arguments.warm_up + turns * arguments.steps)
        rows = torch.cat([sequences(k, count // 2, setting, generator) for k in range(2)])
        order = torch.randperm(len(rows), generator=generator)
        self.pool = iter(rows[order].to(self.device).split(arguments.batch))
        self.of_target = {tuple(row) for row in rows[: count // 2].tolist()}
        self.targets = sequences(0, arguments.targets, setting, generator).to(self.device)

    def __iter__(self) -> Iterator[Tensor]:
        """The next batches, as many as a turn has, which nobody has seen."""
        return islice(self.pool, self.steps)

    def train(self, batches: Iterable[Tensor]) -> float:
        """Seconds per step of one pass over the batches."""
        self.seen: list[Tensor] = []
        begin, steps = time.perf_counter(), 0
        for batch in batches:
            self.seen.append(batch)
            self.optimizer.zero_grad()
            losses(self.model, batch).mean().backward()
            self.optimizer.step()
            steps += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps

    def share_of_target(self) -> float:
        """Of the rows of the last pass, how many are of the target's language."""
        rows = torch.cat(self.seen).tolist()
        return sum(tuple(row) in self.of_target for row in rows) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4, help="after the warm-up, at 1e-3")
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=64, help="plain steps before")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loop = Loop(arguments)
    loop.train(islice(loop.pool, arguments.warm_up))
    loop.optimizer.param_groups[0]["lr"] = arguments.lr
    effort.ALIKE = 0.0
    ways = {
        name: LookAheadLoader(
            loop, loop.model, loop.optimizer, losses, loop.targets, keep=0.5, **options
        )
        for name, options in WAYS.items()
    }
    for way in ways.values():
        loop.train(way)  # tries, is watched, and finds its feet
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        plain = loop.train(loop)
        for name, way in ways.items():
            ratios[name].append(loop.train(way) / plain)
            shares[name].append(loop.share_of_target())
        print(*(f"{name} {found[-1]:.2f}" for name, found in ratios.items()), file=sys.stderr)
    print(f"plain step: {plain:.3f} s, {arguments.targets} target rows, batches {arguments.batch}")
    print("| | x plain | least to most | decided alike | checks | target's language |")
    print("|---|---|---|---|---|---|")
    for name, way in ways.items():
        checks = [report.alike for report in way.reports if report.alike is not None]
        alike = f"{sum(checks) / len(checks):.0%}" if checks else ""
        low, middle, high = min(ratios[name]), median(ratios[name]), max(ratios[name])
        print(
            f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {alike} | {len(checks) or ''} | "
            f"{median(shares[name]):.0%} |"
        )


if __name__ == "__main__":
    main()
