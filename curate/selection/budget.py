"""Budgets: from values to what is kept, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.errors import UserError
from curate.runtime.large import pieces
from curate.selection import Array
from curate.selection.ranking import descending_ranks


@dataclass(frozen=True)
class Choice:
    """What a budget decided, and why.

    kept: shape (n,), bool. codes: which of the `words` is each row's reason, shape (n,), ints.
    """

    kept: Array
    codes: Array
    words: list[str]

    @classmethod
    def of(cls, kept: Array, reasons: Sequence[str]) -> "Choice":
        """With a reason for each row."""
        words, codes = np.unique(np.asarray(reasons, dtype=str), return_inverse=True)
        return cls(kept, codes.astype(np.min_scalar_type(len(words))), words.tolist())

    @property
    def reasons(self) -> list[str]:
        """The reason of each row."""
        return [self.words[code] for code in self.codes]


@dataclass(frozen=True)
class Budget:
    """How much is kept: exactly one of `fraction`, `count`, `tokens` and `threshold`.

    The rows of highest value are kept, ties going to the earlier row; a threshold is on the
    value. `tokens` as an int is a limit: rows are taken in order of value until the next would
    exceed it, and none after that one, however short. `tokens` as a float is a share of the
    tokens offered, met to the nearest row.

    With groups, a fraction or count is shared out in proportion to their sizes (largest
    remainder), tokens in proportion to their tokens (what a group leaves of its quota, less than
    a row, goes to the next), so that no group is emptied by another.
    """

    fraction: float | None = None
    count: int | None = None
    tokens: int | float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        amounts = (self.fraction, self.count, self.tokens, self.threshold)
        if sum(amount is not None for amount in amounts) != 1:
            raise ValueError("give exactly one of fraction, count, tokens and threshold")

    def within_step(self, candidates: int, tokens: int | None = None) -> "Budget":
        """The budget of one step, where the whole budget is for `candidates` rows.

        tokens: of all those rows together, for a budget in tokens.
        """
        if self.count is not None:
            return Budget(fraction=min(1.0, self.count / candidates))
        if isinstance(self.tokens, int):
            assert tokens is not None
            return Budget(tokens=min(1.0, self.tokens / tokens))
        return self

    def refuse_excess(self, candidates: int, tokens: Array | None = None) -> None:
        """Raise UserError for a budget beyond what there is, or below the shortest row.

        tokens: of every candidate, shape (n,), for a budget in tokens.
        """
        if self.count is not None and self.count > candidates:
            raise UserError(
                f"selection.keep.count: is {self.count}, but there are only {candidates} "
                "candidates."
            )
        if isinstance(self.tokens, int):
            assert tokens is not None
            if self.tokens > tokens.sum():
                raise UserError(
                    f"selection.keep.tokens: is {self.tokens}, but the candidates have only "
                    f"{tokens.sum()}."
                )
            if self.tokens < tokens.min():
                raise UserError(
                    f"selection.keep.tokens: is {self.tokens}, but the shortest candidate has "
                    f"{tokens.min()}."
                )

    def choose(
        self, values: Array, groups: Array | None = None, tokens: Array | None = None
    ) -> Choice:
        """Keep the highest values, shape (n,); ties go to the earlier row.

        Args:
            groups: of every row, shape (n,), for quotas.
            tokens: of every row, shape (n,), ints above 0, for a budget in tokens.

        Raises:
            UserError: the budget exceeds what there is, see `refuse_excess`.
        """
        if self.threshold is not None:
            kept = values >= self.threshold
            words = ["below", "score at the threshold or above"]
            return Choice(kept, kept.view(np.uint8), words)
        self.refuse_excess(len(values), tokens)
        words = ["below the budget", "top by score"]
        if groups is None and self.tokens is None:
            ranks, most = descending_ranks(values), self._size(len(values))
            kept = np.empty(len(values), dtype=bool)
            for part in pieces(len(values)):
                kept[part] = ranks[part] <= most
            return Choice(kept, kept.view(np.uint8), words)
        kept = np.zeros(len(values), dtype=bool)
        order = np.argsort(-values, kind="stable")
        if groups is None:
            kept[order[: self._sizes([order], tokens)[0]]] = True
            return Choice(kept, kept.view(np.uint8), words)
        names, members = np.unique(groups, return_inverse=True)
        rankings = [order[members[order] == group] for group in range(len(names))]
        for ranking, size in zip(rankings, self._sizes(rankings, tokens), strict=True):
            kept[ranking[:size]] = True
        words = [f"below the quota of group {name}" for name in names.tolist()]
        words += [f"top of group {name}" for name in names.tolist()]
        codes = members + len(names) * kept
        return Choice(kept, codes.astype(np.min_scalar_type(len(words))), words)

    def share(self, rows: int) -> float:
        """About which share of a step of `rows` rows is kept; of its tokens, for a token budget.

        A threshold is taken to keep half.
        """
        if self.threshold is not None:
            return 0.5
        if self.tokens is not None:
            assert isinstance(self.tokens, float)
            return self.tokens
        return self._size(rows) / rows

    def _sizes(self, rankings: list[Array], tokens: Array | None) -> list[int]:
        """How many rows of every group are kept, the groups' rows being in order of value."""
        if self.tokens is None:
            rows = np.array([len(ranking) for ranking in rankings])
            return share_out(self._size(int(rows.sum())), rows)
        assert tokens is not None
        total, offered, used = int(tokens.sum()), 0, 0  # offered: in this group and those before
        sizes = []
        for ranking in rankings:
            sums = np.cumsum(tokens[ranking])
            offered += int(sums[-1])
            due = self.tokens * offered
            sizes.append(self._fitting(sums, (due // total if self._is_limit else due) - used))
            used += int(sums[sizes[-1] - 1]) if sizes[-1] else 0
        if not self._is_limit and not any(sizes):
            sizes[0] = 1
        return sizes

    def _fitting(self, sums: Array, quota: float) -> int:
        """How many rows a quota pays for, `sums` being the tokens of the first 1, 2, ... rows."""
        size = int(np.searchsorted(sums, quota, side="right"))
        if not self._is_limit and size < len(sums):
            below = sums[size - 1] if size else 0
            size += bool(sums[size] - quota < quota - below)
        return size

    @property
    def _is_limit(self) -> bool:
        """Whether the tokens are a number, not a share."""
        return isinstance(self.tokens, int)

    def _size(self, rows: int) -> int:
        """How many of `rows` rows a fraction or count keeps, at least 1."""
        if self.count is not None:
            return self.count
        assert self.fraction is not None
        return max(1, round(self.fraction * rows))


def share_out(total: int, sizes: Array) -> list[int]:
    """`total` places among groups of the given sizes, in proportion; largest remainders first."""
    exact = total * sizes / sizes.sum()
    places = np.floor(exact).astype(int)
    left = total - int(places.sum())
    places[np.argsort(-(exact - places), kind="stable")[:left]] += 1
    return [int(n) for n in places]
