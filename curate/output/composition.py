"""What was kept, by label, by other columns of few values, and by the length of texts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from curate.output.rows import characters, in_order
from curate.recipe import Recipe

FEW = 12
"""Values of a column that are worth a line each; of labels, any number."""
BINS = 8
COUNTED = ("string", "large_string", "bool", "int", "uint", "float")


def composition(table: Dataset, kept: Any, recipe: Recipe | None) -> dict[str, Any]:
    """Candidates and kept rows by what they are, for `provenance.json`.

    Args:
        table: all candidates. kept: which of them are, bool, shape (N,).

    Returns:
        name of a column, or `characters` -> a line of value, candidates and kept for each value.
    """
    mask, found = np.asarray(kept), dict[str, list[dict[str, Any]]]()
    order = in_order(table.features, recipe)
    planted = [f"{name}_clean" for name in order.labels]
    for name in [*order.labels, *(name for name in order.others if name not in planted)]:
        feature = table.features[name]
        if not isinstance(feature, datasets.ClassLabel | datasets.Value):
            continue
        if not feature.dtype.startswith(COUNTED):
            continue
        column, is_label = _column(table, name), name in order.labels
        distinct = pc.count_distinct(column, mode="all").as_py()
        if "float" in feature.dtype and is_label:
            found[name] = _by_size(column.to_numpy(), mask)
        elif (is_label and distinct <= len(column) / 2) or 2 <= distinct <= FEW:
            values = column.to_pylist()
            if isinstance(feature, datasets.ClassLabel):
                values = [None if v is None or v < 0 else feature.int2str(v) for v in values]
            found[name] = _by_value(values, mask)
    if order.texts:
        lengths = sum(_lengths(_column(table, name)) for name in order.texts)
        found["characters"] = _by_doubling(lengths, mask)
    return found


def _column(table: Dataset, name: str) -> Any:
    return table.select_columns([name]).with_format("arrow")[:][name]


def _lengths(column: Any) -> Any:
    """Characters of each text, or conversation."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.fill_null(pc.utf8_length(column), 0).to_numpy()
    return np.array([characters(value) for value in column.to_pylist()])


def _by_value(values: Sequence[Any], kept: Any) -> list[dict[str, Any]]:
    every, own = Counter(values), Counter(v for v, k in zip(values, kept, strict=True) if k)
    names = sorted(every, key=lambda v: (v is None, isinstance(v, str), v))
    return [_line(_named(name), every[name], own[name]) for name in names]


def _by_size(numbers: Any, kept: Any) -> list[dict[str, Any]]:
    """Numbers in bins of equal width."""
    edges = np.linspace(numbers.min(), numbers.max(), BINS + 1)
    if edges[0] == edges[-1]:
        return []
    bins = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, BINS - 1)
    named = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return _binned(bins, named, kept)


def _by_doubling(lengths: Any, kept: Any) -> list[dict[str, Any]]:
    """Lengths in bins of which each is twice as wide as the one before."""
    powers = np.array([int(max(length, 1)).bit_length() - 1 for length in lengths])
    low = int(powers.min())
    named = [f"{2**p:,} to {2 ** (p + 1) - 1:,}" for p in range(low, int(powers.max()) + 1)]
    return _binned(powers - low, named, kept)


def _binned(bins: Any, names: Iterable[str], kept: Any) -> list[dict[str, Any]]:
    return [
        _line(name, int((bins == k).sum()), int((kept & (bins == k)).sum()))
        for k, name in enumerate(names)
    ]


def _named(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _line(value: str, candidates: int, kept: int) -> dict[str, Any]:
    return {"value": value, "candidates": candidates, "kept": kept}
