"""What does look-ahead in a loop cost, in units of the plain loop?

Times, in turn and several times over, the same batches through a plain PyTorch
loop and through LookAheadLoader, which keeps half. Prints medians of seconds
per step as multiples of the plain loop's, beside what the cost model of
`LookAheadLoader` says, in gradients of one batch:

    2.3 R to record and score, R / K less in windows of up to four steps,
    (R + 1/3) V / (B K) for V targets and batches of B, and 1/2 to train on
    the half that is kept

All influences are exact; `loop_effort.py` has what less effort costs.

    python examples/benchmarks/loop_cost.py [--steps 16] [--repeats 5] [--device cpu] [--log]

About two minutes. With `--log` the loop keeps an audit log, and the last column is the share of
its CPU time that the log takes.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from curate import LookAheadLoader
from curate.influence.cost import BACK, WATCHED
from curate.integrations.logged import Logged

BATCH, TARGETS = 100, 500
Batch = tuple[Tensor, Tensor]
CASES: dict[str, Callable[[], nn.Module]] = {
    "mlp 784-128-10": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.GELU(), nn.Linear(128, 10)
    ),
    "cnn 16-32": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    ),
}


def losses(model: Any, batch: Batch) -> Tensor:
    """One loss per example."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def draw(count: int, device: torch.device) -> Batch:
    """Images of noise."""
    return torch.randn(count, 1, 28, 28, device=device), torch.randint(10, (count,), device=device)


def train(batches: Iterable[Batch], model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one pass over the batches."""
    begin = time.perf_counter()
    for batch in batches:
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


class LogTime:
    """Seconds of CPU time in the log of every loop from now on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("enter", "record"):
            setattr(Logged, name, self._timed(getattr(Logged, name)))

    def _timed(self, method: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            begin = time.thread_time()
            method(*args)
            self.seconds += time.thread_time() - begin

        return timed


def expected(horizon: int, rounds: int) -> float:
    """The cost model, in gradients of one batch per step."""
    scored = rounds * (1 + BACK - (1 / horizon if horizon <= WATCHED else 0))
    return scored + (rounds + 1 / 3) * TARGETS / BATCH / horizon + 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per step, look-ahead over plain.")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    batches = [draw(BATCH, device) for _ in range(arguments.steps)]
    target = draw(TARGETS, device)
    spent = LogTime() if arguments.log else None
    print("model             K  R  seconds per step, x plain  cost model  log")
    for name, build in CASES.items():
        model = build().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for horizon in (1, 4, 16):
            for rounds in (1, 4):
                with TemporaryDirectory() as folder:
                    wrapped = LookAheadLoader(
                        batches,
                        model,
                        optimizer,
                        losses,
                        target,
                        horizon=horizon,
                        rounds=rounds,
                        effort="exact",
                        keep=0.5,
                        log=folder if arguments.log else None,
                        row=(lambda batch: torch.arange(len(batch[1]))) if arguments.log else None,
                    )
                    train(wrapped, model, optimizer)  # warms up
                    train(batches, model, optimizer)
                    ratios, logging, looking = [], 0.0, 0.0
                    for _ in range(arguments.repeats):
                        begin, before = time.thread_time(), spent.seconds if spent else 0.0
                        seconds = train(wrapped, model, optimizer)
                        looking += time.thread_time() - begin
                        logging += spent.seconds - before if spent else 0.0
                        ratios.append(seconds / train(batches, model, optimizer))
                print(
                    f"{name:16s} {horizon:2d}  {rounds}  {median(ratios):24.1f}  "
                    f"{expected(horizon, rounds):10.1f}  {logging / looking:.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
