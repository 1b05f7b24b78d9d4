"""Label columns: classes as 0..C-1, numbers as floats, and planted noise."""

from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from curate.datasets.columns import as_numpy, read_features, refuse_nulls, require_columns
from curate.errors import DataError


@dataclass(frozen=True)
class Classes:
    """The classes of a label column and how its values map to 0..C-1.

    count: C. names: the strings in the order of their ids; None if the column holds ids.
    """

    count: int
    names: tuple[str, ...] | None = None


def find_classes(data: Dataset, name: str, source: str, count: int | None = None) -> Classes:
    """The classes of label column `name`: those of a ClassLabel, its strings, or its ints.

    Int labels must be 0..C-1 with none left out, unless `count` says how many there are.
    """
    require_columns(data, [name], source)
    refuse_nulls(data, name, source)
    feature = data.features[name]
    if isinstance(feature, datasets.ClassLabel):
        return Classes(int(feature.num_classes))
    values = as_numpy(data, name)
    single = values.ndim == 1 and isinstance(feature, datasets.Value)  # no lists, no mappings
    if not single or values.dtype.kind not in "biuUO":
        raise DataError(
            f"{source}: column {name} holds {feature}; class labels must be ints, strings or "
            "ClassLabel (objective regression takes numbers)."
        )
    if values.dtype.kind in "UO":
        return Classes(len(set(values.tolist())), tuple(sorted(set(values.tolist()))))
    if count is None:
        present = np.unique(values)
        if present[0] >= 0 and present[-1] >= len(present):
            raise DataError(
                f"{source}: column {name} has {len(present)} different labels but the largest is "
                f"{present[-1]} (row {int(np.argmax(values == present[-1]))}); labels must be "
                "0..C-1: give data.columns.classes if some are missing on purpose, or strings."
            )
        count = int(present[-1]) + 1
    return Classes(max(1, count))


def read_classes(data: Dataset, name: str, source: str, classes: Classes) -> Tensor:
    """Label column `name` as class ids, shape (N,), int64.

    Raises:
        DataError: a null, or a label outside the classes, with its row.
    """
    require_columns(data, [name], source)
    refuse_nulls(data, name, source)
    values = as_numpy(data, name)
    if classes.names is not None:
        ids = {value: index for index, value in enumerate(classes.names)}
        for row, value in enumerate(values.tolist()):
            if value not in ids:
                raise DataError(
                    f"{source}: column {name} is {value!r} at row {row}, "
                    "a label that the training data does not have."
                )
        return torch.tensor([ids[value] for value in values.tolist()])
    if values.dtype.kind not in "biu":
        raise DataError(f"{source}: column {name} must hold ints but holds {data.features[name]}.")
    outside = (values.astype(np.int64) < 0) | (values.astype(np.int64) >= classes.count)
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(
            f"{source}: column {name} is {values[row]} at row {row}, "
            f"but labels must be 0..{classes.count - 1}."
        )
    return torch.from_numpy(values.astype(np.int64))


def read_numbers(
    data: Dataset, name: str, source: str, dtype: torch.dtype, *, keep_ints: bool = False
) -> Tensor:
    """Label column `name` as numbers, shape (N,) or, for lists, (N, k).

    They become `dtype`, except that `keep_ints` leaves whole numbers as int64.
    """
    require_columns(data, [name], source)
    ints = keep_ints and getattr(data.features[name], "dtype", "").startswith(("int", "uint"))
    numbers = read_features(data, [name], source, dtype=torch.int64 if ints else dtype).flatten(1)
    return numbers.squeeze(1)


def holds_names(data: Dataset, name: str) -> bool:
    """Whether a label column says by itself that it holds classes: strings or ClassLabel."""
    feature = data.features[name]
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    )


@dataclass(frozen=True)
class PlantedNoise:
    """Data with wrong labels on purpose; `noisy` says where, shape (N,)."""

    data: Dataset
    noisy: Tensor


def plant_label_noise(
    data: Dataset, name: str, source: str, classes: Classes, *, fraction: float, seed: int
) -> PlantedNoise:
    """Give `fraction` of the rows another class, uniformly among the others.

    The column `name` holds the labels to train on; `<name>_clean` (as before)
    and `<name>_noisy` (bool) are added for whoever looks at the result. Nothing
    that scores reads them.
    """
    if classes.count < 2:
        raise DataError(f"{source}: column {name} has one class; label noise needs two.")
    for added in (f"{name}_clean", f"{name}_noisy"):
        if added in data.column_names:
            raise DataError(f"{source}: label noise adds column {added}, which is there already.")
    clean = read_classes(data, name, source, classes).numpy()
    rng = np.random.default_rng(seed)
    noisy = np.zeros(len(data), dtype=bool)
    noisy[rng.permutation(len(data))[: round(fraction * len(data))]] = True
    shifted = (clean + rng.integers(1, classes.count, size=len(data))) % classes.count
    ids = np.where(noisy, shifted, clean)

    table: pa.Table = data.with_format("arrow")[:]
    column = table.column(name)
    values = [classes.names[i] for i in ids] if classes.names is not None else ids
    features = datasets.Features(
        {
            **data.features,
            f"{name}_clean": data.features[name],
            f"{name}_noisy": datasets.Value("bool"),
        }
    )
    table = table.set_column(
        table.column_names.index(name), name, pa.array(values, type=column.type)
    )
    table = table.append_column(f"{name}_clean", column)
    table = table.append_column(f"{name}_noisy", pa.array(noisy))
    return PlantedNoise(
        Dataset(table, info=datasets.DatasetInfo(features=features)), torch.from_numpy(noisy)
    )
