"""Label columns: classes as 0..C-1, numbers as floats, and planted noise."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from curate.datasets.columns import holds_strings, read_features, refuse_nulls, require_columns
from curate.datasets.files import digest, gathered
from curate.datasets.rows import batches
from curate.datasets.tensors import counted, large_tensor, parts
from curate.errors import DataError

Array = np.ndarray[Any, Any]
EXACT = 2**53
"""From here on a float may stand for another whole number."""
PLAIN = re.compile(r"bool|u?int\d+|float\d+")
"""Types that NumPy has, of `datasets.Value`."""


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
    require_columns(data, [name], source)
    feature = data.features[name]
    if isinstance(feature, datasets.ClassLabel):
        refuse_nulls(data, name, source)
        names = _names_of(feature)
        if names is None:
            return Classes(int(feature.num_classes))
        ordered = _numbered(names, ids_of or {})
        return Classes(len(ordered), ordered, numbers=names)
    present = _present(data, name, source)
    if present is None:
        raise DataError(
            f"{source}: column {name} holds {feature}; class labels must be ints, strings or "
            f"ClassLabel (objective regression takes numbers)"
            f"{_of_two_kinds(_values(data, name, source))}."
        )
    if holds_strings(feature):
        names = _numbered(tuple(present), ids_of or {})
        return Classes(len(names), names)
    if count is None:
        if present[0] >= 0 and present[-1] >= len(present):
            row = next(
                part.start + int(np.argmax(values == present[-1]))
                for part, values in _parts(data, name, source)
                if (values == present[-1]).any()
            )
            raise DataError(
                f"{source}: column {name} has {len(present)} different labels but the largest is "
                f"{present[-1]} (row {row}); labels must be "
                "0..C-1: give data.columns.classes if some are missing on purpose, or strings."
            )
        count = int(present[-1]) + 1
    return Classes(max(1, count))


def _present(data: Dataset, name: str, source: str) -> list[Any] | None:
    """The values of a label column in order; None if they are neither whole numbers nor strings."""
    found: set[Any] = set()
    for _, values in _parts(data, name, source):
        if holds_strings(data.features[name]):
            found.update(values.tolist())
        elif isinstance(data.features[name], datasets.Value) and values.dtype.kind in "biu":
            found.update(np.unique(values).tolist())
        else:
            return None
    return sorted(found)


def read_classes(data: Dataset, name: str, source: str, classes: Classes) -> Tensor:
    """Label column `name` as class ids, shape (N,), int64.

    Raises:
        DataError: a null, or a label outside the classes, with its row.
    """
    require_columns(data, [name], source)
    feature = data.features[name]
    found = large_tensor((len(data),), torch.int64)
    for part, values in _parts(data, name, source):
        ids = _ids(values, feature, classes)
        if ids is None:
            raise DataError(f"{source}: column {name} must hold ints but holds {feature}.")
        outside = (ids < 0) | (ids >= classes.count)
        if outside.any():
            row = int(np.argmax(outside))
            value = values.tolist()[row]
            if isinstance(feature, datasets.ClassLabel) and 0 <= value < feature.num_classes:
                value = feature.int2str(value)
            reason = f"but labels must be 0..{classes.count - 1}"
            if classes.names is not None:
                reason = "a label that the training data does not have"
            row += part.start
            raise DataError(f"{source}: column {name} is {value!r} at row {row}, {reason}.")
        found[part] = torch.from_numpy(ids)
    return found


def _ids(values: Array, feature: Any, classes: Classes) -> Array | None:
    """The class ids of a label column's values, -1 for none; None if they cannot be classes."""
    whole = values.dtype.kind in "biu"
    if classes.names is None:
        return values.astype(np.int64) if whole else None
    ids_of = {word: index for index, word in enumerate(classes.names)}
    words = _names_of(feature) or classes.numbers
    if whole and words is not None:  # of a ClassLabel here, or in the training data
        ids_of = {str(number): ids_of.get(word, -1) for number, word in enumerate(words)}
    return np.array([ids_of.get(str(value), -1) for value in values.tolist()])


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


def _of_two_kinds(values: Array) -> str:
    """Where the second kind of value is, if a column has several."""
    kinds = [type(value) for value in values.tolist()]
    row = next((row for row, kind in enumerate(kinds) if kind is not kinds[0]), None)
    return "" if row is None else f", but rows 0 and {row} are of two kinds"


def _values(data: Dataset, name: str, source: str) -> Array:
    """A column without nulls as `datasets` makes it NumPy; floats too large for float32 are inf."""
    refuse_nulls(data, name, source)
    with np.errstate(over="ignore"):
        values: Array = data.select_columns(name).with_format("numpy")[:][name]
    return values


def _whole(values: Array) -> Array:
    """Floats as ints if all of them are whole numbers, as classes are beside what was missing."""
    if values.dtype.kind != "f" or not (np.abs(values) < EXACT).all():
        return values
    whole = values.astype(np.int64)
    return whole if (whole == values).all() else values


def _parts(data: Dataset, name: str, source: str) -> Iterator[tuple[slice, Array]]:
    """Values of a label column and which rows they are, batch by batch; whole ones as ints."""
    feature = data.features[name]
    known = isinstance(feature, datasets.Value | datasets.ClassLabel)
    if not known or not (PLAIN.fullmatch(feature.dtype) or holds_strings(feature)):
        yield slice(0, len(data)), _whole(_values(data, name, source))
        return
    refuse_nulls(data, name, source)
    column = data.select_columns([name])

    def read() -> Iterator[tuple[slice, Array]]:
        for part, table in batches(column):
            values = table.column(0).to_numpy()
            kinds = {"i": np.int64, "u": np.int64, "f": np.float32}  # as `datasets` has them
            with np.errstate(over="ignore"):
                yield part, values.astype(kinds.get(values.dtype.kind, values.dtype), copy=False)

    whole = feature.dtype.startswith("float") and all(
        _whole(values).dtype.kind == "i" for _, values in read()
    )
    for part, values in read():
        yield part, values.astype(np.int64) if whole else values


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
    """Data with wrong labels on purpose.

    noisy: where, shape (N,), bool. ids: of the classes that the labels now say, shape (N,).
    """

    data: Dataset
    noisy: Tensor
    ids: Tensor


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
    ids, noisy = read_classes(data, name, source, classes), large_tensor((len(data),), torch.bool)
    rng = np.random.default_rng(seed)
    places = counted(len(data))
    rng.shuffle(places.numpy())
    noisy[places[: round(fraction * len(data))]] = True
    for part in parts(ids):
        shift = torch.from_numpy(rng.integers(1, classes.count, size=len(ids[part])))
        ids[part] = torch.where(noisy[part], (ids[part] + shift) % classes.count, ids[part])

    def planted(part: slice, table: pa.Table) -> dict[str, Any]:
        before = table.column(name)
        values = pa.array(cells(data.features[name], classes, ids[part].numpy()), before.type)
        marks = pa.array(noisy[part].numpy())
        return {name: values, f"{name}_clean": before, f"{name}_noisy": marks}

    return PlantedNoise(with_label_columns(data, planted, added), noisy, ids)


def with_label_columns(
    data: Dataset,
    of: Callable[[slice, pa.Table], Mapping[str, Any]],
    added: Mapping[str, Any],
) -> Dataset:
    """Data with columns replaced or added at the end, batch by batch.

    of: the columns of some rows, given which they are. added: the features of those added.
    """

    def tables() -> Iterator[tuple[str, pa.Table]]:
        for part, table in batches(data):
            there = {name: place for place, name in enumerate(table.column_names)}
            for name, values in of(part, table).items():
                if name in there:
                    table = table.set_column(there[name], name, values)
                else:
                    table = table.append_column(name, values)
            yield "", table

    ((_, table),) = gathered(tables())
    info = datasets.DatasetInfo(features=datasets.Features({**data.features, **added}))
    return Dataset(table, info=info, fingerprint=digest(table))


def cells(feature: Any, classes: Classes, ids: Array) -> Any:
    """What the training column holds for class ids; the inverse of `read_classes`."""
    if classes.names is None:
        return ids
    names = [classes.names[i] for i in ids]
    return names if classes.numbers is None else [feature.str2int(name) for name in names]
