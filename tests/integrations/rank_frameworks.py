"""Frameworks that train in several processes, and the same in one with the whole batch.

`python -m tests.integrations.rank_frameworks PORT SIZE FOLDER NAMES`, see `rank_cases.py`.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from curate import LightningLookAhead, LookAheadLoader
from tests.integrations.rank_cases import (
    ROWS,
    Cases,
    losses,
    main,
    net,
    own_batches,
    rank_and_size,
    rows,
    target,
)
from tests.integrations.test_hf_trainer import bert, gpt, sentences, texts, trainer


def accelerated(folder: Path) -> dict[str, Any]:
    """Accelerate's own parts of one loader, for training and for targets."""
    accelerator = Accelerator(cpu=True)
    size = rank_and_size()[1]
    inside, data = net(), rows(90)
    optimizer = torch.optim.AdamW(inside.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40 * size)
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
            scheduler.step()
            optimizer.zero_grad()
    wrapped.settle()
    return {"weights": [p.tolist() for p in inside.parameters()]}


def padded(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Padded to the longest of a batch, which differs between processes."""
    lengths = [3 + sum(one["input_ids"]) % 6 for one in batch]
    cut = [
        one["input_ids"][:n] + [0] * (max(lengths) - n)
        for one, n in zip(batch, lengths, strict=True)
    ]
    return {
        "input_ids": torch.tensor(cut),
        "attention_mask": torch.tensor(
            [[int(i < n) for i in range(max(lengths))] for n in lengths]
        ),
        **{
            name: torch.tensor([one[name] for one in batch])
            for name in ("labels", "number")
            if name in batch[0]
        },
    }


OWN_COUNT = {"average_tokens_across_devices": False}
TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "classifier": (bert, sentences, {"data_collator": padded, **OWN_COUNT}),
    "classifier, accumulated": (bert, sentences, {"gradient_accumulation_steps": 2, **OWN_COUNT}),
    "classifier, added up": (bert, sentences, {}),
    "language model": (gpt, texts, {}),
    "language model, accumulated": (gpt, texts, {"gradient_accumulation_steps": 2}),
    "language model, tokens of each": (gpt, texts, OWN_COUNT),
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
            **{
                "per_device_train_batch_size": 16 // size,
                "ddp_backend": "gloo" if size > 1 else None,
            }
            | {k: v for k, v in arguments.items() if k != "data_collator"},
        )
        made.data_collator = arguments.get("data_collator", made.data_collator)
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


CASES: Cases = {
    "accelerate": accelerated,
    **{name: trained(name) for name in TRAINERS},
    "lightning": fitted(True, gradient_clip_val=0.5),
    "lightning, accumulated": fitted(True, accumulate_grad_batches=2, limit_train_batches=6),
    "lightning's own parts": fitted(False),
}


if __name__ == "__main__":
    main(CASES, sys.argv[1:])
