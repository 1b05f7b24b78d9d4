"""`curate inspect --by`: a selection added up by the values of a column, as weights to mix by.

A value's weight is its share of the rows kept,

    w = P(value | kept) = p P(kept | value) / P(kept):

its proportion p of the data times how much more often than others a row of it passes the cut. Where
values do not differ that is p. Drawing rows of each value, all of them, by w gives the mixture that
was kept. Mean influences point the same way: an exponentiated step along them is what DoReMi (Xie
et al. 2023) and DoGE (Fan et al. 2024) take, of a size that somebody has to set, and one far row
moves a mean. Here the budget is that size, and `keep: auto` finds it by retraining; where it keeps
everything, w is p. Loads no torch.

Intervals are about rows: they take as given how many each value has, and the cut, and say how far
the share of rows that pass it would vary among other rows of the same values. They cover no other
training, target or budget.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import OptionError
from curate.output.composition import EACH, MOST
from curate.output.saved_run import SavedRun
from curate.output.words import Scale, fit, one_line, visible
from curate.recipe.names import find_objective

Array = NDArray[Any]
SURE = 1.96
"""Standard errors on either side of a 95 % interval."""
TOLD = ("candidates", "kept", "influence", "tokens", "tokens_kept")
LONGEST = 32
"""Columns of a terminal that a value takes."""


@dataclass(frozen=True)
class Weights:
    """Shares of what is kept, and their 95 % intervals, shape (V,) each; data: shares of it all."""

    data: Array
    weight: Array
    low: Array
    high: Array

    def columns(self, what: str) -> dict[str, list[str]]:
        """A table's, by their heads."""
        sides = np.select([self.low > self.data, self.high < self.data], ["more", "less"], "")
        pairs = zip(self.low, self.high, strict=True)
        return {
            f"of all {what}": [f"{share:.3f}" for share in self.data],
            "weight": [f"{share:.3f}" for share in self.weight],
            "95 % interval": [f"{low:.3f} to {high:.3f}" for low, high in pairs],
            "than in the data": sides.tolist(),
        }


def shares_kept(offered: Array, kept: Array, squares: Array) -> Weights:
    """Each value's share of what is kept, of rows or of tokens.

    A value's chance to be kept is that of Agresti and Coull (1998), two more rows of either kind,
    so that none of a few does not mean none ever. The others' chances move the sum beneath.

    Args:
        offered, kept: of each value, shape (V,), offered above 0. squares: the sum of the squares
            of its rows' sizes, `offered` for rows; rows of unlike sizes are as few of one size
            (Kish's effective number).
    """
    size, others = np.square(offered) / squares, kept.sum() - kept
    chance = (size * kept / offered + 2) / (size + 4)
    spread = np.square(offered) * chance * (1 - chance) / (size + 4)
    total = offered * chance + others
    share = offered * chance / total
    varies = np.square(1 - share) * spread + np.square(share) * (spread.sum() - spread)
    far, weight = SURE * np.sqrt(varies) / total, kept / kept.sum()
    low = np.clip(np.minimum(share - far, weight), 0, 1)
    high = np.clip(np.maximum(share + far, weight), 0, 1)
    return Weights(offered / offered.sum(), weight, low, high)


@dataclass(frozen=True)
class Mixture:
    """A selection by the values of a column.

    parts: a line for each, as `composition` has them. rows: to draw rows by. tokens: to fill
    batches of tokens by, where they are counted. note: what else made the weights.
    """

    by: str
    parts: list[dict[str, Any]]
    rows: Weights
    tokens: Weights | None
    note: str = ""

    def export(self) -> dict[str, Any]:
        """Plain values: weights by value, and beside them counts, mean influences and intervals."""
        lines = [
            {{"candidates": "rows"}.get(name, name): part[name] for name in part if name in TOLD}
            | _around(part)
            for part in self.parts
        ]
        names, weights = [part["value"] for part in self.parts], {}
        for kind, of in {"weights": self.rows, "token_weights": self.tokens}.items():
            if of is not None:
                weights[kind] = dict(zip(names, of.weight.tolist(), strict=True))
                for line, low, high in zip(lines, of.low.tolist(), of.high.tolist(), strict=True):
                    line[f"{kind}_interval"] = [low, high]
        return {"by": self.by, **weights, "values": dict(zip(names, lines, strict=True))}

    def tables(self) -> list[list[list[str]]]:
        """What became of each value, and what to weigh it by; the first row of each is the head."""
        names = [fit(one_line(visible(part["value"])), LONGEST).rstrip() for part in self.parts]
        first = {
            "rows": [f"{part['candidates']:,}" for part in self.parts],
            "kept": [f"{part['kept']:,}" for part in self.parts],
            "share": [f"{part['kept'] / part['candidates']:.0%}" for part in self.parts],
        }
        means = [part.get("influence") for part in self.parts]
        if known := [mean for mean in means if mean is not None]:
            scale = Scale(known)
            ends = [_around(part).get("influence_interval", [None, None]) for part in self.parts]
            head = f"mean influence ({scale.name})" if scale.name else "mean influence"
            first[head] = [scale.write(mean) for mean in means]
            first["95 % interval"] = [" to ".join(map(scale.write, pair)) for pair in ends]
        kinds = {"rows": self.rows, "tokens": self.tokens}
        weights = [of.columns(what) for what, of in kinds.items() if of is not None]
        return [
            [[self.by, *columns], *map(list, zip(names, *columns.values(), strict=True))]
            for columns in (first, *weights)
        ]


def mixture(run: SavedRun, by: str) -> Mixture:
    """A run by the values of a column.

    Raises:
        OptionError: the directory does not say which row has which, or no row is kept.
    """
    stored = {name: parts for name, parts in run.provenance.get("composition", {}).items() if parts}
    if by not in stored:
        raise OptionError(
            f"--by {visible(by)}: is not among what was added up when the rows were selected: "
            f"{visible(', '.join(stored)) or 'nothing'}. Labels are, and other columns that the "
            f"model does not read, of 2 to {MOST:,} values with {EACH} rows each."
        )
    if not run.kept:
        raise OptionError(f"--by {visible(by)}: no row is kept, so there is nothing to mix.")
    parts = [part for part in stored[by] if part["candidates"]]
    parts.sort(key=lambda part: -part["kept"] / part["candidates"])
    offered, kept = _column(parts, "candidates"), _column(parts, "kept")
    rows, tokens = shares_kept(offered, kept, offered), None
    if all("tokens_squared" in part for part in parts):
        tokens = shares_kept(
            *(_column(parts, name) for name in ("tokens", "tokens_kept", "tokens_squared"))
        )
    return Mixture(by, parts, rows, tokens, _note(run, by))


def _note(run: SavedRun, by: str) -> str:
    """Why the weights are those of the data, where scores did not make them."""
    selection = None if run.recipe is None else run.recipe.selection
    if run.kept == len(run.scores):
        return "Every row is kept: the weights are the proportions of the data."
    if selection is not None and selection.group_by == by:
        return f"selection.group_by gives each {by} its quota: the weights are the data's."
    if (
        by == run.viewer.label
        and run.recipe
        and find_objective(run.recipe.objective).label == "classes"
    ):
        return "Scores are compared within labels, so that none is emptied by another."
    return ""


def _around(part: dict[str, Any]) -> dict[str, list[float]]:
    """The interval around a mean influence, where there is one."""
    if part.get("influence_error") is None:
        return {}
    far = SURE * part["influence_error"]
    return {"influence_interval": [part["influence"] - far, part["influence"] + far]}


def _column(parts: list[dict[str, Any]], name: str) -> Array:
    return np.array([part[name] for part in parts], dtype=np.float64)
