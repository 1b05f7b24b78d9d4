"""What a loop enters in its audit log, window by window."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from curate.datasets import batch_length
from curate.errors import DataError
from curate.integrations.columns import read_column
from curate.integrations.fingerprint import sampled
from curate.integrations.options import Options
from curate.output.audit_log import AuditLog
from curate.runtime.files import Tree
from curate.selection import Array


class Logged:
    """The log of a loop, if `options` name one; its part is begun with the first entry.

    dataset: what the loop reads, so that the log knows what its rows are of; None if unknown.
    """

    def __init__(self, options: Options, targets: Sequence[str]) -> None:
        self.dataset: Any = None
        self._folder, self._row = options.log, options.row
        self._targets = [*targets]
        self._log: AuditLog | None = None
        self._goes_on: Tree = None

    def enter(self, places: Sequence[tuple[int, int, int]], batches: Any, decisions: Any) -> None:
        """Put the candidates of batches in the log.

        places: window, step and place in the step of every batch.
        """
        if self._folder is not None:
            entries = zip(places, batches, decisions, strict=True)
            self._opened().candidates([self._candidates(*entry) for entry in entries])

    def record(self, window: int, **values: Any) -> None:
        """Put a window itself in the log."""
        if self._folder is not None:
            self._opened().window(window=window, **values)

    def _opened(self) -> AuditLog:
        assert self._folder is not None
        if self._log is None:
            about = sampled(self.dataset, self._row)
            self._log = AuditLog(self._folder, self._targets, about=about, goes_on=self._goes_on)
        return self._log

    def saved(self, windows: int, *, settled: int) -> Tree:
        """What `restore` takes: which run it is, and how many windows are in it, and settled."""
        if self._log is None:
            return self._goes_on
        return {"run": self._log.run, "windows": windows, "settled": settled}

    def restore(self, saved: Tree) -> None:
        """Go on after what was in the log then, in place of whatever came later."""
        self._log, self._goes_on = None, saved

    def _candidates(self, place: tuple[int, int, int], batch: Any, decision: Any) -> dict[str, Any]:
        count = len(decision.weights)
        return {
            **{
                name: np.full(count, value)
                for name, value in zip(("window", "step", "batch"), place, strict=True)
            },
            "position": np.arange(count),
            "row": self._rows(batch),
            "influence": decision.influences.mean(dim=0).numpy(),
            "value": decision.values,
            "weight": decision.weights,
            "kept": decision.kept,
            **{
                f"influence/{name}": part.numpy()
                for name, part in zip(self._targets, decision.influences, strict=True)
            },
        }

    def _rows(self, batch: Any) -> Array | list[None]:
        """The positions in the dataset that a batch says its examples have."""
        if self._row is None:
            return [None] * batch_length(batch)
        rows = read_column(self._row, batch, "row")
        if rows.dtype.kind not in "iu":
            raise DataError(
                f"row must give integers, positions in the dataset, but got {rows.dtype}."
            )
        return rows
