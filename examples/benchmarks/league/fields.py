"""The league's settings: data with something wrong in it, or nothing, and a recipe to train on it.

Every setting is a function of a folder of data and a split's number. It gives three tables (train,
validation, test; `broken` in train says which rows an oracle would leave out) and a recipe
without the files' names and without a selection: the product's defaults are what is tried.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

Array = np.ndarray[Any, Any]


class Setting(NamedTuple):
    """What one split of a setting is. classes: whether rows have labels that may be wrong."""

    tables: dict[str, pl.DataFrame]
    recipe: dict[str, Any]
    classes: bool = True


def digits(noise: float, data: Path, split: int) -> Setting:
    """Handwritten digits of scikit-learn, 8 x 8, a share of labels wrong at random."""
    del data
    from sklearn.datasets import load_digits

    found = load_digits()
    return _labelled(
        found.data / 16, found.target, (1078, 270, 449), noise, split,
        hidden=[64], batch_size=64, epochs=8, lr=3e-3, standardize=True,
    )  # fmt: skip


def mnist(noise: float, data: Path, split: int, *, asymmetric: bool = False) -> Setting:
    """Two thousand MNIST digits; asymmetric: a wrong label is always the next class."""
    features, labels = _mnist(data)
    return _labelled(
        features, labels, (2000, 300, 3000), noise, split, asymmetric=asymmetric,
        hidden=[128], batch_size=64, epochs=6, lr=1e-3,
    )  # fmt: skip


def domains(data: Path, split: int) -> Setting:
    """MNIST again, no label wrong; half of the candidates lie on their side, no target does."""
    features, labels = _mnist(data)
    setting = _labelled(
        features, labels, (2000, 300, 3000), 0.0, split,
        hidden=[128], batch_size=64, epochs=6, lr=1e-3,
    )  # fmt: skip
    train = setting.tables["train"]
    turned = np.random.default_rng([split, 9]).random(len(train)) < 0.5
    x = np.array(train["x"].to_list()).reshape(-1, 28, 28)
    x[turned] = np.rot90(x[turned], axes=(1, 2))
    train = train.with_columns(
        x=pl.Series(x.reshape(len(x), -1).tolist(), dtype=pl.List(pl.Float32)), broken=turned
    )
    return Setting(setting.tables | {"train": train}, setting.recipe)


def texts(name: str, label: str, noise: float, data: Path, split: int) -> Setting:
    """Short texts as 200 numbers each (tf-idf of words and pairs, by singular values)."""
    features, labels = _texts(data, name, label)
    return _labelled(
        features, labels, (3000, 450, 2000), noise, split,
        hidden=[64], batch_size=128, epochs=12, lr=1e-3, standardize=True,
    )  # fmt: skip


SETTINGS: dict[str, Callable[[Path, int], Setting]] = {
    "digits, 20 % wrong": partial(digits, 0.2),
    "digits, 40 % wrong": partial(digits, 0.4),
    "digits, none wrong": partial(digits, 0.0),
    "MNIST, 20 % wrong": partial(mnist, 0.2),
    "MNIST, 20 % asymmetric": partial(mnist, 0.2, asymmetric=True),
    "MNIST, half turned": domains,
    "TREC, 20 % wrong": partial(texts, "trec", "coarse", 0.2),
    "TREC, none wrong": partial(texts, "trec", "coarse", 0.0),
    "Subj, 20 % wrong": partial(texts, "subj", "label", 0.2),
    "Subj, none wrong": partial(texts, "subj", "label", 0.0),
}


def _labelled(
    features: Array, labels: Array, sizes: tuple[int, int, int], noise: float, split: int, *,
    hidden: list[int], batch_size: int, epochs: int, lr: float, standardize: bool = False,
    asymmetric: bool = False,
) -> Setting:  # fmt: skip
    random = np.random.default_rng(split)
    order, classes = random.permutation(len(labels)), int(labels.max()) + 1
    wrong = random.random(sizes[0]) < noise
    hops = np.ones(sizes[0], dtype=int) if asymmetric else random.integers(1, classes, sizes[0])
    tables, ends = {}, np.cumsum((0, *sizes))
    for k, part in enumerate(("train", "validation", "test")):
        rows = order[ends[k] : ends[k + 1]]
        own = labels[rows]
        columns: dict[str, Any] = {
            "x": pl.Series(features[rows].tolist(), dtype=pl.List(pl.Float32)),
            "label": np.where(wrong, (own + hops) % classes, own) if part == "train" else own,
        }
        tables[part] = pl.DataFrame(columns | ({"broken": wrong} if part == "train" else {}))
    recipe = {
        "data": {
            "columns": {"features": ["x"], "label": "label", "classes": classes},
            "standardize": standardize,
        },
        "model": {"kind": "mlp", "hidden": hidden, "activation": "gelu"},
        "training": {
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": {"kind": "adamw", "lr": lr},
        },
    }
    return Setting(tables, recipe)


@cache
def _mnist(data: Path) -> tuple[Array, Array]:
    table = pl.read_parquet(data / "mnist_train.parquet").head(20000)
    pixels = np.stack([np.frombuffer(image, dtype=np.uint8) for image in table["image"]])
    return (pixels / 255 - 0.13) / 0.31, table["label"].to_numpy().astype(int)


@cache
def _texts(data: Path, name: str, label: str) -> tuple[Array, Array]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    table = pl.read_parquet(data / f"{name}.parquet")
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2))
    found = TruncatedSVD(200, random_state=0).fit_transform(words.fit_transform(table["text"]))
    return found, np.unique(table[label].to_numpy(), return_inverse=True)[1]
