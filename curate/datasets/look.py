"""What the columns of a dataset hold, and which of its rows are alike; in memory are numbers a row.

Rows are compared by hashes of 64 bits: of a million rows, two that differ are taken for one with a
chance of one in thirty million.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from curate.datasets.images import is_image_column, size_of
from curate.datasets.labels import PLAIN
from curate.datasets.rows import batches
from curate.runtime.large import large, touched

Array = np.ndarray[Any, Any]
Kind = Literal["number", "numbers", "text", "class", "image", "messages", "other"]
FEW = 100
"""Different values up to which each is counted."""
SAMPLE = 1000
"""Pictures whose sizes are looked at."""
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Column:
    """What a column holds.

    missing: rows with nothing in it, or NaN. distinct: different values. counts: rows of each, if
    they are few, the most frequent first. low, high, mean, deviation: of numbers; of texts, in
    characters, as are middle and long, which half of them, and 19 in 20, do not exceed. width: of
    lists of numbers, 0 if they differ. whole: all are whole numbers. blanks: share of texts with a
    blank. bytes: of a character, on average. sizes: of pictures, (height, width), and how many.
    """

    name: str
    kind: Kind
    missing: int = 0
    distinct: int = 0
    counts: dict[Any, int] | None = None
    low: float = 0
    high: float = 0
    mean: float = 0
    deviation: float = 0
    middle: int = 0
    long: int = 0
    width: int = 1
    whole: bool = True
    blanks: float = 0
    bytes: float = 1
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)


def look(data: Dataset) -> list[Column]:
    """Look at every column, one after the other."""
    return [_look(data, name) for name in data.column_names]


def _look(data: Dataset, name: str) -> Column:
    feature = data.features[name]
    column = Column(name, _kind(data, name, feature))
    if column.kind == "image":
        found = [*_sizes(data, name)]
        column.sizes = Counter(size for size in found if size is not None)
        column.missing = found.count(None)
        return column
    keys, counts = large(len(data), np.uint64), Counter[Any]()
    seen = Seen(len(data) if column.kind == "text" else 0)
    takes = {"number": seen.numbers, "text": seen.texts, "numbers": seen.lists}
    take = takes.get(column.kind, _nothing)
    for rows, table in batches(data.select_columns([name])):
        values = _plain(table.column(0))
        keys[rows] = _keys(values, feature)
        column.missing += values.null_count
        if len(counts) <= FEW and column.kind in ("number", "text", "class"):
            for pair in values.value_counts().to_pylist():
                counts[pair["values"]] += pair["counts"]
        take(column, values, rows)
    column.distinct = _distinct(keys) - (column.missing > 0)
    counts.pop(None, None)
    if len(counts) <= FEW:
        names = {v: feature.int2str(v) if column.kind == "class" else v for v in counts}
        column.counts = {names[value]: count for value, count in counts.most_common()}
    seen.describe(column, len(data))
    return column


class Seen:
    """What batches of a column add up to.

    lengths: of texts, shape (N,). sums: of numbers, of their squares, and how many there are.
    widths: of lists.
    """

    def __init__(self, texts: int) -> None:
        self.lengths = large(texts, np.int32)
        self.sums = np.zeros(3)
        self.widths = set[int]()
        self.blanks = self.bytes = 0

    def numbers(self, column: Column, values: pa.Array, _: slice) -> None:
        """Take numbers."""
        numbers = values.drop_null().cast(pa.float64(), safe=False).to_numpy()
        finite = numbers[np.isfinite(numbers)]
        column.missing += len(numbers) - len(finite)
        if len(finite):
            first = self.sums[0] == 0
            low, high = float(finite.min()), float(finite.max())
            column.low = low if first else min(low, column.low)
            column.high = high if first else max(high, column.high)
            column.whole &= bool((finite == np.rint(finite)).all())
            self.sums += len(finite), finite.sum(), np.square(finite).sum()

    def texts(self, _: Column, values: pa.Array, rows: slice) -> None:
        """Take texts."""
        self.lengths[rows] = pc.fill_null(pc.utf8_length(values), 0).to_numpy()
        self.blanks += pc.sum(pc.match_substring(values, " ")).as_py() or 0
        self.bytes += pc.sum(pc.binary_length(values)).as_py() or 0

    def lists(self, column: Column, values: pa.Array, _: slice) -> None:
        """Take lists of numbers."""
        self.widths.update(pc.unique(pc.list_value_length(values).drop_null()).to_pylist())
        column.missing += pc.list_flatten(values).null_count

    def describe(self, column: Column, rows: int) -> None:
        """Say it."""
        if column.kind == "number" and self.sums[0]:
            count, total, squares = self.sums
            column.mean = float(total / count)
            column.deviation = float(np.sqrt(max(0.0, squares / count - column.mean**2)))
        if column.kind == "numbers":
            column.width = self.widths.pop() if len(self.widths) == 1 else 0
        if column.kind == "text":
            self.lengths.sort()
            part = (self.lengths[round(q * (rows - 1))] for q in (0, 0.5, 0.95, 1))
            column.low, column.middle, column.long, column.high = map(int, part)
            column.blanks = self.blanks / rows
            column.bytes = self.bytes / max(1, int(self.lengths.sum()))


def row_keys(data: Dataset, names: Sequence[str]) -> Array:
    """A number for what the rows hold in some columns, the same for the same, shape (N,)."""
    found = large(len(data), np.uint64)
    features = data.features
    for rows, table in batches(data.select_columns([*names])):
        for name in names:
            own = _keys(_plain(table.column(name)), features[name])
            found[rows] = (found[rows] * MIX) ^ own
    return found


def repeated(keys: Array) -> int:
    """How many rows are as one before them."""
    return len(keys) - _distinct(keys)


def contradicting(keys: Array, labels: Array) -> int:
    """How many rows have the key of another that has another label."""
    order = np.argsort(keys, kind="stable")
    keys, labels = keys[order], labels[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    mixed = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    return int(np.diff(np.append(starts, len(keys)))[mixed].sum())


def shared(keys: Array, others: Array) -> int:
    """How many of the others are among the keys."""
    return int(np.isin(others, keys).sum())


def _kind(data: Dataset, name: str, feature: Any) -> Kind:
    if is_image_column(feature):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.Value):
        if PLAIN.fullmatch(feature.dtype):
            return "number"
        return "text" if feature.dtype in ("string", "large_string") else "other"
    cell = data.select_columns([name]).with_format(None)[0][name]
    if isinstance(cell, list) and cell and isinstance(cell[0], dict):
        return "messages" if {"role", "content"} <= cell[0].keys() else "other"
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.Value) and PLAIN.fullmatch(inner.dtype):
        return "numbers"
    return "other"


def _plain(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _keys(values: pa.Array, feature: Any) -> Array:
    """Hashes of values: of numbers as floats, of classes by their names, of what pictures hold."""
    if is_image_column(feature):
        return np.array([_content(cell) for cell in values.to_pylist()], np.uint64)
    if isinstance(feature, datasets.ClassLabel):
        names = pa.array([str(name) for name in feature.names])
        values = pc.take(names, pc.if_else(pc.less(values, 0), None, values))
    elif isinstance(feature, datasets.Value) and PLAIN.fullmatch(feature.dtype):
        values = values.cast(pa.float64(), safe=False)
    series = pl.from_arrow(values)
    assert isinstance(series, pl.Series)
    return series.hash().to_numpy()


def _content(cell: Any) -> int:
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if content is None and isinstance(cell, dict) and cell["path"]:
        content = Path(cell["path"]).read_bytes()
    touched(1)
    return int.from_bytes(hashlib.blake2b(content or b"", digest_size=8).digest())


def _sizes(data: Dataset, name: str) -> Iterator[tuple[int, int] | None]:
    """Sizes of some pictures, all over the data; of one that cannot be opened None."""
    if isinstance(data.features[name], datasets.Image):
        data = data.cast_column(name, datasets.Image(decode=False))
    for row in range(0, len(data), -(-len(data) // SAMPLE)):
        yield size_of(data.with_format(None)[row][name])


def _nothing(*_: Any) -> None:
    """Take nothing."""


def _distinct(keys: Array) -> int:
    ordered = np.sort(keys)
    return 1 + int((ordered[1:] != ordered[:-1]).sum())
