"""Label columns: classes as 0..C-1, numbers as floats, and planted noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from curate.datasets.columns import holds_strings, read_features, refuse_nulls, require_columns
from curate.errors import DataError

EXACT = 2**53
"""From here on a float may stand for another whole number."""


@dataclass(frozen=True)
class Classes:
    """The classes of a label column and how its values map to 0..C-1.

    count: C. names: of the classes in the order of their ids, which say what a class is wherever
    it has a name; None if the column holds nothing but ids. numbers: the names that numbers stand
    for, in the order of a ClassLabel; None if the column holds no numbers.
    """

    count: int
    names: tuple[str, ...] | None = None
    numbers: tuple[str, ...] | None = None


def find_classes(
    data: Dataset,
    name: str,
    source: str,
    count: int | None = None,
    ids_of: Mapping[str, int] | None = None,
) -> Classes:
    """The classes of label column `name`: those of a ClassLabel, its strings, or its ints.

    Int labels, which may be written as floats, must be 0..C-1 with none left out, unless `count`
    says how many there are. Names are numbered as in the ClassLabel or the alphabet, or as the
    model does that has learned them.

    Args:
        ids_of: the numbers that the model has for its names of classes.
    """
    values = _whole(_values(data, name, source))
    feature = data.features[name]
    if isinstance(feature, datasets.ClassLabel):
        names = _names_of(feature)
        if names is None:
            return Classes(int(feature.num_classes))
        ordered = _numbered(names, ids_of or {})
        return Classes(len(ordered), ordered, numbers=names)
    single = values.ndim == 1 and isinstance(feature, datasets.Value)  # no lists, no mappings
    if not single or not (values.dtype.kind in "biu" or holds_strings(feature)):
        raise DataError(
            f"{source}: column {name} holds {feature}; class labels must be ints, strings or "
            f"ClassLabel (objective regression takes numbers){_of_two_kinds(values)}."
        )
    if holds_strings(feature):
        names = _numbered(tuple(sorted(set(values.tolist()))), ids_of or {})
        return Classes(len(names), names)
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
    values, feature = _whole(_values(data, name, source)), data.features[name]
    whole = values.dtype.kind in "biu"
    reason = f"but labels must be 0..{classes.count - 1}"
    if classes.names is not None:
        ids_of = {word: index for index, word in enumerate(classes.names)}
        words = _names_of(feature) or classes.numbers
        if whole and words is not None:  # of a ClassLabel here, or in the training data
            ids_of = {str(number): ids_of.get(word, -1) for number, word in enumerate(words)}
        ids = np.array([ids_of.get(str(value), -1) for value in values.tolist()])
        reason = "a label that the training data does not have"
    elif whole:
        ids = values.astype(np.int64)
    else:
        raise DataError(f"{source}: column {name} must hold ints but holds {feature}.")
    outside = (ids < 0) | (ids >= classes.count)
    if outside.any():
        row = int(np.argmax(outside))
        value = values.tolist()[row]
        if isinstance(feature, datasets.ClassLabel) and 0 <= value < feature.num_classes:
            value = feature.int2str(value)
        raise DataError(f"{source}: column {name} is {value!r} at row {row}, {reason}.")
    return torch.from_numpy(ids)


def _names_of(feature: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel's numbers; None without, or where they are only numbers again."""
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    return None if names == tuple(map(str, range(len(names)))) else names


def _numbered(names: tuple[str, ...], ids_of: Mapping[str, int]) -> tuple[str, ...]:
    """All names in the order of their ids: those that a model gives, and the others as they come.

    Its capitals do not matter where they tell no two names apart. Names that are the model's alone
    are classes, too. It has no say where it knows none of the names, or has fewer classes.
    """
    ids = _as_called(names, ids_of)
    own = {word: ids[word] for word in names if word in ids}
    if not own or sorted(ids.values()) != [*range(len(ids))] or len(ids) < len(names):
        return names
    ordered = {number: word for word, number in ids.items()}
    others = [word for word in names if word not in ids]
    free = [number for number in sorted(ordered) if ordered[number] not in own]
    return tuple(
        word for _, word in sorted({**ordered, **dict(zip(free, others, strict=False))}.items())
    )


def _as_called(names: Sequence[str], ids_of: Mapping[str, int]) -> dict[str, int]:
    """A model's names and ids, a name written as in the data if only capitals differ."""
    if any(name in ids_of for name in names):
        return dict(ids_of)
    written = {name.casefold(): name for name in names}
    if len(written) < len(names) or len({word.casefold() for word in ids_of}) < len(ids_of):
        return dict(ids_of)
    return {written.get(word.casefold(), word): number for word, number in ids_of.items()}


def _of_two_kinds(values: np.ndarray[Any, Any]) -> str:
    """Where the second kind of value is, if a column has several."""
    kinds = [type(value) for value in values.tolist()]
    row = next((row for row, kind in enumerate(kinds) if kind is not kinds[0]), None)
    return "" if row is None else f", but rows 0 and {row} are of two kinds"


def _values(data: Dataset, name: str, source: str) -> np.ndarray[Any, Any]:
    """A column without nulls as `datasets` makes it NumPy; floats too large for float32 are inf."""
    refuse_nulls(data, name, source)
    with np.errstate(over="ignore"):
        values: np.ndarray[Any, Any] = data.select_columns(name).with_format("numpy")[:][name]
    return values


def _whole(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats as ints if all of them are whole numbers, as classes are beside what was missing."""
    if values.dtype.kind != "f" or not (np.abs(values) < EXACT).all():
        return values
    whole = values.astype(np.int64)
    return whole if (whole == values).all() else values


def read_numbers(
    data: Dataset, name: str, source: str, dtype: torch.dtype, *, keep_ints: bool = False
) -> Tensor:
    """Label column `name` as numbers, shape (N,) or, for lists, (N, k).

    They become `dtype`, except that `keep_ints` leaves whole numbers as int64.
    """
    require_columns(data, [name], source)
    ints = keep_ints and getattr(data.features[name], "dtype", "").startswith(("int", "uint"))
    dtype = torch.int64 if ints else dtype
    return read_features(data, [name], source, dtype=dtype).flatten(1).squeeze(1)


def holds_names(data: Dataset, name: str) -> bool:
    """Whether a label column says by itself that it holds classes: strings or ClassLabel."""
    feature = data.features[name]
    return isinstance(feature, datasets.ClassLabel) or holds_strings(feature)


class PlantedNoise(NamedTuple):
    """Data with wrong labels on purpose; `noisy` says where, shape (N,), bool."""

    data: Dataset
    noisy: Tensor


def plant_label_noise(
    data: Dataset, name: str, source: str, classes: Classes, *, fraction: float, seed: int
) -> PlantedNoise:
    """Give `fraction` of the rows another class, uniformly among the others.

    The column `name` holds the labels to train on; `<name>_clean` (as before)
    and `<name>_noisy` (bool) are added for readers of the result. Nothing
    that scores reads them.
    """
    if classes.count < 2:
        raise DataError(f"{source}: column {name} has one class; label noise needs two.")
    added = {f"{name}_clean": data.features[name], f"{name}_noisy": datasets.Value("bool")}
    if classes.names and classes.numbers and len(classes.numbers) < classes.count:
        raise DataError(
            f"{source}: column {name} numbers {len(classes.numbers)} classes, but the model has "
            f"{classes.count}, which label noise draws from; make the labels strings."
        )
    for column in added:
        if column in data.column_names:
            raise DataError(f"{source}: label noise adds column {column}, which is there already.")
    clean = read_classes(data, name, source, classes).numpy()
    rng = np.random.default_rng(seed)
    noisy = np.zeros(len(data), dtype=bool)
    noisy[rng.permutation(len(data))[: round(fraction * len(data))]] = True
    shifted = (clean + rng.integers(1, classes.count, size=len(data))) % classes.count
    ids = np.where(noisy, shifted, clean)

    values = _cells(data.features[name], classes, ids)
    table: pa.Table = data.with_format("arrow")[:]
    position, before = table.column_names.index(name), table.column(name)
    table = table.set_column(position, name, pa.array(values, type=before.type))
    table = table.append_column(f"{name}_clean", before)
    table = table.append_column(f"{name}_noisy", pa.array(noisy))
    info = datasets.DatasetInfo(features=datasets.Features({**data.features, **added}))
    return PlantedNoise(Dataset(table, info=info), torch.from_numpy(noisy))


def _cells(feature: Any, classes: Classes, ids: np.ndarray[Any, Any]) -> Any:
    """What the training column holds for class ids; the inverse of `read_classes`."""
    if classes.names is None:
        return ids
    names = [classes.names[i] for i in ids]
    return names if classes.numbers is None else [feature.str2int(name) for name in names]
