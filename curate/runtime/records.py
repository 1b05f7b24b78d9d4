"""Records of numbers, many of one kind, held as columns: 8 bytes a number, not an object each."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import Field, fields
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Records(Sequence[T], Generic[T]):
    """Instances of a dataclass of numbers and few different words, as a sequence that grows.

    None, where a field may be that, is held as NaN. Memory: 8 bytes a field and record.
    """

    def __init__(self, kind: type[T], records: Iterable[T] = ()) -> None:
        self._kind = kind
        self._fields: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        self._columns = {name: array("d") for name in self._fields}
        self._words: list[str] = []
        for record in records:
            self.append(record)

    def append(self, record: T) -> None:
        """Take in one more."""
        for name, column in self._columns.items():
            column.append(self._number(getattr(record, name)))

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        return self._kind(
            **{name: self._value(name, c[place]) for name, c in self._columns.items()}
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    def column(self, name: str) -> NDArray[np.float64]:
        """One field of all, shape (n,), in new memory."""
        return np.array(self._columns[name], dtype=np.float64)

    def columns(self) -> dict[str, Sequence[Any]]:
        """Every field of all, as columns of a table: ints, floats, words, or None."""
        return {name: [self._value(name, x) for x in c] for name, c in self._columns.items()}

    def saved(self) -> dict[str, Any]:
        """All of them, as a tree of arrays."""
        columns = {name: self.column(name) for name in self._fields}
        return {"columns": columns, "words": [*self._words]}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what was `saved`."""
        self._words = [*saved["words"]]
        columns = saved["columns"]
        self._columns = {name: array("d", columns[name].tobytes()) for name in self._fields}

    def _number(self, value: Any) -> float:
        if isinstance(value, str):
            if value not in self._words:
                self._words.append(value)
            return float(self._words.index(value))
        return float("nan") if value is None else float(value)

    def _value(self, name: str, number: float) -> Any:
        kind = self._fields[name].type
        if kind is int:
            return int(number)
        if kind is float:
            return number
        if number != number:
            return None
        return number if "float" in str(kind) else self._words[int(number)]
