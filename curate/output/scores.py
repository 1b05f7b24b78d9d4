"""The scores of a run as its file has them: figures over all rows, and the lines of a few."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

AT_A_TIME = 2**15
"""Lines that are in memory at once."""
SAMPLE = 2**14
"""Influences by which their scale is told, about, evenly over the rows."""
COLUMNS = {
    "row": pl.Int64,
    "influence": pl.Float64,
    "score": pl.Float64,
    "rank": pl.Int64,
    "kept": pl.Boolean,
    "reason": pl.String,
    "seen": pl.Int64,
}


class SavedScores:
    """A line per candidate, in the order of their rows. Memory: a row group of the file.

    count: all of them; kept: those kept. first, last: rows. influences: a sample of them, as far
    as there are any. lowest_kept, highest_dropped, lowest, highest: scores, infinite if there are
    none; finite: whether all are.
    """

    def __init__(self, source: Path | pl.DataFrame) -> None:
        """`source`: a file; or the lines, in any order.

        Raises:
            ValueError: a row is not there once, or a value is missing; and what reading raises.
        """
        self._source = source
        if not self._look():
            lines = source if isinstance(source, pl.DataFrame) else pl.concat(self.parts())
            if lines["row"].n_unique() != len(lines):
                raise ValueError("it must have every row once, and at least one")
            self._source = lines.sort("row")
            self._look()
        self._known: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return self.count

    def parts(self, *names: str) -> Iterator[pl.DataFrame]:
        """All lines, in order, some at a time; of all columns if none are named."""
        if isinstance(self._source, pl.DataFrame):
            table = self._source.select(names) if names else self._source
            yield from (_typed(part, names) for part in table.iter_slices(AT_A_TIME))
            return
        with pq.ParquetFile(self._source) as file:
            for k in range(file.num_row_groups):  # `iter_batches` reads ahead, and keeps all of it
                group = file.read_row_group(k, [*names] or None, use_threads=False)
                for rows in pl.DataFrame(pl.from_arrow(group)).iter_slices(AT_A_TIME):
                    yield _typed(rows, names)

    def lines(self, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The lines of some rows, by row; those that there are none of are left out."""
        wanted = [row for row in rows if row not in self._known]
        if wanted:
            self._keep(pl.col("row").is_in(wanted))
        return {row: self._known[row] for row in rows if row in self._known}

    def known(self) -> dict[int, dict[str, Any]]:
        """The lines that were asked for so far, by row."""
        return self._known

    def ranked(self, ranks: Iterable[int]) -> list[int]:
        """The rows of some ranks, best first."""
        found = self._keep(pl.col("rank").is_in([*ranks]))
        return [line["row"] for line in sorted(found, key=lambda line: line["rank"])]

    def best(
        self, most: int, *, kept: bool, among: np.ndarray[Any, Any] | None = None
    ) -> list[int]:
        """Rows kept, at most so many, best first; or of those dropped the worst, worst first.

        among: places of some among them, in the order of rows, shape (n,), ascending.
        """
        found, before = pl.DataFrame(schema={"row": pl.Int64, "rank": pl.Int64}), 0
        for part in self.parts("row", "rank", "kept"):
            side = part.filter(pl.col("kept") == kept).select("row", "rank")
            before, here = before + len(side), before
            if among is not None:
                low, high = np.searchsorted(among, [here, before])
                side = side[among[low:high] - here]
            found = pl.concat([found, side]).sort("rank", descending=not kept).head(most)
        return found["row"].to_list()

    def places(self, rows: Sequence[int], *, among_all: bool = False) -> dict[int, int]:
        """Where some rows stand among those kept, in the order of rows, as far as they are kept.

        Or among all.
        """
        wanted, below = np.unique(np.array(rows, dtype=np.int64)), 0
        places = dict[int, int]()
        for part in self.parts("row", "kept"):
            kept = (part if among_all else part.filter("kept"))["row"].to_numpy()
            here = np.flatnonzero(np.isin(kept, wanted))
            places |= dict(zip(kept[here].tolist(), (below + here).tolist(), strict=True))
            below += len(kept)
        return places

    def _keep(self, which: pl.Expr) -> list[dict[str, Any]]:
        """The lines that fulfil something, which are remembered."""
        found = [line for part in self.parts() for line in part.filter(which).to_dicts()]
        self._known |= {line["row"]: line for line in found}
        return found

    def _look(self) -> bool:
        """Go through all lines once; whether their rows ascend."""
        self.count, self.kept, self.first, self.last = 0, 0, 0, -1
        self.lowest_kept = self.lowest = float("inf")
        self.highest_dropped = self.highest = float("-inf")
        self.has_influences, ascending, self.finite = False, True, True
        self.influences: list[float] = []
        every, ranks = 1 + self._total() // SAMPLE, [1, 1, 0]
        for part in self.parts():
            needed = part.select(set(COLUMNS) - {"influence"})
            if sum(needed.null_count().row(0)):
                raise ValueError("a value is missing")
            row, score = part["row"].to_numpy(), part["score"].to_numpy()
            if len(row):
                before = self.last if self.count else row[0] - 1
                ascending = ascending and before < row[0] and bool(np.all(np.diff(row) > 0))
                self.first, self.last = (row[0] if not self.count else self.first), row[-1]
                self._bound(score, part["kept"].to_numpy())
                rank = part["rank"].to_numpy()
                ranks = [
                    min(ranks[0], int(rank.min())),
                    max(ranks[1], int(rank.max())),
                    ranks[2] + int(rank.sum()),
                ]
            self.has_influences = self.has_influences or bool(part["influence"].count())
            self.influences += part["influence"].gather_every(every).drop_nulls().to_list()
            self.count += len(row)
        if not self.count:
            raise ValueError("it must have every row once, and at least one")
        if ranks != [1, self.count, self.count * (self.count + 1) // 2]:
            raise ValueError("ranks must be from 1 to the number of rows")
        return ascending

    def _bound(self, score: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]) -> None:
        inside, outside = score[kept], score[~kept]
        self.kept += len(inside)
        self.finite = self.finite and bool(np.isfinite(score).all())
        self.lowest = min(self.lowest, float(score.min()))
        self.highest = max(self.highest, float(score.max()))
        if len(inside):
            self.lowest_kept = min(self.lowest_kept, float(inside.min()))
        if len(outside):
            self.highest_dropped = max(self.highest_dropped, float(outside.max()))

    def _total(self) -> int:
        """All lines, before they are gone through."""
        if isinstance(self._source, pl.DataFrame):
            return len(self._source)
        return int(pq.read_metadata(self._source).num_rows)


def _typed(part: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    kinds = {name: COLUMNS[name] for name in names or COLUMNS}
    return part.with_columns(pl.col(name).cast(kind) for name, kind in kinds.items())
