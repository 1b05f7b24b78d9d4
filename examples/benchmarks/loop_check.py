"""What does it cost to make sure that a loop trains as it is simulated?

A plain PyTorch loop with look-ahead that keeps half. Timed by themselves: the checks of model and
objective when the loader is wrapped, the trial of the optimizer before the first window (on a
gradient that the window needs anyway), the two steps that are watched at the start, and those that
are watched later. Printed in plain training steps of the same model, and for the later ones as a
share of the whole run's time.

    python examples/benchmarks/loop_check.py [--seconds 60] [--device cpu]

About a minute for each of three models.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from loop_cost import BATCH, CASES, TARGETS, draw, losses, train
from torch import Tensor, nn

from curate import LookAheadLoader
from curate.integrations import loop, rehearsal, witness
from curate.integrations.witness import AT_ONCE, Witness


class Transformer(nn.Module):
    """Two layers over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
        self.inward, self.body = nn.Linear(28, 128), nn.TransformerEncoder(layer, 2)
        self.outward = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outward(self.body(self.inward(x.squeeze(1))).mean(dim=1))
        return out


MODELS: dict[str, Callable[[], nn.Module]] = CASES | {"transformer 2x128": Transformer}


@contextmanager
def timed(owner: Any, name: str, spent: list[float]) -> Iterator[None]:
    """Note how long each call of a method takes."""
    method: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begin)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, method)


def measure(name: str, horizon: int, seconds: float, device: torch.device) -> str:
    """One line of the table."""
    model = MODELS[name]().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [draw(BATCH, device) for _ in range(16)]
    train(batches, model, optimizer)
    step = median(train(batches, model, optimizer) for _ in range(3)) / len(batches)
    wrap, trial, steps, updates = (list[float]() for _ in range(4))
    begin = time.perf_counter()
    with (
        timed(loop, "require_trainable", wrap),
        timed(rehearsal, "rehearse", trial),
        timed(Witness, "_note_step", steps),
        timed(witness, "require_update", updates),
    ):
        chosen = LookAheadLoader(
            batches, model, optimizer, losses, draw(TARGETS, device), horizon=horizon, keep=0.5
        )
        while time.perf_counter() - begin < seconds:
            train(chosen, model, optimizer)
    whole = time.perf_counter() - begin
    watched = list(map(sum, zip(steps, updates, strict=False)))
    later = watched[AT_ONCE:]
    at_start = sum(wrap) + sum(trial) + sum(watched[:AT_ONCE])
    return (
        f"| {name} | {horizon} | {1000 * step:.1f} ms | {sum(wrap) / step:.2f} | "
        f"{sum(trial) / step:.2f} | {sum(watched[:AT_ONCE]) / step:.2f} | {at_start / step:.2f} | "
        f"{len(later)} | {sum(later) / whole:.2%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print("| model | K | plain step | wrapping | trial | two watched | in all | later | share |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in MODELS:
        for horizon in (1, 4):
            line = measure(name, horizon, arguments.seconds / 2, torch.device(arguments.device))
            print(line, flush=True)


if __name__ == "__main__":
    main()
