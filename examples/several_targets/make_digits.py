"""Make digits of two kinds: most stand upright, some lie on their side; one label in five is wrong.

Writes train.parquet, test.parquet and a target of each kind, upright.parquet and lying.parquet.

    python make_digits.py [--to DIR]
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.datasets import load_digits

LYING = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the data of this example.")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent)
    folder: Path = parser.parse_args().to
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    order = rng.permutation(len(images))

    def write(name: str, rows: np.ndarray, lying: np.ndarray, wrong: np.ndarray) -> None:
        pixels = np.where(lying[:, None, None], np.rot90(images[rows], axes=(1, 2)), images[rows])
        digits = (labels[rows] + wrong * rng.integers(1, 10, len(rows))) % 10
        columns = {"pixels": pixels.reshape(len(rows), -1), "digit": digits, "lying": lying}
        Dataset.from_dict(columns).to_parquet(str(folder / f"{name}.parquet"))

    for name, rows, lying, wrong in (
        ("train", order[:1000], LYING, 0.2),
        ("test", order[1000:1400], LYING, 0.0),
        ("upright", order[1400:1600], 0.0, 0.0),
        ("lying", order[1600:], 1.0, 0.0),
    ):
        write(name, rows, rng.random(len(rows)) < lying, rng.random(len(rows)) < wrong)


if __name__ == "__main__":
    main()
