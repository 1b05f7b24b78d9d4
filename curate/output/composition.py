"""What was kept, by label, by other columns of few values, and by the length of texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from curate.output.rows import in_order, in_words
from curate.output.shards import batches
from curate.recipe import Recipe

FEW, MOST, EACH = 12, 1000, 10
"""Values of a column that are worth a line each, however few rows they have; the most, where each
has so many rows on average. Of labels, any number."""
BINS = 8
COUNTED = ("string", "large_string", "bool", "int", "uint", "float")
Parts = list[dict[str, Any]]


@dataclass(frozen=True)
class Judged:
    """What became of every candidate, shapes (N,).

    kept: bool. influence: None without influences. seen: the steps that judged each, none of
    which makes an influence that does not count. tokens: None where they are not counted.
    """

    kept: NDArray[Any]
    influence: NDArray[Any] | None
    seen: NDArray[Any]
    tokens: NDArray[Any] | None = None


def composition(table: Dataset, judged: Judged, recipe: Recipe | None) -> dict[str, Parts]:
    """Candidates and kept rows by what they are, for `provenance.json`; in one pass over them.

    Args:
        table: all candidates. judged: what became of them.

    Returns:
        name of a column, or `characters` -> a line for each value: `value`, `candidates`, `kept`;
        with influences their mean over the rows judged and its standard error, `influence` and
        `influence_error`, None where it has too few; with tokens `tokens`, `tokens_kept` and
        `tokens_squared`, the sum of the rows' squares.
    """
    features = table.features  # made anew each time it is asked for
    order = in_order(features, recipe)
    planted = [f"{name}_clean" for name in order.labels]
    others = [name for name in order.others if name not in planted]
    if recipe is None:  # which columns are read is not known: texts of few values are no inputs
        others = [name for name in order.inputs if _names_something(features[name])]
    columns: dict[str, _Values | _Sizes] = {}
    for name in [*order.labels, *others]:
        feature, is_label = features[name], name in order.labels
        plain = isinstance(feature, datasets.ClassLabel | datasets.Value)
        if not plain or not feature.dtype.startswith(COUNTED):
            continue
        if "float" in feature.dtype and is_label:
            columns[name] = _Sizes(table, name, judged)
        else:
            columns[name] = _Values(feature, judged, _most(feature, len(table), is_label=is_label))
    lengths = _Sums(judged)
    for rows, cells in _batches(table, [*dict.fromkeys([*columns, *order.texts])]):
        for name, column in columns.items():
            column.add(cells.column(name), rows)
        if order.texts:
            some = sum(_lengths(table, name, rows, cells) for name in order.texts)
            lengths.add(np.frexp(np.maximum(some, 1).astype(float))[1] - 1, rows)
    parts = {}
    for name, column in columns.items():
        lines = column.lines()
        if lines is not None and (name in order.labels or len(lines) > 1):
            parts[name] = lines
    return parts | ({"characters": _by_doubling(lengths)} if order.texts else {})


def _names_something(feature: Any) -> bool:
    dtype = getattr(feature, "dtype", None)
    return isinstance(feature, datasets.ClassLabel) or dtype in ("string", "large_string", "bool")


def _most(feature: Any, rows: int, *, is_label: bool) -> int:
    """How many values of a column are worth lines."""
    if is_label:
        return max(FEW, rows // 2)
    return FEW if "float" in feature.dtype else max(FEW, min(MOST, rows // EACH))


class _Sums:
    """What became of rows, added up by where they belong, a line for each place."""

    def __init__(self, judged: Judged) -> None:
        self._judged = judged
        self._sums: dict[str, NDArray[Any]] = {}

    def add(self, places: NDArray[Any], rows: slice) -> None:
        """Take in some rows; places: of each, shape (n,), from 0."""
        judged, count = self._judged, int(places.max(initial=-1)) + 1
        kept = np.asarray(judged.kept[rows], dtype=bool)
        self._enter("candidates", np.bincount(places, minlength=count))
        self._enter("kept", np.bincount(places[kept], minlength=count))
        if judged.tokens is not None:
            tokens = judged.tokens[rows]
            self._enter("tokens", np.bincount(places, tokens, count).astype(np.int64))
            of_kept = np.bincount(places, np.where(kept, tokens, 0), count)
            self._enter("tokens_kept", of_kept.astype(np.int64))
            self._enter("tokens_squared", np.bincount(places, np.square(1.0 * tokens), count))
        if judged.influence is not None:
            seen = judged.seen[rows] > 0
            self._spread(places[seen], judged.influence[rows][seen], count)

    def lines(self, names: Sequence[str], first: int = 0) -> Parts:
        """A line for each of the names, which stand for the places from the first on."""
        sums = {name: of[first : first + len(names)] for name, of in self._sums.items()}
        columns = {name: of.tolist() for name, of in sums.items() if not name.startswith(".")}
        if ".rows" in sums:
            rows, mean, squares = (sums[name] for name in (".rows", ".mean", ".squares"))
            error = np.sqrt(squares / np.maximum(rows * (rows - 1), 1))
            both = (mean.tolist(), 0), (error.tolist(), 1)
            for name, (values, least) in zip(("influence", "influence_error"), both, strict=True):
                columns[name] = [
                    value if n > least else None for value, n in zip(values, rows, strict=True)
                ]
        lines = zip(names, *columns.values(), strict=True)
        return [dict(zip(("value", *columns), line, strict=True)) for line in lines]

    def places(self) -> NDArray[Any]:
        """Those that have rows."""
        return np.flatnonzero(self._sums["candidates"])

    def _spread(self, places: NDArray[Any], values: NDArray[Any], count: int) -> None:
        """Means and squares around them, joined as Chan, Golub and LeVeque (1983) do."""
        rows = np.bincount(places, minlength=count)
        mean = np.bincount(places, values, count) / np.maximum(rows, 1)
        squares = np.bincount(places, np.square(values - mean[places]), count)
        before, old = (self._at(name, count) for name in (".rows", ".mean"))
        both = np.maximum(before + rows, 1)
        apart = mean - old
        self._enter(".squares", squares + np.square(apart) * before * rows / both)
        self._enter(".mean", apart * rows / both)
        self._enter(".rows", rows)

    def _at(self, name: str, count: int) -> NDArray[Any]:
        found = self._sums.get(name, np.zeros(0))[:count]
        return np.pad(found, (0, count - len(found)))

    def _enter(self, name: str, values: NDArray[Any]) -> None:
        sums = self._sums.get(name, np.zeros(0, dtype=values.dtype))
        grown = np.pad(sums, (0, max(0, len(values) - len(sums))))
        grown[: len(values)] += values
        self._sums[name] = grown


class _Values:
    """A column by its values, by name, those that are missing as `none`.

    most: above so many, it has no lines.
    """

    def __init__(self, feature: Any, judged: Judged, most: int) -> None:
        self._feature, self._sums, self._most = feature, _Sums(judged), most
        self._places: dict[Any, int] | None = {}

    def add(self, cells: Any, rows: slice) -> None:
        """Take in some rows."""
        if self._places is None:
            return
        encoded = cells.dictionary_encode(null_encoding="encode").combine_chunks()
        values, feature = encoded.dictionary.to_pylist(), self._feature
        if isinstance(feature, datasets.ClassLabel) or feature.dtype == "bool":
            values = [None if v is None or v < 0 else in_words(v, feature) for v in values]
        places = [self._places.setdefault(value, len(self._places)) for value in values]
        if len(self._places) > self._most:
            self._places = None
        else:
            self._sums.add(np.array(places, dtype=np.int64)[encoded.indices.to_numpy()], rows)

    def lines(self) -> Parts | None:
        """A line for each value, in their order."""
        if self._places is None:
            return None
        names = ["none" if value is None else str(value) for value in self._places]
        lines = dict(zip(self._places, self._sums.lines(names), strict=True))
        return [lines[value] for value in sorted(lines, key=lambda value: (value is None, value))]


class _Sizes:
    """A column of numbers, in bins of equal width."""

    def __init__(self, table: Dataset, name: str, judged: Judged) -> None:
        self._sums, low, high = _Sums(judged), np.inf, -np.inf
        for _, rows in _batches(table, [name]):
            numbers = rows.column(name).to_numpy()
            low, high = np.minimum(low, numbers.min()), np.maximum(high, numbers.max())
        self._edges = np.linspace(low, high, BINS + 1)

    def add(self, cells: Any, rows: slice) -> None:
        """Take in some rows."""
        places = np.searchsorted(self._edges, cells.to_numpy(), side="right") - 1
        self._sums.add(np.clip(places, 0, BINS - 1), rows)

    def lines(self) -> Parts:
        """A line for each bin."""
        if self._edges[0] == self._edges[-1]:
            return []
        return self._sums.lines([f"{low:.3g} to {high:.3g}" for low, high in pairwise(self._edges)])


def _batches(table: Dataset, names: Sequence[str]) -> Iterator[tuple[slice, pa.Table]]:
    """Some columns batch by batch, as Arrow, and which rows they are of."""
    first = 0
    for rows in batches(table.select_columns([*names])) if names else ():
        yield slice(first, first + len(rows)), rows
        first += len(rows)


def _lengths(table: Dataset, name: str, rows: slice, cells: pa.Table) -> Any:
    """The characters of each text, or conversation, of some rows."""
    if getattr(table.features[name], "dtype", None) in ("string", "large_string"):
        return pc.fill_null(pc.utf8_length(cells.column(name)), 0).to_numpy()
    plain = table.select_columns([name]).with_format(None)[rows][name]
    return np.array([sum(_characters(turn.get("content")) for turn in row or []) for row in plain])


def _characters(content: Any) -> int:
    """The characters of what is said in a turn: of a text, or of all parts that are."""
    texts = content if isinstance(content, list) else [{"text": content}]
    return sum(len(part["text"]) for part in texts if isinstance(part.get("text"), str))


def _by_doubling(lengths: _Sums) -> Parts:
    """Lengths in bins of which each is twice as wide as the one before, by powers of 2."""
    places = lengths.places()
    low, high = int(places[0]), int(places[-1])
    names = [f"{2**p:,} to {2 ** (p + 1) - 1:,}" for p in range(low, high + 1)]
    return lengths.lines(names, low)
