"""Loops that several processes train together, and the same in one process with the whole batch.

`python -m tests.integrations.rank_cases PORT SIZE FOLDER NAMES` forks so many processes, since
loading everything takes longer than any case, as torchrun starts them. Of every case each leaves in
the folder its weights after training, what it was handed, and the log. NAMES is a list in JSON.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from curate import LookAheadLoader
from curate.errors import CurateError
from curate.integrations import witness
from curate.rules import whole

SHARDED = ["plain", "accumulated", "weights", "few kept"]
Cases = dict[str, Callable[[Path], dict[str, Any]]]
"""What leaves something in a folder, and gives what it found, by name."""
ROWS = [18, 18, 18, 18, 18, 18, 18, 7]


def rank_and_size() -> tuple[int, int]:
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def net(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(5)
    layers = [nn.Linear(6, 12), nn.GELU(), nn.Dropout(dropout), nn.Linear(12, 2)]
    return nn.Sequential(*layers).to(dtype)


def rows(count: int, seed: int = 0, noise: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + x[:, 1] > 0).long()
    wrong = torch.rand(count, generator=generator) < noise
    return {"x": x, "y": torch.where(wrong, 1 - y, y), "row": torch.arange(count)}


def target() -> dict[str, Tensor]:
    return rows(33, seed=9, noise=0.0)


def losses(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def part(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """This process's rows of a batch."""
    rank, size = rank_and_size()
    return {name: values.tensor_split(size)[rank] for name, values in batch.items()}


def own_batches(sizes: list[int]) -> list[dict[str, Tensor]]:
    data = rows(sum(sizes))
    split = zip(*(values.split(sizes) for values in data.values()), strict=True)
    return [part(dict(zip(data, values, strict=True))) for values in split]


@dataclass
class Setting:
    """A loop. options: of look-ahead. epochs: how often it goes through the batches."""

    sizes: list[int] = field(default_factory=lambda: list(ROWS))
    options: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    epochs: int = 1
    dropout: float = 0.0


def together(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if distributed.is_initialized() else model


def train(setting: Setting, folder: Path, wrap: Callable[[nn.Module], nn.Module]) -> Any:
    """The loop that everybody has, with `no_sync` where gradients are accumulated."""
    torch.manual_seed(1)
    inside = net(setting.dropout)
    model = wrap(inside)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    batches = own_batches(setting.sizes)
    options = {"horizon": 3, "keep": 0.5, "rounds": 1, "row": "row", "log": folder / "log"}
    wrapped = LookAheadLoader(
        batches,
        model,
        optimizer,
        losses,
        target(),
        scheduler=scheduler,
        clip_norm=1.0,
        accumulate=setting.accumulate,
        scale=lambda count: count / setting.accumulate,
        **options | setting.options,
    )
    model.train()
    torch.manual_seed(100 + rank_and_size()[0])
    seen = []
    for _ in range(setting.epochs):
        for number, handed in enumerate(wrapped, start=1):
            batch, weights = handed if isinstance(handed, tuple) else (handed, torch.ones(()))
            seen.append(batch["row"].tolist())
            steps = number % setting.accumulate == 0 or number == len(batches)
            waits = not steps and hasattr(model, "no_sync")
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(steps)
            with model.no_sync() if waits else contextlib.nullcontext():
                (weights * losses(model, batch)).mean().div(setting.accumulate).backward()
            if steps:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
    wrapped.settle()
    return inside, seen, wrapped.reports


LOOPS = {
    "plain": Setting(epochs=2),
    "rounds": Setting(options={"rounds": 2, "horizon": 2}),
    "accumulated": Setting(accumulate=2, sizes=[18] * 7, epochs=2),
    "weights": Setting(options={"keep": "weights", "rounds": 3}),
    "weights, accumulated": Setting(
        options={"keep": "weights", "rounds": 2}, accumulate=2, sizes=[18] * 4
    ),
    "auto": Setting(options={"keep": "auto", "horizon": 1}, epochs=4),
    "by label and group": Setting(options={"label": "y", "group_by": "y"}),
    "few kept, accumulated": Setting(options={"keep": 0.1}, accumulate=2, sizes=[18] * 6),
    "few kept": Setting(options={"keep": 0.1, "horizon": 2}),
    "every row": Setting(sizes=[18, 4, 5, 18], options={"keep": 0.9}),
    "horizon 1": Setting(options={"horizon": 1, "removal": "fixed", "micro_batch": 4}),
}


def shard(model: nn.Module) -> nn.Module:
    """Spread by `fully_shard`, layer by layer."""
    if not distributed.is_initialized():
        return model
    mesh = init_device_mesh("cpu", (rank_and_size()[1],))
    for layer in (*model.children(), model):
        if not isinstance(layer, nn.Dropout | nn.GELU):
            fully_shard(layer, mesh=mesh)
    return model


def loop(
    name: str, wrap: Callable[[nn.Module], nn.Module] = together
) -> Callable[[Path], dict[str, Any]]:
    def go(folder: Path) -> dict[str, Any]:
        model, seen, reports = train(LOOPS[name], folder, wrap)
        return {
            "weights": [whole(p.detach()).tolist() for p in model.parameters()],
            "seen": seen,
            "reports": [report.metrics() | {"seconds": 0} for report in reports],
        }

    return go


def dropping(folder: Path) -> dict[str, Any]:
    """Dropout falls in each process as it does there; every step is watched."""
    setting = Setting(epochs=2, dropout=0.3, accumulate=2, sizes=[18] * 6)
    _, seen, _ = train(setting, folder, together)
    return {"seen": seen}


def uneven(folder: Path, kind: Any = torch.optim.SGD) -> dict[str, Any]:
    """The first process has two batches more; DistributedDataParallel's `join` lets it go on."""
    rank, _ = rank_and_size()
    model = together(net())
    optimizer = kind(model.parameters(), lr=0.1)
    batches = own_batches([16] * (7 if rank == 0 else 5))
    wrapped = LookAheadLoader(
        batches, model, optimizer, losses, target(), horizon=2, keep=0.5, rounds=1
    )
    epochs = []
    for _ in range(2):
        with model.join():
            seen = []
            for batch in wrapped:
                seen.append(len(batch["row"]))
                losses(model, batch).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        epochs.append(seen)
    return {
        "seen": epochs,
        "steps": [report.steps for report in wrapped.reports],
        "realized": [report.realized for report in wrapped.reports],
    }


def one_step(wrapped: Any, model: nn.Module, optimizer: Any) -> None:
    for batch in wrapped:
        losses(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def refused(change: str) -> Callable[[Path], dict[str, Any]]:
    """Processes that do not train together what they seem to."""

    def go(folder: Path) -> dict[str, Any]:
        rank, _ = rank_and_size()
        inside, good = net(), target()
        if change == "no averaging":
            model: nn.Module = inside
        elif change == "weights apart":
            model = inside
            with torch.no_grad():
                inside[0].weight.add_(rank)
        else:
            model = together(inside)
        if change == "targets":
            good = part(good)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = own_batches(ROWS)
        wrapped = LookAheadLoader(batches, model, optimizer, losses, good, keep=0.5, rounds=1)
        one_step(wrapped, model, optimizer)
        return {}

    return go


def averaged_by_hand(folder: Path) -> dict[str, Any]:
    """Without DistributedDataParallel, as loops of one's own do it."""

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = LookAheadLoader(
        own_batches(ROWS), model, optimizer, losses, target(), keep=0.5, rounds=1
    )
    for batch in wrapped:
        losses(model, batch).mean().backward()
        for p in model.parameters():
            distributed.all_reduce(p.grad)
            p.grad /= rank_and_size()[1]
        optimizer.step()
        optimizer.zero_grad()
    return {"weights": [p.tolist() for p in model.parameters()]}


CASES: Cases = {
    **{name: loop(name) for name in LOOPS},
    **{f"{name}, sharded": loop(name, shard) for name in SHARDED},
    "dropout": dropping,
    "uneven": uneven,
    "uneven, with a state": lambda folder: uneven(folder, torch.optim.AdamW),
    "by hand": averaged_by_hand,
    **{change: refused(change) for change in ("no averaging", "weights apart", "targets")},
}


def go_through(cases: Cases, folder: Path, names: list[str]) -> Iterator[None]:
    """Every case, and what it left, by rank."""
    witness.SHARE = 1e9
    rank = rank_and_size()[0]
    for name in names:
        own = folder / name.replace(" ", "_")
        try:
            left = cases[name](own)
        except CurateError as error:
            left = {"error": f"{type(error).__name__}: {error}"}
        own.mkdir(parents=True, exist_ok=True)
        (own / f"{rank}.json").write_text(json.dumps(left))
        yield


def one_of_them(cases: Cases, folder: Path, names: list[str]) -> None:
    """What one of the processes that train together does."""
    distributed.init_process_group("gloo")
    for _ in go_through(cases, folder, names):
        distributed.barrier()
    distributed.destroy_process_group()


def main(cases: Cases, arguments: list[str]) -> None:
    """Processes for every PORT SIZE FOLDER NAMES, and whether all came to their end."""
    children = []
    while arguments:
        (port, size, folder, names), arguments = arguments[:4], arguments[4:]
        shared = {"MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        for rank in map(str, range(int(size))):
            if child := os.fork():
                children.append(child)
                continue
            os.environ.update(shared | {"RANK": rank, "LOCAL_RANK": rank})
            try:
                one_of_them(cases, Path(folder), json.loads(names))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)  # whatever threads there are
    ended = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(ended))


if __name__ == "__main__":
    main(CASES, sys.argv[1:])
