"""The settings of the tuning benchmark: what is learnt, how noisy it is, and the grid.

Digits come with scikit-learn; MNIST is read from `mnist_train.parquet` and
`mnist_test.parquet` (image: 784 bytes, label) in a folder of yours.
"""

from pathlib import Path
from typing import Any

import polars as pl
import torch
from sklearn.datasets import load_digits

from curate.pipeline.job import Job, prepare
from curate.recipe import Recipe, check_recipe

HORIZONS = [1, 4, 8, 16, 32, "full"]
RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
SETTINGS = [
    (data, model, noise)
    for data, noise in (("digits", 0.1), ("digits", 0.4), ("mnist", 0.4))
    for model in ("mlp", "cnn")
]
ROWS = {"train": 2000, "validation": 1000, "test": 5000}
KEEP = {0.1: 0.8, 0.4: 0.5}
MODELS = {
    ("digits", "mlp"): {"kind": "mlp", "hidden": [64]},
    ("digits", "cnn"): {"kind": "cnn", "channels": [8, 16]},
    ("mnist", "mlp"): {"kind": "mlp", "hidden": [32]},
    ("mnist", "cnn"): {"kind": "cnn", "channels": [4, 8]},
}


def recipe(data: str, model: str, noise: float, seed: int, folder: Path) -> Recipe:
    """Splits, wrong labels and initial weights are drawn by seed; the learning rate is 3e-3."""
    if data == "digits":
        source = digits() | {"validation": {"fraction": 0.35}, "test": {"fraction": 0.3}}
        shape, epochs, batch, judging = [8, 8], 8, 64, 0.6
    else:
        source = mnist(folder, seed)
        shape, epochs, batch, judging = [28, 28], 4, 100, 0.75
    return check_recipe(
        {
            "data": source
            | {
                "columns": {"features": ["image"], "label": "label", "image_shape": shape},
                "standardize": True,
                "seed": seed,
                "label_noise": {"fraction": noise, "seed": seed},
            },
            "model": MODELS[data, model],
            "training": {
                "epochs": epochs,
                "batch_size": batch,
                "seed": seed,
                "optimizer": {"kind": "adamw", "lr": 3e-3},
            },
            "selection": {"horizon": 16, "keep": {"fraction": KEEP[noise]}},
            "tune": {"validation": judging, "horizons": HORIZONS, "learning_rates": RATES},
        }
    )


def digits() -> dict[str, Any]:
    """Digits as images of 8 x 8 bytes, in a file beside the results."""
    path = Path("digits.parquet")
    if not path.exists():
        table = load_digits()
        images = [bytes(image.astype("uint8")) for image in table.images * 15]
        pl.DataFrame({"image": images, "label": table.target}).write_parquet(path)
    return {"train": str(path)}


def mnist(folder: Path, seed: int) -> dict[str, Any]:
    """Parts of MNIST drawn by seed, as files beside the results: training images for candidates
    and validation, test images for the test."""
    made = {}
    train = pl.read_parquet(folder / "mnist_train.parquet").sample(
        ROWS["train"] + ROWS["validation"], seed=seed, shuffle=True
    )
    parts = {
        "train": train[: ROWS["train"]],
        "validation": train[ROWS["train"] :],
        "test": pl.read_parquet(folder / "mnist_test.parquet").sample(ROWS["test"], seed=seed),
    }
    for name, table in parts.items():
        path = Path(f"mnist-{name}-{seed}.parquet")
        if not path.exists():
            table.write_parquet(path)
        made[name] = str(path)
    return made


def job(data: str, model: str, noise: float, seed: int, folder: Path) -> Job:
    return prepare(recipe(data, model, noise, seed, folder), torch.device("cpu"))
