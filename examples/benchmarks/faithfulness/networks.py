"""The networks of the faithfulness benchmark, what they learn and what they are tested on.

Read from Parquet files in a folder of yours: MNIST as `mnist_train.parquet` and
`mnist_test.parquet` (image: 784 bytes, label), WikiText-2 as
`wikitext2_valid_test.parquet` (text, split). Everything is in float64: at a learning
rate of 1e-5 leaving an example out changes a loss by about 1e-8.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.datasets import TensorExamples
from curate.models import ACTIVATIONS, BUILTIN_MODELS, Batch, Classification, FlatModel
from curate.models.objectives.base import Model
from curate.trajectory import Task

DTYPE = torch.float64
CONTEXT, CHARACTERS, UNKNOWN = 32, 64, 0


@dataclass(frozen=True)
class Setting:
    """How much of everything a network gets.

    train: examples, each of them seen once. left_out: how many of them are left out in turn.
    tests: examples that the mean loss is over. single: how many of those are targets by
    themselves, too.
    """

    train: int
    batch: int
    left_out: int
    tests: int
    single: int


SETTINGS = MappingProxyType(
    {
        "mlp-relu": Setting(6000, 64, 200, 500, 500),
        "mlp-gelu": Setting(6000, 64, 200, 500, 500),
        "cnn-gelu": Setting(6000, 64, 200, 500, 20),
        "gpt": Setting(600, 16, 60, 60, 20),
    }
)


class GPT(nn.Module):
    """Characters (n, length) -> logits of the next one (n, length, CHARACTERS). No dropout."""

    def __init__(self, width: int = 32, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CHARACTERS))
        for embedding in (self.characters, self.places):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, characters: Tensor) -> Tensor:
        places = torch.arange(characters.shape[1], device=characters.device)
        out: Tensor = self.head(self.blocks(self.characters(characters) + self.places(places)))
        return out


class Block(nn.Module):
    """Causal attention and a perceptron, each on normalized inputs and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.attend = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.attend(self.norm(x)).view(n, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.join(seen.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.think(x)
        return out


class NextCharacter:
    """Cross-entropy of every character but the first, summed over an example."""

    def losses(self, model: Model, batch: Batch) -> Tensor:
        text = batch["features"]
        logits = model(text[:, :-1])
        each = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten(), reduction="none")
        return each.view(len(text), -1).sum(dim=1)

    def sizes(self, batch: Batch) -> Tensor:
        text = batch["features"]
        return torch.full((len(text),), text.shape[1] - 1.0, dtype=DTYPE, device=text.device)

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        del model, batch
        return {}


def problem(network: str, folder: Path, seed: int) -> tuple[Task, TensorExamples]:
    """An untrained network with what it is trained on, and the tests, drawn by seed."""
    setting = SETTINGS[network]
    generator = torch.Generator().manual_seed(seed)
    if network == "gpt":
        blocks = _wikitext(folder)
        order = torch.randperm(len(blocks), generator=generator)
        examples = TensorExamples(blocks, None, torch.arange(len(blocks)), dtype=DTYPE)
        train = examples.take(order[: setting.train])
        tests = examples.take(order[setting.train : setting.train + setting.tests])
        torch.manual_seed(seed)
        return Task(FlatModel(GPT(), dtype=DTYPE), NextCharacter(), train), tests
    train, tests = (
        examples.take(torch.randperm(len(examples), generator=generator)[:count])
        for examples, count in zip(_mnist(folder), (setting.train, setting.tests), strict=True)
    )
    torch.manual_seed(seed)
    kind, activation = network.split("-")
    if kind == "mlp":
        module = BUILTIN_MODELS["mlp"]((784,), 10, hidden=(16, 16), activation=activation)
    else:
        act = ACTIVATIONS[activation]
        module = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            act(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            act(),
            nn.Flatten(),
            nn.Linear(784, 10),
        )
    return Task(FlatModel(module, dtype=DTYPE), Classification(), train), tests


@cache
def _mnist(folder: Path) -> tuple[TensorExamples, TensorExamples]:
    """All training and all test images, mean 0 and variance 1 over pixels."""

    def read(part: str) -> TensorExamples:
        table = pl.read_parquet(folder / f"mnist_{part}.parquet")
        pixels = np.frombuffer(b"".join(table["image"].to_list()), dtype=np.uint8).copy()
        images = torch.from_numpy(pixels).view(-1, 1, 28, 28).to(DTYPE) / 255
        labels = torch.tensor(table["label"].to_list())
        rows = torch.arange(len(labels))
        return TensorExamples((images - 0.1307) / 0.3081, labels, rows, dtype=DTYPE)

    return read("train"), read("test")


@cache
def _wikitext(folder: Path) -> Tensor:
    """The valid part in blocks of CONTEXT + 1 characters, all but the commonest ones UNKNOWN."""
    table = pl.read_parquet(folder / "wikitext2_valid_test.parquet")
    lines = table.filter(pl.col("split") == "valid")["text"].to_list()
    text = "\n".join(lines)
    commonest = Counter(text).most_common(CHARACTERS - 1)
    number = {character: k for k, (character, _) in enumerate(commonest, start=1)}
    codes = torch.tensor([number.get(character, UNKNOWN) for character in text])
    length = CONTEXT + 1
    return codes[: len(codes) // length * length].view(-1, length)
