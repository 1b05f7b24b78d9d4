"""How much effort a choice of one step takes, and whether less of it chooses the same rows.

Exact influences take the candidates' gradient and that of all target rows. `balanced` and `fast`
take shortcuts (`influence.shortcut`), and the exact choice is made beside theirs now and then:
where fewer than `ALIKE` of the rows are decided alike, more effort is taken from there on, unless
exact influences would take `DEAREST` times what the step itself does, for many target rows.
"""

import warnings
from dataclasses import dataclass, field
from math import sqrt
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any, Literal

import torch

from curate.influence import Shortcut
from curate.rules import State

Effort = Literal["exact", "balanced", "fast"]
SHORTCUTS = MappingProxyType({"balanced": (0.25, 16), "fast": (0.1, 16)})
"""Target rows per step, as a share of the candidates; how many steps their gradient may serve."""
MORE: MappingProxyType[Effort, Effort] = MappingProxyType({"fast": "balanced", "balanced": "exact"})
FIRST_STEPS = 10
"""Updates of an optimizer before its state says enough to do without the step's gradient. Till then
influences are exact, or nothing is chosen where those cost too much."""
ALIKE = 0.9
DEAREST = 4.0
"""Gradients of a batch that a pass over all target rows may cost, for effort to be raised to it."""
SPACED = 16.0
"""Steps from one check to the next at least, where it costs more: for each such gradient."""
FEWEST, RECENT = 3, 8
"""Checks in a row that are averaged before effort is raised: at least where the mean is below
`ALIKE` by more than its standard error, and at most."""
OFTEN, SELDOM = 4, 128
"""Steps to the next check: none for the first `FEWEST`, then doubled each time, within these."""


@dataclass
class Pace:
    """How much effort a run takes, and what came of less. One shortcut for each side of targets.

    effort: as asked for, and as it is now.
    """

    effort: Effort
    sides: int = 1
    seed: int = 0
    _shortcuts: list[Shortcut] = field(init=False)
    _checks: list[float] = field(default_factory=list, init=False)
    _wait: int = field(default=0, init=False)
    _gap: int = field(default=OFTEN, init=False)
    _stays: bool = field(default=False, init=False)
    _dear: bool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._set_out()

    def shortcut(self, state: State, step: int, side: int = 0) -> Shortcut | None:
        """What to take for a step of the run, from this state; None: the exact way.

        Not all optimizers count their updates, and weights of sixteen bits cannot be moved by so
        little.
        """
        few = max(state.step, step) < FIRST_STEPS
        exact = few or state.theta.dtype in (torch.float16, torch.bfloat16)
        return self._shortcuts[side] if self._shortcuts and not exact else None

    def early(self, step: int) -> bool:
        """Whether a step of the run may be one in which nothing is chosen yet, see `abstains`."""
        return self.effort != "exact" and step < FIRST_STEPS and self._dear is not False

    def abstains(self, price: float, updates: int) -> bool:
        """Whether nothing is chosen yet, where exact influences cost much and others know little.

        price: see `enter`; that of the first batch goes for all. updates: how many the optimizer
        has made.
        """
        dear = price > DEAREST if self._dear is None else self._dear
        self._dear = dear and updates < FIRST_STEPS
        return self._dear

    def due(self) -> bool:
        """Whether the step for which a shortcut is taken is to be decided exactly, too."""
        if self._wait:
            self._wait -= 1
            return False
        return True

    def enter(self, alike: float, price: float) -> None:
        """Add the share of a step's rows that were decided as they are exactly.

        price: a pass over all target rows, in gradients of the step.
        """
        self._checks = [*self._checks, alike][-RECENT:]
        count = len(self._checks)
        self._wait = int(SPACED * price) if price > DEAREST else 0
        if count < FEWEST:
            return
        self._wait, self._gap = max(self._wait, self._gap), min(2 * self._gap, SELDOM)
        room = stdev(self._checks) / sqrt(count) if count < RECENT else 0.0
        if self._stays or mean(self._checks) + room >= ALIKE:
            return
        less, more = self.effort, MORE[self.effort]
        self._stays = more == "exact" and price > DEAREST
        then = (
            f"exact ones would take {price:.0f} gradients of a batch at every step for all target "
            "rows, so it stays; give fewer rows, larger batches, a longer horizon or effort=exact"
            if self._stays
            else f"effort is {more} from here on"
        )
        warnings.warn(
            f"effort={less} decided {mean(self._checks):.0%} of rows as exact influences do, in "
            f"{count} batches that were checked; {then}.",
            RuntimeWarning,
            stacklevel=2,
        )
        if not self._stays:
            self.effort = more
            self._set_out()

    def _set_out(self) -> None:
        self._checks, self._wait, self._gap = [], 0, OFTEN
        sides = range(self.sides if self.effort in SHORTCUTS else 0)
        self._shortcuts = [Shortcut(*SHORTCUTS[self.effort], self.seed + k) for k in sides]

    def saved(self) -> dict[str, Any]:
        """All that later steps depend on."""
        return {
            "effort": self.effort,
            "checks": list(self._checks),
            "wait": self._wait,
            "gap": self._gap,
            "stays": self._stays,
            "shortcuts": [shortcut.saved() for shortcut in self._shortcuts],
        }

    def restore(self, saved: dict[str, Any], device: torch.device) -> None:
        """Resume from what was `saved`."""
        self.effort = saved["effort"]
        self._set_out()
        self._checks, self._stays = saved["checks"], saved["stays"]
        self._wait, self._gap = saved["wait"], saved["gap"]
        for shortcut, state in zip(self._shortcuts, saved["shortcuts"], strict=True):
            shortcut.restore(state, device)
