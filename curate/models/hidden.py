"""What a model, an objective and their hooks remember beside parameters: found and put back.

Attributes, buffers that are assigned anew, counters in closures, generators of random numbers: a
pass that is not the loop's own must leave all of it as it was.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from sys import stdlib_module_names
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from curate.models.randomness import Source, source_of, undisturbed

NOT_THE_USERS = stdlib_module_names - {"__main__"} | {
    *("accelerate", "bitsandbytes", "curate", "datasets", "lightning", "lightning_fabric"),
    *("numpy", "peft", "polars", "pyarrow", "pytorch_lightning", "torch", "transformers"),
}
"""Packages whose objects are not looked into, but for modules, loaders and their samplers."""
PLAIN = (int, float, str, tuple, type(None))
"""Kinds of values that are changed by putting others in their place."""
HOLDS_NOTHING = (bool, int, float, str, type(None))
"""Kinds of values that are not looked into: most of what a module has."""
LONGEST = 1000
"""Entries of a container that is looked into and put back; longer ones hold data."""


class Place(NamedTuple):
    """Something that can change: `read` copies what it holds, `write` puts such a copy back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]

    def changed(self, before: Any) -> list[str]:
        """The names of what is not as it was."""
        now = self.read()
        if isinstance(now, dict):
            if [*now] == [*before] and all(map(is_, now.values(), before.values())):
                return []
            return [
                _joined(self.name, key)
                for key in {**before, **now}
                if key not in now or key not in before or now[key] is not before[key]
            ]
        if isinstance(now, np.ndarray):
            return [] if now.tobytes() == before.tobytes() else [self.name]
        if isinstance(now, Tensor):
            return [] if torch.equal(now, before) else [self.name]
        if isinstance(now, list | set | deque):
            same = len(now) == len(before) and {*map(id, now)} == {*map(id, before)}
            return [] if same else [self.name]
        return [] if now is before or (isinstance(now, int) and now == before) else [self.name]


class Hidden:
    """What can be reached from some objects and changed, beside parameters.

    sources: generators of random numbers. large: tensors that are not put back, with their names:
    parameters, what has a gradient, and those of more than `LONGEST` numbers.
    """

    def __init__(self, *roots: Any) -> None:
        self.sources: list[Source] = []
        self.large: list[tuple[str, Tensor]] = []
        self._places: list[Place] = []
        self._roots = {*map(id, roots)}
        seen: dict[int, Any] = {}  # the objects themselves, so that no other gets the same id
        todo = [("", root) for root in roots]
        while todo:
            name, value = todo.pop()
            if id(value) not in seen and not isinstance(value, HOLDS_NOTHING):
                seen[id(value)] = value
                todo += self._enter(name, value)

    def snapshot(self) -> Callable[[], None]:
        """What makes all of it, but for generators, what it is now."""
        return partial(_write_changed, self._read())

    @contextmanager
    def put_back(self) -> Iterator[Callable[[], list[str]]]:
        """A block after which all is as it was; yields what gives the names of what changed."""
        pairs = self._read()
        try:
            with undisturbed(self.sources):
                yield lambda: [name for place, value in pairs for name in place.changed(value)]
        finally:
            _write_changed(pairs)

    def _read(self) -> list[tuple[Place, Any]]:
        return [(place, place.read()) for place in self._places]

    def _enter(self, name: str, value: Any) -> list[tuple[str, Any]]:
        """Note what it is; its parts by name, to be looked into."""
        if isinstance(value, Tensor):
            self._enter_tensor(name, value)
        elif isinstance(value, FunctionType):
            return self._enter_function(value)
        elif isinstance(value, MethodType):
            return [(name, value.__self__), (name, value.__func__)]
        elif isinstance(value, partial):
            return [(name, part) for part in (value.func, value.args, value.keywords)]
        elif isinstance(value, tuple):
            return [(name, part) for part in value[:LONGEST]]
        elif isinstance(value, dict | list | set | deque | np.ndarray):
            return self._enter_container(name, value)
        elif isinstance(value, nn.Module):
            parts = self._enter_container(name, vars(value))
            parts += self._enter_class(type(value))
            return [(key, part) for key, part in parts if not (isinstance(part, dict) and not part)]
        elif (source := source_of(value)) is not None:
            self.sources.append(source)
        elif hasattr(value, "__dict__") and (id(value) in self._roots or _is_the_users(value)):
            return [*self._enter_container(name, vars(value)), *self._enter_class(type(value))]
        elif isinstance(value, DataLoader | Sampler | Dataset):
            return [*vars(value).items()]
        return []

    def _enter_tensor(self, name: str, value: Tensor) -> None:
        if isinstance(value, nn.Parameter) or value.numel() > LONGEST or value.requires_grad:
            self.large.append((name, value))
        else:
            self._places.append(Place(name, value.clone, partial(_overwrite, value)))

    def _enter_container(self, name: str, value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, np.ndarray):
            if value.size <= LONGEST and value.dtype != object and value.flags.writeable:
                self._places.append(Place(name, value.copy, partial(value.__setitem__, ...)))
            return []
        if len(value) > LONGEST:
            if isinstance(value, list):  # a log, which grows
                self._places.append(Place(name, value.__len__, partial(_shorten, value)))
            return []
        self._places.append(Place(name, value.copy, partial(_refill, value)))
        if isinstance(value, dict):
            return [(_joined(name, key), part) for key, part in value.items()]
        return [(name, part) for part in value]

    def _enter_class(self, kind: type) -> list[tuple[str, Any]]:
        """The methods of the user's own class, and its attributes, which instances may share."""
        if not _is_the_users(kind):
            return []
        own = {key: part for key, part in vars(kind).items() if not key.startswith("__")}
        plain = [key for key, part in own.items() if isinstance(part, PLAIN)]
        if plain:
            read, write = partial(_some_of, kind, plain), partial(_set_all, kind)
            self._places.append(Place(kind.__name__, read, write))
        return [*own.items()]

    def _enter_function(self, function: FunctionType) -> list[tuple[str, Any]]:
        code, cells = function.__code__, function.__closure__ or ()
        parts = dict(zip(code.co_freevars, map(_content, cells), strict=True))
        for name, cell in zip(code.co_freevars, cells, strict=True):
            write = partial(setattr, cell, "cell_contents")
            self._places.append(Place(name, partial(_content, cell), write))
        if _is_the_users(function):
            known = function.__globals__
            used = [name for name in code.co_names if name in known]
            parts |= {name: known[name] for name in used}
            read = partial(_some, known, used)
            self._places.append(Place("", read, known.update))
        return [*parts.items()]


def _write_changed(pairs: list[tuple[Place, Any]]) -> None:
    for place, value in pairs:
        if place.changed(value):
            place.write(value)


def _is_the_users(value: Any) -> bool:
    if isinstance(value, SimpleNamespace):
        return True
    named = value if isinstance(value, FunctionType | type) else type(value)
    return str(named.__module__).partition(".")[0] not in NOT_THE_USERS


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def _some(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _some_of(kind: type, names: list[str]) -> dict[str, Any]:
    return {name: vars(kind)[name] for name in names if name in vars(kind)}


def _set_all(kind: type, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(kind, name, value)


def _shorten(log: list[Any], length: int) -> None:
    del log[length:]


def _refill(container: Any, content: Any) -> None:
    """Make a container hold what it held, without emptying a dictionary on the way."""
    if isinstance(container, list | deque):
        container.clear()
        container.extend(content)
        return
    for entry in {*container} - {*content}:
        container.pop(entry) if isinstance(container, dict) else container.discard(entry)
    if isinstance(container, set):
        container.update(content)
        return
    for key, value in content.items():  # one by one: a Counter's own update adds
        container[key] = value


def _overwrite(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value)


def _joined(name: str, key: Any) -> str:
    """The name of a part; the dictionaries that a module keeps its parts in have none."""
    if key in ("_buffers", "_modules", "_parameters"):
        return name
    return f"{name}.{key}" if name else str(key)
