"""Does choosing pay, here and now? Asked again and again while a loop trains.

Every window that is scored is scored against one half of the target and judged by the other: the
loss there after training on everything, less that after training on what is kept, both from the
same state. As long as choosing gains by that, batches are cut; as soon as it does not they go
through whole, and choosing is tried again now and then. Rows that are dropped for long are
missed, and that shows in the gain: it falls while choosing goes on, and turns negative when
dropping has done all the good that it can.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from statistics import mean, stdev
from typing import Any

import torch

from curate.datasets import BatchExamples, take
from curate.errors import OptionError
from curate.influence import Target

RECENT, FEWEST = 8, 4
"""Windows whose gains are averaged, at most and at least."""
SURE = 2.0
"""Standard errors that the mean gain has to be above 0 before batches are cut."""
REST, LONGEST = 8, 128
"""Windows between a trial that fails and the next: at first, then doubled each time, at most."""

SELDOM = 9
"""Windows from one whose gain is measured to the next, while choosing pays."""


class Paying:
    """Whether choosing pays, by the gains of the windows so far."""

    def __init__(self) -> None:
        self.pays = False
        self._gains: list[float] = []
        self._rest, self._left = REST, 0

    def due(self) -> bool:
        """Whether the next window is to be scored."""
        if self.pays or not self._left:
            return True
        self._left -= 1
        return False

    def looks(self, window: int) -> bool:
        """Whether the gain in this window is to be measured, where that is not to be had for free.

        While choosing pays, in turn by one half of the target and by the other.
        """
        return not self.pays or window % SELDOM == 0

    def enter(self, gain: float) -> None:
        """Add what choosing gained in a window, in loss units."""
        self._gains = [*self._gains, gain][-RECENT:]
        count = len(self._gains)
        if count < FEWEST:
            return
        middle = mean(self._gains)
        if self.pays and middle <= 0:
            self._stop()
        elif not self.pays and middle > SURE * stdev(self._gains) / sqrt(count):
            self.pays, self._gains = True, []
        elif not self.pays and (middle <= 0 or count == RECENT):
            self._stop()

    def saved(self) -> dict[str, Any]:
        """All that the next answers depend on."""
        return {"pays": self.pays, "gains": self._gains, "rest": self._rest, "left": self._left}

    def restore(self, saved: dict[str, Any]) -> None:
        """Resume from what was `saved`."""
        self.pays, self._gains = saved["pays"], [*saved["gains"]]
        self._rest, self._left = saved["rest"], saved["left"]

    def _stop(self) -> None:
        self.pays, self._gains = False, []
        self._left, self._rest = self._rest, min(2 * self._rest, LONGEST)


def halved(targets: Sequence[Target], seed: int) -> tuple[list[Target], list[Target]]:
    """Split every target in two, at random: one half of all of them, and the other.

    Raises:
        OptionError: a target has fewer than two examples.
    """
    generator, halves = torch.Generator().manual_seed(seed), (list[Target](), list[Target]())
    for target in targets:
        assert isinstance(target.examples, BatchExamples)
        count = len(target.examples)
        if count < 2:
            raise OptionError(
                f'target {target.name} has {count} example, too few for keep="auto", which '
                "chooses by one half and judges by the other; give more, or name a share."
            )
        side = torch.randperm(count, generator=generator) < count // 2
        for half, members in zip(halves, (side, ~side), strict=True):
            parts: list[Any] = []
            for batch, rows in zip(
                target.examples.batches, target.examples.positions(), strict=True
            ):
                positions = members[rows].nonzero().flatten()
                parts += [take(batch, positions)] if len(positions) else []
            half.append(replace(target, examples=BatchExamples(parts)))
    return halves
