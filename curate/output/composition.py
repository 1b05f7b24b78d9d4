"""What was kept, by label, by other columns of few values, and by the length of texts."""

from collections.abc import Iterator, Sequence
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

FEW = 12
"""Values of a column that are worth a line each; of labels, any number up to `MOST`."""
MOST = 10_000
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
    counts = dict[str, _Counts]()
    for name in [*order.labels, *(name for name in order.others if name not in planted)]:
        feature, is_label = features[name], name in order.labels
        plain = isinstance(feature, datasets.ClassLabel | datasets.Value)
        if not plain or not feature.dtype.startswith(COUNTED):
            continue
        most = max(FEW, min(len(table) // 2, MOST)) if is_label else FEW
        counts[name] = _Counts(feature, most)
        if "float" in feature.dtype and is_label:
            parts[name] = _by_size(table, name, mask)
    lengths = np.zeros((2, 64), dtype=np.int64)
    for first, rows in _batches(table, [*counts, *order.texts]):
        here = mask[first : first + len(rows)]
        for name, count in counts.items():
            if name not in parts:
                count.add(rows.column(name), here)
        if order.texts:
            some = sum(_lengths(table, name, first, rows) for name in order.texts)
            powers = np.frexp(np.maximum(some, 1).astype(float))[1] - 1
            lengths += [np.bincount(p, minlength=64) for p in (powers, powers[here])]
    for name, count in counts.items():
        if name in parts or count.found is None:
            continue
        if name in order.labels or len(count.found) > 1:
            parts[name] = count.lines()
    parts = {name: parts[name] for name in counts if name in parts}
    if order.texts:
        parts["characters"] = _by_doubling(lengths)
    return parts


class _Counts:
    """How often each value of a column is there, among all and among those kept.

    found: None once there are more values than `most`.
    """

    def __init__(self, feature: Any, most: int) -> None:
        self.found: dict[Any, list[int]] | None = {}
        self._feature, self._most = feature, most

    def add(self, cells: Any, kept: NDArray[np.bool_]) -> None:
        """Take in some rows."""
        for k, some in enumerate((cells, cells.filter(pa.array(kept)))):
            if self.found is None:
                return
            counted = some.value_counts()
            for value, count in zip(*(counted.field(i).to_pylist() for i in (0, 1)), strict=True):
                self.found.setdefault(value, [0, 0])[k] += count
            if len(self.found) > self._most:
                self.found = None

    def lines(self) -> Parts:
        """A line for each value, in words, in their order; what is no class comes last."""
        words = isinstance(self._feature, datasets.ClassLabel) or self._feature.dtype == "bool"
        named = dict[Any, Any]()
        for value, counts in (self.found or {}).items():
            name = value
            if words:
                name = None if value is None or value < 0 else in_words(value, self._feature)
            named[name] = np.add(named.get(name, [0, 0]), counts)
        ordered = sorted(named, key=lambda name: (name is None, name))
        names = ["none" if name is None else str(name) for name in ordered]
        return _parts(names, np.transpose([named[name] for name in ordered]))


def _batches(table: Dataset, names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Some columns batch by batch, as Arrow, and where each begins."""
    first = 0
    for rows in batches(table.select_columns([*names])) if names else ():
        yield first, rows
        first += len(rows)


def _lengths(table: Dataset, name: str, first: int, rows: Any) -> Any:
    """The characters of each text, or conversation, of some rows, which begin at `first`."""
    if getattr(table.features[name], "dtype", None) in ("string", "large_string"):
        return pc.fill_null(pc.utf8_length(rows.column(name)), 0).to_numpy()
    plain = table.select_columns([name]).with_format(None)[first : first + len(rows)][name]
    return np.array([sum(_characters(turn.get("content")) for turn in row or []) for row in plain])


def _characters(content: Any) -> int:
    """The characters of what is said in a turn: of a text, or of all parts that are."""
    texts = content if isinstance(content, list) else [{"text": content}]
    return sum(len(part["text"]) for part in texts if isinstance(part.get("text"), str))


def _by_size(table: Dataset, name: str, kept: NDArray[np.bool_]) -> Parts:
    """Numbers in bins of equal width."""
    low, high = np.inf, -np.inf
    for _, rows in _batches(table, [name]):
        numbers = rows.column(name).to_numpy()
        low, high = np.minimum(low, numbers.min()), np.maximum(high, numbers.max())
    edges = np.linspace(low, high, BINS + 1)
    if low == high:
        return []
    counts = np.zeros((2, BINS), dtype=np.int64)
    for first, rows in _batches(table, [name]):
        places = np.searchsorted(edges, rows.column(name).to_numpy(), side="right") - 1
        bins, here = np.clip(places, 0, BINS - 1), kept[first : first + len(rows)]
        counts += [np.bincount(b, minlength=BINS) for b in (bins, bins[here])]
    return _parts([f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)], counts)


def _by_doubling(counts: NDArray[Any]) -> Parts:
    """Lengths in bins of which each is twice as wide as the one before; (2, 64) of powers of 2."""
    low, *_, high = [p for p in range(64) if counts[0, p]] * 2
    names = [f"{2**p:,} to {2 ** (p + 1) - 1:,}" for p in range(low, high + 1)]
    return _parts(names, counts[:, low : high + 1])


def _parts(names: Sequence[str], counts: NDArray[Any]) -> Parts:
    """A line for each of the names; counts: of candidates and of those kept, shape (2, names)."""
    return [
        {"value": name, "candidates": candidates, "kept": of_kept}
        for name, candidates, of_kept in zip(names, *counts.tolist(), strict=True)
    ]
