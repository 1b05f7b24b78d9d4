"""What does each effort of look-ahead in a loop cost, and does it choose the same rows?

A GPT-2 of transformers (sdpa) is trained on sequences half of which are of the target's language,
by a plain PyTorch loop, and by the same loop with half of every batch chosen at horizon 1 with each
effort, and at horizon 4. Printed are seconds per step in plain steps on whole batches, in turn and
several times over, medians of the ratios within a turn; the share of rows that are chosen as by
the exact scores, where the run measured it; and the share of chosen rows that are of the target's
language.

    python examples/benchmarks/loop_effort.py [--layers 4] [--width 256] [--device cpu]
    python examples/benchmarks/loop_effort.py --layers 12 --width 768 --length 128 --device cuda

About five minutes on two cores, one on a GPU.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from curate import LookAheadLoader

sys.path.insert(0, str(Path(__file__).parent / "gpt"))
from setting import Setting, sequences

WAYS: dict[str, dict[str, Any]] = {
    "exact": {"effort": "exact"},
    "balanced": {"effort": "balanced"},
    "fast": {"effort": "fast"},
    "K = 4": {"horizon": 4},
}


def losses(model: Any, tokens: Tensor) -> Tensor:
    """One mean loss per sequence."""
    logits = model(input_ids=tokens).logits[:, :-1]
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return each.view(len(tokens), -1).mean(dim=1)


class Loop:
    """A model, its optimizer and its batches, and where in them it is."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        setting = Setting(length=arguments.length)
        self.device = torch.device(arguments.device)
        torch.manual_seed(0)
        self.model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=setting.vocabulary,
                n_positions=setting.length,
                n_embd=arguments.width,
                n_layer=arguments.layers,
                n_head=arguments.width // 64,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                attn_implementation="sdpa",
                use_cache=False,
                bos_token_id=0,
                eos_token_id=0,
            )
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=arguments.lr)
        generator = torch.Generator().manual_seed(0)
        count = arguments.batch * arguments.steps
        rows = torch.cat([sequences(k, count // 2, setting, generator) for k in range(2)])
        order = torch.randperm(len(rows), generator=generator)
        self.batches = [part.to(self.device) for part in rows[order].split(arguments.batch)]
        self.mine = [part < count // 2 for part in order.split(arguments.batch)]
        self.targets = sequences(0, arguments.targets, setting, generator).to(self.device)

    def train(self, batches: Iterable[Tensor]) -> float:
        """Seconds per step of one pass over the batches."""
        begin, steps = time.perf_counter(), 0
        for batch in batches:
            self.optimizer.zero_grad()
            losses(self.model, batch).mean().backward()
            self.optimizer.step()
            steps += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=16, help="plain steps before")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loop = Loop(arguments)
    for _ in range(-(-arguments.warm_up // arguments.steps)):
        loop.train(loop.batches)
    ways = {
        name: LookAheadLoader(
            loop.batches, loop.model, loop.optimizer, losses, loop.targets, keep=0.5, **options
        )
        for name, options in WAYS.items()
    }
    for way in ways.values():
        loop.train(way)  # tries, is watched, and finds its feet
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        plain = loop.train(loop.batches)
        for name, way in ways.items():
            ratios[name].append(loop.train(way) / plain)
    print(f"plain step: {plain:.3f} s, {arguments.targets} target rows, batches {arguments.batch}")
    for name, way in ways.items():
        agreements = [report.alike for report in way.reports if report.alike is not None]
        alike = (
            f"{sum(agreements) / len(agreements):.0%} of {len(agreements)}" if agreements else ""
        )
        low, high = min(ratios[name]), max(ratios[name])
        print(f"{name:10s} {median(ratios[name]):.2f} ({low:.2f} to {high:.2f})  alike {alike}")


if __name__ == "__main__":
    main()
