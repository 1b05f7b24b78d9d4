"""What was kept, by label, by other columns of few values, and by the length of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from curate.output.rows import in_order, in_words
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

    def parts(self, names: Sequence[str], places: NDArray[Any]) -> Parts:
        """A line for each of the names; places: of every row among them."""
        count = len(names)
        sums = {
            "candidates": np.bincount(places, minlength=count),
            "kept": np.bincount(places[self.kept], minlength=count),
        }
        if self.tokens is not None:
            of_kept = np.where(self.kept, self.tokens, 0)
            for name, sizes in (("tokens", self.tokens), ("tokens_kept", of_kept)):
                sums[name] = np.bincount(places, sizes, count).astype(np.int64)
            sums["tokens_squared"] = np.bincount(places, np.square(1.0 * self.tokens), count)
        columns = {name: numbers.tolist() for name, numbers in sums.items()}
        if self.influence is not None:
            judged = self.seen > 0
            columns |= _means(places[judged], self.influence[judged], count)
        lines = zip(names, *columns.values(), strict=True)
        return [dict(zip(("value", *columns), line, strict=True)) for line in lines]


def composition(table: Dataset, judged: Judged, recipe: Recipe | None) -> dict[str, Parts]:
    """Candidates and kept rows by what they are, for `provenance.json`.

    Args:
        table: all candidates. judged: what became of them.

    Returns:
        name of a column, or `characters` -> a line for each value: `value`, `candidates`, `kept`;
        with influences their mean over the rows judged and its standard error, `influence` and
        `influence_error`, None where it has too few; with tokens `tokens`, `tokens_kept` and
        `tokens_squared`, the sum of the rows' squares.
    """
    parts = dict[str, Parts]()
    features = table.features  # made anew each time it is asked for
    order = in_order(features, recipe)
    planted = [f"{name}_clean" for name in order.labels]
    others = [name for name in order.others if name not in planted]
    if recipe is None:  # which columns are read is not known: texts of few values are no inputs
        others = [name for name in order.inputs if _names_something(features[name])]
    for name in [*order.labels, *others]:
        feature, is_label = features[name], name in order.labels
        plain = isinstance(feature, datasets.ClassLabel | datasets.Value)
        if not plain or not feature.dtype.startswith(COUNTED):
            continue
        column = _column(table, name)
        if "float" in feature.dtype and is_label:
            parts[name] = _by_size(column.to_numpy(), judged)
        elif _is_worth_lines(column, is_label=is_label, is_float="float" in feature.dtype):
            parts[name] = _by_value(column, feature, judged)
    if order.texts:
        lengths = sum(_lengths(table, name) for name in order.texts)
        parts["characters"] = _by_doubling(lengths, judged)
    return parts


def _names_something(feature: Any) -> bool:
    dtype = getattr(feature, "dtype", None)
    return isinstance(feature, datasets.ClassLabel) or dtype in ("string", "large_string", "bool")


def _is_worth_lines(column: Any, *, is_label: bool, is_float: bool) -> bool:
    """Whether a column has few values; told by its first rows where it has many."""
    rows = len(column)
    if is_label:
        most = max(FEW, rows // 2)
    else:
        most = FEW if is_float else max(FEW, min(MOST, rows // EACH))
    if pc.count_distinct(column[: 10 * MOST], mode="all").as_py() > most:
        return False
    distinct = pc.count_distinct(column, mode="all").as_py()
    return bool((1 if is_label else 2) <= distinct <= most)


def _column(table: Dataset, name: str) -> Any:
    return table.select_columns([name]).with_format("arrow")[:][name]


def _lengths(table: Dataset, name: str) -> Any:
    """The characters of each text, or conversation."""
    if getattr(table.features[name], "dtype", None) in ("string", "large_string"):
        return pc.fill_null(pc.utf8_length(_column(table, name)), 0).to_numpy()
    rows = table.select_columns([name]).with_format(None)[:][name]
    return np.array([sum(_characters(turn.get("content")) for turn in row or []) for row in rows])


def _characters(content: Any) -> int:
    """The characters of what is said in a turn: of a text, or of all parts that are."""
    texts = content if isinstance(content, list) else [{"text": content}]
    return sum(len(part["text"]) for part in texts if isinstance(part.get("text"), str))


def _by_value(column: Any, feature: Any, judged: Judged) -> Parts:
    """Values by name, those that are missing as `none`."""
    encoded = column.dictionary_encode(null_encoding="encode").combine_chunks()
    values = encoded.dictionary.to_pylist()
    named = isinstance(feature, datasets.ClassLabel) or feature.dtype == "bool"
    if named:
        values = [None if v is None or v < 0 else in_words(v, feature) for v in values]
    distinct = sorted(set(values), key=lambda value: (value is None, value))
    names = list(dict.fromkeys("none" if value is None else str(value) for value in distinct))
    place = {name: k for k, name in enumerate(names)}
    places = np.array([place["none" if value is None else str(value)] for value in values])
    return judged.parts(names, places[encoded.indices.to_numpy()])


def _by_size(numbers: NDArray[Any], judged: Judged) -> Parts:
    """Numbers in bins of equal width."""
    edges = np.linspace(numbers.min(), numbers.max(), BINS + 1)
    if edges[0] == edges[-1]:
        return []
    bins = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, BINS - 1)
    return judged.parts([f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)], bins)


def _by_doubling(lengths: NDArray[Any], judged: Judged) -> Parts:
    """Lengths in bins of which each is twice as wide as the one before."""
    powers = np.array([int(max(length, 1)).bit_length() - 1 for length in lengths])
    low = int(powers.min())
    names = [f"{2**p:,} to {2 ** (p + 1) - 1:,}" for p in range(low, int(powers.max()) + 1)]
    return judged.parts(names, powers - low)


def _means(places: NDArray[Any], values: NDArray[Any], count: int) -> dict[str, list[float | None]]:
    """The mean of the values at each place, and its standard error."""
    rows = np.bincount(places, minlength=count)
    mean = np.bincount(places, values, count) / np.maximum(rows, 1)
    squares = np.bincount(places, np.square(values - mean[places]), count)
    error = np.sqrt(squares / np.maximum(rows * (rows - 1), 1))
    return {
        "influence": [m if n else None for m, n in zip(mean.tolist(), rows, strict=True)],
        "influence_error": [
            e if n > 1 else None for e, n in zip(error.tolist(), rows, strict=True)
        ],
    }
