"""Loops that several processes train together, and the same in one process with the whole batch.

`python -m tests.integrations.rank_cases FOLDER NAME...` is one of the processes, see
`test_ranks.py`: it leaves in the folder, for every case, its weights after training, what it was
handed, and the log.
"""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from curate import LightningLookAhead, LookAheadLoader
from curate.errors import CurateError
from curate.integrations import witness
from tests.integrations.test_hf_trainer import bert, gpt, sentences, texts, trainer

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
    shuffled: bool = False


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
    "few kept": Setting(options={"keep": 0.1, "horizon": 2}),
    "every row": Setting(sizes=[18, 4, 5, 18], options={"keep": 0.9}),
    "horizon 1": Setting(options={"horizon": 1, "removal": "fixed", "micro_batch": 4}),
}


def loop(name: str) -> Callable[[Path], dict[str, Any]]:
    def go(folder: Path) -> dict[str, Any]:
        model, seen, reports = train(LOOPS[name], folder, together)
        return {
            "weights": [p.tolist() for p in model.parameters()],
            "seen": seen,
            "reports": [report.metrics() | {"seconds": 0} for report in reports],
        }

    return go


def dropping(folder: Path) -> dict[str, Any]:
    """Dropout falls in each process as it does there; every step is watched."""
    setting = Setting(epochs=2, dropout=0.3, accumulate=2, sizes=[18] * 6)
    _, seen, _ = train(setting, folder, together)
    return {"seen": seen}


def uneven(folder: Path) -> dict[str, Any]:
    """The first process has two batches more; DistributedDataParallel's `join` lets it go on."""
    rank, _ = rank_and_size()
    model = together(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
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


def accelerated(folder: Path) -> dict[str, Any]:
    """Accelerate's own parts of one loader, for training and for targets."""
    accelerator = Accelerator(cpu=True)
    size = rank_and_size()[1]
    inside, data = net(), rows(90)
    optimizer = torch.optim.AdamW(inside.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    parts = [
        DataLoader([{k: v[i] for k, v in d.items()} for i in range(len(d["y"]))], batch_size=n)
        for d, n in ((data, 18 // size), (target(), 5))
    ]
    model, optimizer, scheduler, batches, good = accelerator.prepare(
        inside, optimizer, scheduler, *parts
    )
    wrapped = LookAheadLoader(
        batches,
        model,
        optimizer,
        losses,
        good,
        horizon=3,
        keep=0.5,
        rounds=1,
        scheduler=scheduler,
        clip_norm=0.1,
        row="row",
        log=folder / "log",
    )
    model.train()
    for _ in range(2):
        for batch in wrapped:
            accelerator.backward(losses(model, batch).mean())
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            for _ in range(1 if size > 1 else 2):  # it steps once for each of two processes
                scheduler.step()
            optimizer.zero_grad()
    wrapped.settle()
    return {"weights": [p.tolist() for p in inside.parameters()]}


TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "classifier": (bert, sentences, {"data_collator": "padding"}),
    "classifier, accumulated": (bert, sentences, {"gradient_accumulation_steps": 2}),
    "language model": (gpt, texts, {}),
    "language model, accumulated": (gpt, texts, {"gradient_accumulation_steps": 2}),
    "language model, tokens of each": (gpt, texts, {"average_tokens_across_devices": False}),
}


def padded(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Padded to the longest of a batch, which differs between processes."""
    lengths = [3 + sum(one["input_ids"]) % 6 for one in batch]
    cut = [
        one["input_ids"][:n] + [0] * (max(lengths) - n)
        for one, n in zip(batch, lengths, strict=True)
    ]
    return {
        "input_ids": torch.tensor(cut),
        "attention_mask": torch.tensor([[i < n for i in range(max(lengths))] for n in lengths]),
        **{
            name: torch.tensor([one[name] for one in batch])
            for name in ("labels", "number")
            if name in batch[0]
        },
    }


def trained(name: str) -> Callable[[Path], dict[str, Any]]:
    def go(folder: Path) -> dict[str, Any]:
        model, data, arguments = TRAINERS[name]
        size = rank_and_size()[1]
        made = trainer(
            folder / "trainer",
            model().double(),
            data(64).add_column("number", list(range(64))),
            {"horizon": 2, "keep": 0.5, "rounds": 1, "row": "number", "log": folder / "log"},
            **{"per_device_train_batch_size": 16 // size, "ddp_backend": "gloo"}
            | {k: v for k, v in arguments.items() if k != "data_collator"},
        )
        if "data_collator" in arguments:
            made.data_collator = padded
        made.train()
        return {"weights": [p.tolist() for p in made.model.parameters()]}

    return go


class Parts:
    """A loader of known length that is none of torch's."""

    def __len__(self) -> int:
        return len(ROWS)

    def __iter__(self) -> Iterator[Any]:
        return iter(own_batches(ROWS))


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any) -> Tensor:
        self.seen.append(batch["row"].tolist())
        return losses(self, batch).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def fitted(own_loader: bool, **arguments: Any) -> Callable[[Path], dict[str, Any]]:
    def go(folder: Path) -> dict[str, Any]:
        module, size = Module(), rank_and_size()[1]
        data = rows(72)
        batches: Any = Parts()
        if not own_loader:
            examples = [{name: x[i] for name, x in data.items()} for i in range(72)]
            batches = DataLoader(examples, batch_size=18 // size, shuffle=True)
        chosen = LightningLookAhead(
            batches,
            module,
            losses,
            target(),
            horizon=2,
            keep=0.5,
            rounds=1,
            row="row",
            log=folder / "log",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(
                accelerator="cpu",
                devices=size,
                strategy="ddp" if size > 1 else "auto",
                max_epochs=2,
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **arguments,
            ).fit(module, chosen)
        chosen.settle()
        return {
            "weights": [p.tolist() for p in module.parameters()],
            "seen": module.seen,
            "length": len(chosen),
        }

    return go


ALIKE: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{name: loop(name) for name in LOOPS},
    "accelerate": accelerated,
    **{name: trained(name) for name in TRAINERS},
    "lightning": fitted(True, gradient_clip_val=0.5),
    "lightning, accumulated": fitted(True, accumulate_grad_batches=2, limit_train_batches=6),
}
"""Those that one process with the whole batch does, too."""

CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    **ALIKE,
    "dropout": dropping,
    "uneven": uneven,
    "by hand": averaged_by_hand,
    **{change: refused(change) for change in ("no averaging", "weights apart", "targets")},
    "lightning's own parts": fitted(False),
}


def go_through(folder: Path, names: list[str]) -> Iterator[None]:
    witness.SHARE = 1e9
    rank = rank_and_size()[0]
    for name in names:
        own = folder / name.replace(" ", "_")
        try:
            left = CASES[name](own)
        except CurateError as error:
            left = {"error": f"{type(error).__name__}: {error}"}
        own.mkdir(parents=True, exist_ok=True)
        (own / f"{rank}.json").write_text(json.dumps(left))
        yield


def main(folder: Path, names: list[str]) -> None:
    distributed.init_process_group("gloo")
    for _ in go_through(folder, names):
        distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # whatever threads there are


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
