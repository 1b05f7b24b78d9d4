"""Where a loop is in its loader, so that another process can find the place again."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from torch import Tensor

from curate.datasets import leaves
from curate.errors import DataError, OptionError
from curate.models.hidden import Hidden
from curate.models.randomness import Source, undisturbed, usual_sources
from curate.runtime.files import Tree

USUAL = usual_sources(torch.device("cpu"))
"""What any loader may draw from in the process that iterates it."""


class Place:
    """Counts what a loop was given of an epoch, and finds the same place in a loader anew.

    A loader that has `state_dict` and `load_state_dict` is put where it was. Any other is begun
    again, and batches that were handed out already are drawn and skipped. Generators of random
    numbers (torch's, Python's and NumPy's own, and those that the loader holds) are meanwhile
    what they were at that time, so that a sampler draws the same order; afterwards the first are
    what they were before, and those of the loader what they were when the state was taken.
    """

    def __init__(self) -> None:
        self.handed = 0
        self._loader: Any = None
        self._own: list[Source] = []
        self._began: list[Any] = []  # what sources were when the epoch began
        self._mark: tuple[Any, list[Any]] = (None, [])  # the loader and sources, before a window
        self._since = 0  # batches handed out since
        self._loaded = False
        self._passes: dict[str, Any] = {}  # what the loader had of passes before
        self._most: int | None = None
        self._ended = False  # whether the loader has no more than was drawn
        self._found: Tree = None

    def __reduce__(self) -> Any:
        return Place, ()  # a copy is nowhere yet

    def begin(
        self,
        loader: Any,
        most: int | None,
        ahead: int,
        draw: Callable[[Iterator[Any], int], list[Any]],
    ) -> tuple[Iterator[Any], list[Any]]:
        """Begin an epoch of at most so many batches, or go on in the one that was restored.

        Returns:
            The batches to come, and before them those that had been drawn `ahead` of the loop.

        Raises:
            DataError: there are fewer batches than there were.
            OptionError: the loader draws from other generators, or lost its `load_state_dict`.
        """
        known = [source.state for source in USUAL]
        self._own = [source for source in Hidden(loader).sources if source.state not in known]
        found, self._found = self._found, None
        self._loader, self._most = loader, most
        self.handed, self._since, self._ended = 0, 0, False
        if found is not None:
            self._bring_to(found["passes"])
        self._passes = _passes(loader)
        if found is not None and not found["batches"]:
            self._load(found["loader"])
            _set(self._own, found["now"])
        elif self._loaded and isinstance(loader, IterableDataset):
            loader.load_state_dict(None)  # or every pass would begin where that one did
        if found is None or not found["batches"]:
            self._began = self._states()
            source = iter(loader)
            first = draw(source, ahead)
        else:
            before = [source.state() for source in USUAL]
            try:
                source, first = self._find(found, ahead, draw)
            finally:
                _set(USUAL, before)
            _set(self._own, found["now"])
        return islice(source, most and most - self.handed - ahead), first

    def mark(self, batches: int) -> None:
        """So many batches are about to be drawn together."""
        self._since = 0
        if batches > 1:
            self._mark = state_of(self._loader) if self.handed else None, self._states()

    def drawn(self, batches: int, wanted: int) -> None:
        """So many were drawn."""
        self._ended = batches < wanted and self.handed + batches != self._most

    def hand(self) -> None:
        """The loop is given a batch."""
        self.handed += 1
        self._since += 1

    def end(self) -> None:
        """The loader came to its end."""
        self.handed = 0

    def saved(self, *, ahead: bool) -> Tree:
        """What `restore` takes. ahead: more was drawn than the loop was given."""
        if self._found is not None:
            return self._found
        if self._loader is None:
            return None
        now = [_plain(source.state()) for source in self._own]
        if not self.handed or self.handed == self._most:  # then the loader may be anywhere
            known = not self.handed and not isinstance(self._loader, IterableDataset)
            state = state_of(self._loader) if known else None
            passes = _passes(self._loader)
            return {"batches": 0, "loader": state, "passes": passes, "now": now}
        state, window = self._mark if ahead else (state_of(self._loader), [])
        return {
            "batches": self.handed,
            "since": self._since if ahead else 0,
            "ended": self._ended,
            "passes": _passes(self._loader) if self._ended and not ahead else self._passes,
            "loader": state,
            "began": [_plain(value) for value in self._began],
            "window": [_plain(value) for value in window],
            "now": now,
        }

    def restore(self, saved: Tree) -> None:
        """Begin the next epoch where `saved` was; None for wherever the batches begin."""
        self._found, self.handed = saved, 0

    def _find(
        self, found: Tree, ahead: int, draw: Callable[[Iterator[Any], int], list[Any]]
    ) -> tuple[Iterator[Any], list[Any]]:
        sources, since = self._sources(), found["since"]
        _set(sources, found["began"])
        self._began = self._states()
        over = found["ended"] and not ahead
        if not (over and isinstance(self._loader, IterableDataset)):
            self._load(found["loader"])
        self.handed, self._ended = found["batches"], found["ended"]
        self._since = since
        if over:  # which is not to be found out again: some samplers draw another number then
            return iter(()), []
        source = iter(self._loader)
        if found["loader"] is None:
            _skip(source, found["batches"] - since)
        if found["window"]:
            _set(sources, found["window"])
        self._mark = found["loader"], self._states()
        _skip(source, since)
        first = draw(source, ahead)
        return iter([*source]) if found["ended"] else source, first

    def _bring_to(self, passes: dict[str, Any]) -> None:
        """Have a loader that knows of passes before know of as many."""
        if passes["iteration"] is not None:
            self._loader.iteration = passes["iteration"]
        if passes["workers"] and not _passes(self._loader)["workers"]:
            with undisturbed(self._sources()):  # for them a number was drawn, then
                iter(self._loader)

    def _load(self, state: Any) -> None:
        if state is not None and not hasattr(self._loader, "load_state_dict"):
            raise OptionError(
                "the state has one of the loader that was wrapped, but this loader has no "
                "load_state_dict; wrap the same kind of loader."
            )
        if state is not None:
            self._loader.load_state_dict(copy.deepcopy(state))
        self._loaded = state is not None

    def _sources(self) -> list[Source]:
        return [*USUAL, *self._own]

    def _states(self) -> list[Any]:
        return [source.state() for source in self._sources()]


def state_of(loader: Any) -> Any:
    """A copy of a loader's state; None if it has none."""
    inner = getattr(loader, "base_dataloader", loader)  # Accelerate's has both methods anyway
    if not (hasattr(inner, "state_dict") and hasattr(inner, "load_state_dict")):
        return None
    return copy.deepcopy(loader.state_dict())


def _passes(loader: Any) -> dict[str, Any]:
    """What a loader has of passes before: workers that stayed; with Accelerate, their number."""
    stay = getattr(loader, "persistent_workers", False)
    return {
        "workers": bool(stay) and getattr(loader, "_iterator", None) is not None,
        "iteration": loader.iteration if hasattr(loader, "base_dataloader") else None,
    }


def content_of(batches: Sequence[Any]) -> str:
    """A digest of what batches hold: tensors, arrays, numbers and text."""
    digest = hashlib.blake2b(digest_size=8)
    for batch in batches:
        for leaf in leaves(batch):
            _enter(digest, leaf)
    return digest.hexdigest()


def _enter(digest: Any, leaf: Any) -> None:
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().cpu().contiguous()
        digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
        digest.update(leaf.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(leaf, np.ndarray) and leaf.dtype != object:
        digest.update(f"{leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    elif isinstance(leaf, list | tuple):
        digest.update(f"{len(leaf)}".encode())
        for part in leaf:
            _enter(digest, part)
    elif isinstance(leaf, str | int | float | bytes | None):
        digest.update(repr(leaf).encode())


def _skip(source: Iterator[Any], count: int) -> None:
    had = sum(1 for _ in islice(source, count))
    if had < count:
        raise DataError(
            f"the loader ends after {had} batches, of which {count} had been handed out when the "
            "state was taken; give the same data in the same order."
        )


def _plain(state: Any) -> Any:
    """A generator's state without arrays, which torch.load takes for code."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, tuple):
        return tuple(map(_plain, state))
    return {key: _plain(part) for key, part in state.items()} if isinstance(state, dict) else state


def _like(plain: Any, state: Any) -> Any:
    """The inverse of `_plain`, by a state of the same generator."""
    if isinstance(state, np.ndarray) and isinstance(plain, Tensor):
        return plain.cpu().numpy().copy()
    if isinstance(state, tuple):
        return tuple(map(_like, plain, state))
    if isinstance(state, dict):
        return {key: _like(plain[key], state[key]) for key in state}
    return plain.cpu() if isinstance(plain, Tensor) else plain


def _set(sources: Sequence[Source], states: Sequence[Any]) -> None:
    if len(sources) != len(states):
        raise OptionError(
            f"the loader draws from {len(sources)} generators of random numbers, and the one that "
            f"the state is of from {len(states)}; give the same kind of loader."
        )
    for source, state in zip(sources, states, strict=True):
        source.set_state(_like(state, source.state()))
