"""The options of look-ahead in a loop, whoever's loop it is."""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypedDict, get_args

from curate.errors import OptionError
from curate.influence import REMOVALS
from curate.runtime.trackers import Tracker
from curate.selection.effort import Effort

WEIGHTS, AUTO = "weights", "auto"
WEIGHING = 4
"""Rounds in which weights are found, unless another number is asked for."""
SHARE = 0.8
"""The share of every batch that `keep="auto"` keeps while choosing pays."""

Read = str | Callable[[Any], Any]
"""Reads one value per example: a key of the batch, or batch -> shape (n,)."""


class LoopOptions(TypedDict, total=False):
    """The options of every integration by name, so that editors complete them; see `Options`."""

    horizon: int
    keep: float | str
    rounds: int | None
    effort: Effort | None
    label: Read | None
    group_by: Read | None
    row: Read | None
    log: str | PathLike[str] | None
    tracker: Tracker | None
    removal: str
    micro_batch: int | None
    snapshots: int
    seed: int


@dataclass(frozen=True)
class Options:
    """The options of look-ahead in a loop.

    horizon: K, optimizer steps to look ahead.
    keep: share of every batch that is kept. "auto", the default: four fifths while choosing pays,
        by target rows that did not choose, and otherwise everything (`Paying`). "weights" keeps
        everything and yields pairs (batch, weights), weights of shape (n,) and mean 1, for a loop
        that trains on `(weights * losses).mean()`.
    rounds: see `LookAhead`; 1 if None, or 4 for weights.
    effort: "exact" influences, or for less, at a horizon of 1 and in one round, "balanced" or
        "fast", see `Shortcut`: by the optimizer's state instead of the candidates' gradient, and
        with target rows drawn anew. The exact choice is made beside it now and then; where fewer
        than 90 % of rows are decided alike, a warning says so and more effort is taken from
        there on, unless the target has more than four times as many rows as the batch. If None,
        "balanced" where that goes.
    label: the class of every example; a key of the batch, or batch -> shape (n,). Values are put
        on one scale within each class, since influences of different classes seldom share one.
    group_by: the group of every example, read as `label` is; every group keeps the same share.
    log: folder for the audit log, see `curate.read_log`; it takes 1 % of the time, and a process
        that is killed loses the entries of its last second at most. row: the position of every
        example in the dataset, an integer, read as `label` is; the log knows examples by it.
    tracker: receives window/NAME, the numbers of `WindowReport`, when a window has been trained
        on, at its first step; see `open_tracker`.
    removal: see `curate.influence.influence`.
    micro_batch: candidates per simulated forward pass; a whole batch if None.
    snapshots: states kept at once on the way through a window, each with its gradient.
    seed: of the simulated steps' dropout.

    Raises:
        OptionError: a value is out of range, or two of them do not go together.
    """

    horizon: int = 1
    keep: float | str = AUTO
    rounds: int | None = None
    effort: Effort | None = None
    label: Read | None = None
    group_by: Read | None = None
    row: Read | None = None
    log: str | PathLike[str] | None = None
    tracker: Tracker | None = None
    removal: str = "renormalised"
    micro_batch: int | None = None
    snapshots: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for wrong, message in self._problems():
            if wrong:
                raise OptionError(message)

    @property
    def scored_rounds(self) -> int:
        """The rounds asked for, or as many as suit what is kept."""
        return self.rounds or (WEIGHING if self.keep == WEIGHTS else 1)

    @property
    def scored_effort(self) -> Effort:
        """The effort asked for, or what goes."""
        return self.effort or ("exact" if self._only_exact else "balanced")

    @property
    def _only_exact(self) -> bool:
        return self.horizon > 1 or self.scored_rounds > 1

    @property
    def keys(self) -> list[str]:
        """The keys of a batch that are read."""
        return [read for read in (self.label, self.group_by, self.row) if isinstance(read, str)]

    def _problems(self) -> list[tuple[bool, str]]:
        weights, named = self.keep == WEIGHTS, self.keep in (WEIGHTS, AUTO)
        return [
            (
                not isinstance(self.horizon, int) or self.horizon < 1,
                f"horizon must be a number of steps, at least 1, but got {self.horizon!r}.",
            ),
            (
                not named and not (isinstance(self.keep, int | float) and 0 < self.keep <= 1),
                f'keep must be above 0 and at most 1, "auto" or "weights", but got {self.keep!r}.',
            ),
            (
                self.keep == 1 and self.log is not None,
                "keep=1.0 scores nothing, so there is nothing to log; leave log out.",
            ),
            (
                self.keep == 1 and self.tracker is not None,
                "keep=1.0 decides nothing, so there is nothing to track; leave tracker out.",
            ),
            (
                self.rounds is not None and self.rounds < 1,
                f"rounds must be at least 1 but got {self.rounds}.",
            ),
            (
                self.effort not in (None, *get_args(Effort)),
                f"effort must be one of {', '.join(get_args(Effort))} but got {self.effort!r}.",
            ),
            (
                self.effort not in (None, "exact") and self._only_exact,
                f"effort={self.effort} looks one step ahead in one round, but horizon is "
                f"{self.horizon} and rounds are {self.scored_rounds}; leave effort out.",
            ),
            (
                weights and self.scored_rounds < 2,
                'keep="weights" needs at least 2 rounds: one has influences but no weights yet.',
            ),
            (
                weights and self.group_by is not None,
                'group_by shares out a budget, and keep="weights" has none; leave it out.',
            ),
            (
                weights and self.label is not None,
                'label scales values for a budget, and keep="weights" has none; leave it out.',
            ),
            (self.snapshots < 1, f"snapshots must be at least 1 but got {self.snapshots}."),
            (
                self.removal not in REMOVALS,
                f"removal must be one of {', '.join(REMOVALS)} but got {self.removal!r}.",
            ),
        ]
