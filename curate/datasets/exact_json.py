"""JSON rows that Arrow alone would refuse or change: what is of several kinds stays what it is."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa
from datasets import Features, Value

from curate.datasets.json_files import EXACT, json_blocks, not_json
from curate.errors import MissingExtraError

Rows = list[dict[str, Any]]


@dataclass
class Kind:
    """What all values in one place of the rows are.

    words: kinds of values, by their names in Python. low, high: of whole numbers. items: what is
    in lists. keys: what is in objects. depth: 1 in a list, and one more in each object within;
    from 2 on, as in what a turn calls, objects have one order of keys, and no number another kind.
    """

    depth: int = 0
    words: set[str] = field(default_factory=set)
    low: int = 0
    high: int = 0
    items: list["Kind"] = field(default_factory=list)
    keys: dict[str, "Kind"] = field(default_factory=dict)
    orders: set[tuple[str, ...]] = field(default_factory=set)

    def see(self, value: Any) -> None:
        """Take one more value into account.

        Raises:
            UnicodeEncodeError: a string has half of a surrogate pair.
        """
        if value is None:
            return
        word = type(value).__name__
        self.words.add(word)
        if word == "int":
            self.low, self.high = min(self.low, value), max(self.high, value)
        elif word == "str":
            value.encode()
        elif word == "list":
            self.items = self.items or [Kind(max(1, self.depth))]
            for item in value:
                self.items[0].see(item)
        elif word == "dict":
            if self.depth >= 2 and len(self.orders) < 2:
                self.orders.add(tuple(value))
            inner = self.depth + (self.depth > 0)
            for key, item in value.items():
                self.keys.setdefault(key, Kind(inner)).see(item)

    def feature(self) -> Any:
        """The type of `datasets` that holds all of them as they are; None if there is none."""
        words = sorted(self.words)
        if len(self.orders) > 1 or (self.depth >= 2 and words == ["float", "int"]):
            return None
        if words == ["dict"] and self.keys:
            inner = {key: kind.feature() for key, kind in self.keys.items()}
            return None if None in inner.values() else inner
        if words == ["list"]:
            item = self.items[0].feature()
            return None if item is None else datasets.List(item)
        if words == ["float", "int"] and self.low >= -EXACT and self.high <= EXACT:
            return Value("float64")
        if words == ["int"] and not -(2**63) <= self.low <= self.high < 2**63:
            return Value("uint64") if self.low == 0 and self.high < 2**64 else None
        plain = {"bool": "bool", "int": "int64", "float": "float64", "str": "string"}
        names = [plain.get(word) for word in words] or ["null"]
        return Value(names[0]) if len(names) == 1 and names[0] else None


def exact_tables(files: Sequence[str]) -> tuple[Features, Iterator[tuple[str, pa.Table]]]:
    """What the columns of all files are, and their rows; costs two passes in Python.

    Columns of features Json are strings of JSON in the tables.

    Raises:
        DataError: a row is not JSON, or no object, or has a key twice.
    """
    seen = Kind()
    for path in files:
        for before, rows in _rows(path):
            for row, value in enumerate(rows, before):
                try:
                    seen.see(value)
                except UnicodeEncodeError as error:
                    raise not_json(path, row, error) from error
    kinds = {name: kind.feature() for name, kind in seen.keys.items()}
    columns = {name: _json() if kind is None else kind for name, kind in kinds.items()}
    return Features(columns), _tables(files, kinds)


def _tables(files: Sequence[str], kinds: dict[str, Any]) -> Iterator[tuple[str, pa.Table]]:
    stored = Features({k: Value("string") if v is None else v for k, v in kinds.items()})
    for path in files:
        for _, rows in _rows(path):
            columns = {name: [row.get(name) for row in rows] for name in kinds}
            for name in (name for name, kind in kinds.items() if kind is None):
                columns[name] = [None if v is None else _written(v) for v in columns[name]]
            yield path, pa.table(columns, schema=stored.arrow_schema.remove_metadata())


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json() -> Any:
    if not hasattr(datasets, "Json"):
        raise MissingExtraError("'datasets>=4.7'", "a column of values of several kinds")
    return datasets.Json()


def _rows(path: str) -> Iterator[tuple[int, Rows]]:
    """The rows of a file, some at a time, with the number of those before them."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    for before, block in json_blocks(path):
        rows: Rows = []
        for line in block.split(b"\n"):
            if not line.strip():
                continue
            try:
                rows.append(decoder.decode(line.decode()))
            except ValueError as error:
                raise not_json(path, before + len(rows), error) from error
        yield before, rows


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"it has two keys {twice!r} in one object")
    return found
