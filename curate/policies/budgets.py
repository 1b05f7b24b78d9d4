"""Budgets: from values to what is kept, and why."""

from dataclasses import dataclass, replace

import numpy as np

from curate.errors import UserError
from curate.policies.base import Array


@dataclass(frozen=True)
class Choice:
    """What a budget decided: `kept`, shape (n,), bool, and a reason for each row."""

    kept: Array
    reasons: list[str]


@dataclass(frozen=True)
class Budget:
    """How much is kept: exactly one of `fraction`, `count` and `threshold` (on the value).

    With groups, a fraction or count is shared out among them in proportion to
    their sizes (largest remainder), so that no group is emptied by another.
    """

    fraction: float | None = None
    count: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.fraction, self.count, self.threshold) if x is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of fraction, count and threshold")

    def within_step(self, candidates: int) -> "Budget":
        """The budget of one step, when the whole budget is about `candidates` rows."""
        if self.count is None:
            return self
        return replace(self, count=None, fraction=min(1.0, self.count / candidates))

    def choose(self, values: Array, groups: Array | None = None) -> Choice:
        """Keep the highest values, shape (n,); ties go to the earlier row.

        Raises:
            UserError: the count is larger than n, or the threshold keeps nothing.
        """
        if self.threshold is not None:
            return self._above(values, self.threshold)
        size = self.size(len(values))
        if groups is None:
            kept = np.zeros(len(values), dtype=bool)
            kept[np.argsort(-values, kind="stable")[:size]] = True
            return Choice(kept, ["top by score" if k else "below the budget" for k in kept])
        kept = np.zeros(len(values), dtype=bool)
        names, members = np.unique(groups, return_inverse=True)
        for group, quota in enumerate(share_out(size, np.bincount(members))):
            own = np.flatnonzero(members == group)
            kept[own[np.argsort(-values[own], kind="stable")[:quota]]] = True
        shown = names[members].tolist()
        return Choice(
            kept,
            [
                f"top of group {group}" if k else f"below the quota of group {group}"
                for k, group in zip(kept, shown, strict=True)
            ],
        )

    def size(self, rows: int) -> int:
        """How many of `rows` rows a fraction or count keeps, at least 1."""
        if self.count is not None:
            if self.count > rows:
                raise UserError(
                    f"selection.keep.count: is {self.count}, but there are only {rows} candidates."
                )
            return self.count
        assert self.fraction is not None
        return max(1, round(self.fraction * rows))

    def _above(self, values: Array, threshold: float) -> Choice:
        kept = values >= threshold
        return Choice(kept, ["score at the threshold or above" if k else "below" for k in kept])


def share_out(total: int, sizes: Array) -> list[int]:
    """`total` places among groups of the given sizes, in proportion; largest remainders first."""
    exact = total * sizes / sizes.sum()
    places = np.floor(exact).astype(int)
    left = total - int(places.sum())
    places[np.argsort(-(exact - places), kind="stable")[:left]] += 1
    return [int(n) for n in places]
