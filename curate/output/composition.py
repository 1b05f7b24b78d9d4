"""What was kept, by label, by other columns of few values, and by the length of texts."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from curate.output.rows import in_order, in_words
from curate.recipe import Recipe

FEW = 12
"""Values of a column that are worth a line each; of labels, any number."""
BINS = 8
COUNTED = ("string", "large_string", "bool", "int", "uint", "float")
Parts = list[dict[str, Any]]


def composition(table: Dataset, kept: Any, recipe: Recipe | None) -> dict[str, Parts]:
    """Candidates and kept rows by what they are, for `provenance.json`.

    Args:
        table: all candidates. kept: which of them are, bool, shape (N,).

    Returns:
        name of a column, or `characters` -> a line of value, candidates and kept for each value.
    """
    mask, parts = np.asarray(kept, dtype=bool), dict[str, Parts]()
    features = table.features  # made anew each time it is asked for
    order = in_order(features, recipe)
    planted = [f"{name}_clean" for name in order.labels]
    for name in [*order.labels, *(name for name in order.others if name not in planted)]:
        feature, is_label = features[name], name in order.labels
        plain = isinstance(feature, datasets.ClassLabel | datasets.Value)
        if not plain or not feature.dtype.startswith(COUNTED):
            continue
        column = _column(table, name)
        distinct = pc.count_distinct(column, mode="all").as_py()
        if "float" in feature.dtype and is_label:
            parts[name] = _by_size(column.to_numpy(), mask)
        elif (is_label and distinct <= len(column) / 2) or 2 <= distinct <= FEW:
            values = column.to_pylist()
            if isinstance(feature, datasets.ClassLabel) or feature.dtype == "bool":
                values = [None if v is None or v < 0 else in_words(v, feature) for v in values]
            parts[name] = _by_value(values, mask)
    if order.texts:
        lengths = sum(_lengths(table, name) for name in order.texts)
        parts["characters"] = _by_doubling(lengths, mask)
    return parts


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


def _by_value(values: Sequence[Any], kept: NDArray[np.bool_]) -> Parts:
    distinct = sorted(set(values), key=lambda value: (value is None, value))
    places = {value: place for place, value in enumerate(distinct)}
    names = ["none" if value is None else str(value) for value in distinct]
    return _parts(names, np.array([places[value] for value in values]), kept)


def _by_size(numbers: NDArray[Any], kept: NDArray[np.bool_]) -> Parts:
    """Numbers in bins of equal width."""
    edges = np.linspace(numbers.min(), numbers.max(), BINS + 1)
    if edges[0] == edges[-1]:
        return []
    bins = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, BINS - 1)
    return _parts([f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)], bins, kept)


def _by_doubling(lengths: NDArray[Any], kept: NDArray[np.bool_]) -> Parts:
    """Lengths in bins of which each is twice as wide as the one before."""
    powers = np.array([int(max(length, 1)).bit_length() - 1 for length in lengths])
    low = int(powers.min())
    names = [f"{2**p:,} to {2 ** (p + 1) - 1:,}" for p in range(low, int(powers.max()) + 1)]
    return _parts(names, powers - low, kept)


def _parts(names: Sequence[str], places: NDArray[Any], kept: NDArray[np.bool_]) -> Parts:
    """A line for each of the names; places: of every row among them."""
    counts = [np.bincount(rows, minlength=len(names)).tolist() for rows in (places, places[kept])]
    return [
        {"value": name, "candidates": candidates, "kept": of_kept}
        for name, candidates, of_kept in zip(names, *counts, strict=True)
    ]
