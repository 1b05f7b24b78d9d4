"""One line in a training loop of one's own: wrap the loader.

Digits with 40 % wrong labels. The same loop twice, on a plain DataLoader and on
the wrapped one, and the loss on clean test data after each.

    python examples/plain_pytorch.py [--seeds 0 1 2] [--horizon 4]
"""

import argparse
from collections.abc import Iterable
from statistics import mean

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader

Batch = list[Tensor]


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """One loss per example."""
    pixels, labels = batch
    return nn.functional.cross_entropy(model(pixels), labels, reduction="none")


def train(batches: Iterable[Batch], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Anybody's training loop: it does not know what it is given."""
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()


def data(seed: int) -> tuple[TensorDataset, Batch, Batch]:
    """Noisy training data, a small clean validation batch, a clean test batch."""
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train_rows, valid, test = order[:1200], order[1200:1400], order[1400:]
    noisy = labels[train_rows].clone()
    wrong = torch.rand(1200, generator=torch.Generator().manual_seed(seed)) < 0.4
    noisy[wrong] = (noisy[wrong] + torch.randint(1, 10, (int(wrong.sum()),))) % 10
    return (
        TensorDataset(pixels[train_rows], noisy),
        [pixels[valid], labels[valid]],
        [pixels[test], labels[test]],
    )


def run(seed: int, horizon: int, select: bool) -> float:
    """Test loss after six epochs."""
    torch.manual_seed(seed)
    train_set, validation, test = data(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches: Iterable[Batch] = DataLoader(train_set, batch_size=64, shuffle=True)
    if select:
        batches = LookAheadLoader(batches, model, optimizer, losses, validation, horizon=horizon)
    for _ in range(6):
        train(batches, model, optimizer)
    model.eval()
    return losses(model, test).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain against selected training, on digits.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--horizon", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, select in (("plain", False), ("selected", True)):
        found = [run(seed, arguments.horizon, select) for seed in arguments.seeds]
        print(f"{name:9s} test loss {mean(found):.3f}  ({', '.join(f'{x:.3f}' for x in found)})")


if __name__ == "__main__":
    main()
