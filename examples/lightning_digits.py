"""Look-ahead in Lightning: wrap the loader that `fit` is given.

Digits with 40 % wrong labels, AdamW with a cosine schedule and clipping. The
same module fitted twice, on a plain DataLoader and on the wrapped one, and the
loss on clean test data after each.

    python examples/lightning_digits.py [--seeds 0 1 2] [--horizon 8]
"""

import argparse
import logging
import tempfile
import warnings
from statistics import mean
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curate import LightningLookAhead

EPOCHS, BATCH = 6, 64
Batch = list[Tensor]


def losses(model: Any, batch: Batch) -> Tensor:
    """One loss per example."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Digits(lightning.LightningModule):
    """Anybody's module: it does not know what it is trained on."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
        self.steps = steps

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.net(pixels)
        return logits

    def training_step(self, batch: Batch, index: int) -> Tensor:
        del index
        return losses(self, batch).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def data(seed: int) -> tuple[TensorDataset, Batch, Batch]:
    """Noisy training data, a small clean validation batch, a clean test batch."""
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    train, valid, test = order[:1200], order[1200:1400], order[1400:]
    wrong = torch.rand(1200, generator=generator) < 0.4
    other = (labels[train] + torch.randint(1, 10, (1200,), generator=generator)) % 10
    noisy = TensorDataset(pixels[train], torch.where(wrong, other, labels[train]))
    return noisy, [pixels[valid], labels[valid]], [pixels[test], labels[test]]


def run(seed: int, horizon: int, select: bool) -> float:
    """Test loss after the fit."""
    lightning.seed_everything(seed, verbose=False)
    train, validation, test = data(seed)
    batches: Any = DataLoader(train, batch_size=BATCH, shuffle=True)
    module = Digits(EPOCHS * len(batches))
    if select:
        batches = LightningLookAhead(batches, module, losses, validation, horizon=horizon)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers and progress bars
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            gradient_clip_val=1.0,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, batches)
    module.eval()
    with torch.no_grad():
        return losses(module, test).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain against selected training, in Lightning.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--horizon", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name, select in (("plain", False), ("selected", True)):
        found = [run(seed, arguments.horizon, select) for seed in arguments.seeds]
        print(f"{name:9s} test loss {mean(found):.3f}  ({', '.join(f'{x:.3f}' for x in found)})")


if __name__ == "__main__":
    main()
