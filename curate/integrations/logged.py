"""What a loop enters in its audit log, window by window."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from curate.integrations.fingerprint import sampled
from curate.integrations.options import Options
from curate.integrations.window import Decision, WindowReport
from curate.output.audit_log import AuditLog
from curate.runtime.files import Tree
from curate.selection import Array

SHARE = 0.01
"""Share of the time that goes into writing, but for the first entries."""
LATEST = 1.0
"""Seconds after which entries are written in any case, when the next ones come."""


class Logged:
    """The log of a loop, if `options` name one; its part is begun with the first entry.

    A window is written before the loop trains on it, as long as writing takes 1 % of the time,
    which it does where windows take some 50 ms or more. Where they follow faster, several are
    written together, once a second at least, at the end of every epoch and with every state that
    is taken. So a process that is killed loses the entries of its last second at most, and what
    its latest state knows of is on disk.

    dataset: what the loop reads, so that the log knows what its rows are of; None if unknown.
    """

    def __init__(self, options: Options, targets: Sequence[str]) -> None:
        self.dataset: Any = None
        self._folder, self._row = options.log, options.row
        self._targets = [*targets]
        self._log: AuditLog | None = None
        self._goes_on: Tree = None
        self._candidates: list[tuple[Any, ...]] = []
        self._windows: list[dict[str, Any]] = []
        self._written, self._took = time.monotonic(), 0.0

    @property
    def wanted(self) -> bool:
        """Whether there is a log to be kept."""
        return self._folder is not None

    def enter(
        self,
        places: Sequence[tuple[int, int, int]],
        rows: Sequence[Array] | None,
        decisions: Sequence[Decision],
    ) -> None:
        """Put the candidates of batches in the log.

        places: window, step and place in the step of every batch. rows: positions in the dataset
        of each one's examples, where they are known.
        """
        if not self.wanted:
            return
        self._candidates += zip(places, rows or places, decisions, strict=True)
        since = time.monotonic() - self._written
        if since * SHARE >= self._took or since >= LATEST:
            self.flush()

    def record(self, window: int, report: WindowReport) -> None:
        """Put a window itself in the log."""
        if self.wanted:
            self._windows.append({"window": window} | vars(report))

    def flush(self) -> None:
        """Write what is waiting."""
        if self._folder is None or not (self._candidates or self._windows):
            return
        begin = time.monotonic()
        if self._log is None:
            about = sampled(self.dataset, self._row)
            self._log = AuditLog(self._folder, self._targets, about=about, goes_on=self._goes_on)
            begin = time.monotonic()
        candidates, self._candidates = self._candidates, []
        windows, self._windows = self._windows, []
        if candidates:
            self._log.candidates(self._columns(*zip(*candidates, strict=True)))
        if windows:
            self._log.windows(windows)
        self._written = time.monotonic()
        self._took = self._written - begin

    def saved(self, windows: int, *, settled: int) -> Tree:
        """What `restore` takes: which run it is, and how many windows are in it, and settled."""
        self.flush()
        if self._log is None:
            return self._goes_on
        return {"run": self._log.run, "windows": windows, "settled": settled}

    def restore(self, saved: Tree) -> None:
        """Go on after what was in the log then, in place of whatever came later."""
        self.flush()
        self._log, self._goes_on = None, saved

    def _columns(
        self,
        places: Sequence[tuple[int, int, int]],
        rows: Sequence[Any],
        decisions: Sequence[Decision],
    ) -> dict[str, Any]:
        sizes = [len(decision.weights) for decision in decisions]
        window, step, batch = (np.repeat(part, sizes) for part in zip(*places, strict=True))
        influences = torch.cat([decision.influences for decision in decisions], dim=1)
        return {
            "window": window,
            "step": step,
            "batch": batch,
            "position": np.concatenate([np.arange(size) for size in sizes]),
            "row": [None] * sum(sizes) if self._row is None else np.concatenate(rows),
            "influence": influences.mean(dim=0).numpy(),
            "value": np.concatenate([decision.values for decision in decisions]),
            "weight": np.concatenate([decision.weights for decision in decisions]),
            "kept": np.concatenate([decision.kept for decision in decisions]),
            **{
                f"influence/{name}": part.numpy()
                for name, part in zip(self._targets, influences, strict=True)
            },
        }
