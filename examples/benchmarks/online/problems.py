"""The problems of the online benchmark: real data with planted label noise.

Read from Parquet files in a folder of yours: MNIST as `mnist_train.parquet` and
`mnist_test.parquet` (image: 784 bytes, label), TREC as `trec.parquet` (text,
label, split) and Subj as `subj.parquet` (text, label).
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

TRAIN, VALIDATION = 10_000, 500
WORDS = 32  # tokens of a sentence that are read
MNIST_CONFUSIONS = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}  # the usual pairs that look alike


@dataclass(frozen=True)
class Data:
    """Inputs and clean labels of three splits, and what KNN-Shapley measures distances in.

    train, validation, test: (inputs, labels). features: of train and of validation.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor]
    classes: int
    vocabulary: int = 0


class BagOfEmbeddings(nn.Module):
    """Mean of word embeddings, one hidden layer; word 0 is padding."""

    def __init__(self, vocabulary: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, classes))

    def forward(self, words: Tensor) -> Tensor:
        there = (words > 0).unsqueeze(-1).float()
        mean = (self.embed(words) * there).sum(1) / there.sum(1).clamp(min=1)
        out: Tensor = self.head(mean)
        return out


def model(kind: str, data: Data) -> nn.Module:
    """An untrained model."""
    if kind == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.GELU(), nn.Linear(128, data.classes)
        )
    if kind == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(16 * 49, data.classes),
        )
    return BagOfEmbeddings(data.vocabulary, data.classes)


def mnist(folder: Path, seed: int) -> Data:
    """10,000 training and 500 validation images, drawn by seed; the official test set."""

    def read(part: str) -> tuple[Tensor, Tensor]:
        table = pl.read_parquet(folder / f"mnist_{part}.parquet")
        pixels = np.frombuffer(b"".join(table["image"].to_list()), dtype=np.uint8).copy()
        images = torch.from_numpy(pixels).view(-1, 1, 28, 28).float() / 255
        return (images - 0.1307) / 0.3081, torch.tensor(table["label"].to_list())

    images, labels = read("train")
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, validation = rows[:TRAIN], rows[TRAIN : TRAIN + VALIDATION]
    flat = images.flatten(1)
    return Data(
        (images[train], labels[train]),
        (images[validation], labels[validation]),
        read("test"),
        (flat[train], flat[validation]),
        classes=10,
    )


def text(folder: Path, name: str, seed: int) -> Data:
    """TREC (its own test set) or Subj (2,000 held out); 500 training sentences validate."""
    table = pl.read_parquet(folder / f"{name}.parquet")
    names = sorted(table["label"].unique().to_list())
    labels = torch.tensor([names.index(label) for label in table["label"]])
    shuffled = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    is_test = torch.tensor((table["split"] == "test").to_list())
    if not is_test.any():
        held_out = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:2000]
        is_test[held_out] = True
    rows, test = shuffled[~is_test[shuffled]], is_test.nonzero().flatten()
    validation, train = rows[:VALIDATION], rows[VALIDATION:]
    sentences = [sentence.lower().split() for sentence in table["text"]]
    counts = Counter(word for row in train.tolist() for word in sentences[row])
    known = {word: k for k, (word, n) in enumerate(counts.most_common(), start=2) if n > 1}
    words = torch.zeros(len(table), WORDS, dtype=torch.long)
    for row, sentence in enumerate(sentences):
        found = [known.get(word, 1) for word in sentence[:WORDS]]
        words[row, : len(found)] = torch.tensor(found)
    features = _latent(table["text"].to_list(), train)
    return Data(
        (words[train], labels[train]),
        (words[validation], labels[validation]),
        (words[test], labels[test]),
        (features[train], features[validation]),
        classes=len(names),
        vocabulary=len(known) + 2,
    )


def corrupt(labels: Tensor, noise: str, classes: int, seed: int) -> Tensor:
    """Labels with `uniform:SHARE` or `asymmetric:SHARE` of them wrong.

    Uniform: to any other class. Asymmetric: to the class it is mistaken for (on
    ten classes MNIST's pairs, otherwise the next), the others staying.
    """
    kind, share = noise.split(":")
    generator = torch.Generator().manual_seed(1000 + seed)
    hit = torch.rand(len(labels), generator=generator) < float(share)
    if kind == "uniform":
        other = (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes
    elif classes == 10:
        other = torch.tensor([MNIST_CONFUSIONS.get(int(label), int(label)) for label in labels])
    else:
        other = (labels + 1) % classes
    return torch.where(hit, other, labels)


def _latent(sentences: list[str], train: Tensor) -> Tensor:
    """Latent semantic analysis, 64 numbers a sentence: distances that know no label."""
    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    vectors.fit([sentences[row] for row in train.tolist()])
    reduced = TruncatedSVD(64, random_state=0).fit_transform(vectors.transform(sentences))
    return torch.tensor(reduced, dtype=torch.float32)
