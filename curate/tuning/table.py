"""What was tried, as a table, and in a line each while it goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from curate.tuning.grid import Pair, Plan
from curate.tuning.study import Entry, Unit

SCHEMA: dict[str, Any] = {
    "horizon": pl.Int64,
    "learning_rate": pl.Float64,
    "outcome": pl.String,
    "value": pl.Float64,
    "values": pl.List(pl.Float64),
    "signal": pl.Float64,
    "error": pl.Float64,
    "jump": pl.Float64,
    "propagation": pl.Float64,
    "probes": pl.Int64,
    "reason": pl.String,
    "trial": pl.Int64,
    "passes": pl.Float64,
    "seconds": pl.Float64,
}


def table_of(entries: Mapping[Unit, Entry], plan: Plan, best: Pair) -> pl.DataFrame:
    """A line per pair, and one per pilot, which has no horizon.

    outcome: `pilot`; `dropped`, the influences cannot be trusted; `untried`, beyond the budget;
    `failed`, it diverged or kept nothing; `beaten`; `best`. value: the metric on the judging
    part, mean of `values`, one per seed; of a pilot, of training on everything. signal, error,
    jump, propagation, probes: what its pilot showed of a pair, see `View`. reason: of a pair
    without a value. trial: its number in the study (a pilot's in the study of pilots). passes:
    gradients of a batch, about.
    """
    lines: list[dict[str, Any]] = []
    for lr in plan.learning_rates:
        pilot = entries[Unit(lr)]
        lines.append(_line(None, lr, "pilot", pilot))
        for view in pilot.notes["views"]:
            pair = Pair(view["horizon"], lr)
            entry = entries.get(Unit(lr, pair.horizon))
            lines.append(view | _line(pair.horizon, lr, _outcome(pair, entry, best), entry))
    return pl.DataFrame(
        [{name: line.get(name) for name in SCHEMA} for line in lines], schema=SCHEMA
    )


def _line(horizon: int | None, lr: float, outcome: str, entry: Entry | None) -> dict[str, Any]:
    line: dict[str, Any] = {"horizon": horizon, "learning_rate": lr, "outcome": outcome}
    if entry is None:
        return line
    own = {name: entry.notes.get(name) for name in ("values", "reason", "passes", "seconds")}
    return line | own | {"value": entry.value, "trial": entry.number}


def _outcome(pair: Pair, entry: Entry | None, best: Pair) -> str:
    if entry is None:
        return "untried"
    if entry.notes.get("dropped"):
        return "dropped"
    if entry.value is None:
        return "failed"
    return "best" if pair == best else "beaten"


def describe_pilot(
    learning_rate: float, everything: float | None, plan: Plan, trusted: Sequence[int]
) -> str:
    """A line about a pilot that is back."""
    return (
        f"pilot lr {learning_rate:g}: {_shown(everything, plan)} on everything; "
        f"horizons to be trusted: {', '.join(map(str, trusted)) or 'none'}"
    )


def describe_run(pair: Pair, value: float | None, plan: Plan) -> str:
    """A line about a run that is done."""
    return f"run {pair}: {_shown(value, plan)}"


def _shown(value: float | None, plan: Plan) -> str:
    return "no value" if value is None else f"{plan.tune.metric} {value:.4g}"
