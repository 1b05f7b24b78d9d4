"""A small classification problem and a training loop, for tests of what wraps loops."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
    "dataloader_pin_memory": False,
}
"""Arguments of a Trainer of transformers that says nothing and needs no GPU."""


def net(dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 2))


def data(count: int = 96, noise: float = 0.0, seed: int = 0) -> TensorDataset:
    """Inputs, labels, and which labels are wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    wrong = torch.rand(count, generator=generator) < noise
    return TensorDataset(x, torch.where(wrong, 1 - y, y), wrong)


def losses(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def target() -> list[Tensor]:
    clean = data(64, seed=9)
    return [clean.tensors[0], clean.tensors[1]]


def loader(noise: float = 0.0, size: int = 16) -> DataLoader[Any]:
    return DataLoader(data(noise=noise), batch_size=size, shuffle=True)


def train(
    batches: Any, model: nn.Module, optimizer: Any, scheduler: Any = None, accumulate: int = 1
) -> None:
    """The loop that everybody has; with pairs (batch, weights) it weighs."""
    model.train()
    for number, handed in enumerate(batches, start=1):
        batch, weights = handed if isinstance(handed, tuple) else (handed, torch.ones(()))
        (weights * losses(model, batch)).mean().div(accumulate).backward()
        if number % accumulate:
            continue
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
