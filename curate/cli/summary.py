"""The closing lines of a command, from its summary."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from curate.output.verdict import worth_line
from curate.output.words import (
    cells,
    columns,
    count,
    fit,
    horizon_name,
    mean_and_spread,
    one_line,
    visible,
    worth_cells,
)
from curate.runtime.units import UNITS, duration

WIDE, NAME, SHOWN = 80, 24, 24
"""Columns of a terminal, of a name in it, and lines about columns of data."""
SIGNS = {"dropped": "x ", "untried": ". ", "failed": "- "}


def describe_application(summary: dict[str, Any]) -> str:
    """The closing lines of `curate apply`."""
    rows, kept = summary["rows"], summary["kept"]
    lines = [
        f"rows: {kept:,} of {rows:,} kept ({kept / rows:.1%}); the selection kept "
        f"{summary['expected']:.1%} of its own"
    ]
    if summary["unscored"]:
        lines.append(f"without a score: {summary['unscored']:,}, shorter than data.min_length")
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in summary["seconds"].items())
    return "\n".join([*lines, f"time: {seconds}", f"wrote {summary['out']}"])


def describe_look(seen: dict[str, Any]) -> str:
    """The closing lines of `curate init`: what was seen, what was written, what to type next."""
    rows = [[_cell(cell) for cell in line] for line in seen["columns"]]
    more = [["", "", f"and {len(rows) - SHOWN:,} more"]] * (len(rows) > SHOWN)
    rows = [["column", "taken for", "what is there"], *rows[:SHOWN], *more]
    widths = [min(NAME, max(map(cells, column))) for column in [*zip(*rows, strict=True)][:2]]
    left = WIDE - sum(widths) - 4
    lines = [f"{_cell(seen['data'])}: {count(seen['rows'], 'row')}", ""]
    for name, taken, what in rows:
        line = [fit(name, widths[0]), fit(taken, widths[1]), fit(what, left)]
        lines.append("  ".join(line).rstrip())
    facts = [f"{count(seen['repeated'], 'row')} as one before, in what is used"]
    if seen["contradicting"] is not None:
        facts.append(f"{count(seen['contradicting'], 'row')} as another, with another label")
    if seen["target_rows"] is None:
        facts.append("no validation data: a share of the rows is taken, as noisy as they are")
    else:
        shared, of = seen["shared"], seen["target_rows"]
        facts.append(f"{shared:,} of {of:,} rows of {_cell(seen['target'])} are candidates, too")
    lines += ["", *(fit(fact, WIDE).rstrip() for fact in facts), ""]
    recipe = shlex.quote(seen["recipe"])
    return "\n".join(
        [
            *lines,
            f"wrote {_cell(seen['recipe'])}, whose notes say what each guess could be instead:",
            f"{seen['objective']} with {seen['model']}; next:",
            f"  curate select {recipe} --plan   # how long it will take",
            f"  curate select {recipe}",
        ]
    )


def _cell(text: str) -> str:
    return visible(one_line(text))


def describe_plan(plan: dict[str, Any]) -> str:
    """The lines of `curate select --plan`."""
    processes, time = plan["processes"], plan["seconds"]
    where = plan["device"] if processes == 1 else f"{plan['device']}, {processes} processes"
    of_each = "" if processes == 1 else " of each process"
    scored = "" if plan["scored"] == plan["candidates"] else f"{plan['scored']:,} of "
    lines = [
        f"{plan['policy']} on {scored}{plan['candidates']:,} candidates, {plan['parameters']:,} "
        f"parameters, {where}",
        f"steps: {plan['steps']:,}; windows: {plan['windows']:,} of {plan['horizon']:,}; "
        f"rounds: {plan['rounds']}",
        f"passes (gradients of one batch): {_sum(plan['passes'], '{:,.0f}'.format)}",
        f"memory{of_each}: {_sum(plan['memory'], _size)}",
    ]
    if plan["disk"]["total"]:
        lines.append(f"disk{of_each}: {_sum(plan['disk'], _size)}")
    lines.append(
        f"time: about {duration(time['total'])}: reading {duration(time['read'])}, scoring "
        f"{duration(time['score'])}, judging {duration(time['judge'])}, evaluation "
        f"{duration(time['evaluate'])}, writing and report "
        f"{duration(time['write'] + time['report'])}"
    )
    return "\n".join(lines)


def _sum(parts: Mapping[str, float], write: Any) -> str:
    """A total and the parts that it is the sum of."""
    named = [f"{name} {write(size)}" for name, size in parts.items() if size and name != "total"]
    return f"{write(parts['total'])} = {' + '.join(named)}"


def _size(count: float) -> str:
    name = next((name for name in ("GiB", "MiB") if count >= UNITS[name]), "KiB")
    return f"{count / UNITS[name]:,.1f} {name}"


def describe_verification(summary: dict[str, Any]) -> str:
    """The closing lines of `curate verify`."""
    agreement, mistaken = summary["agreement"], summary["mistaken"]
    head = ["scored as", "Spearman [95 %]", "Pearson [95 %]", "slope", "median relative error"]
    table = [head, _agreement_cells("this run", agreement)]
    if mistaken is not None:
        table.append(_agreement_cells("SGD (mistaken)", mistaken))
    lines = [*columns(table), ""]
    if diverged := summary["examples"] - agreement["examples"]:
        lines.append(f"{diverged} removals made the training diverge; they are left aside here")
    expected = _number(summary["expected_error"], ".2g", "not asked for (selection.probing is 0)")
    lines.append(
        f"error of a score, mean over {agreement['examples']} rows: "
        f"{_number(agreement['error'], '.2g')}; expected by the run: {expected}; "
        f"actual changes: {_number(agreement['signal'], '.2g')}"
    )
    both = [row["spearman"]["value"] for row in (agreement, mistaken) if row is not None]
    if len(both) == 2 and None not in both:
        lines.append(
            f"taking the optimizer for SGD costs {both[0] - both[1]:.3f} of Spearman's "
            "correlation, and the sizes with it"
        )
    lines.append(f"verdict: {summary['verdict']}")
    if summary["reproduced"] is False:
        lines.append(
            "note: scoring again gave other influences than scores.parquet has; code, versions or "
            "device have changed since"
        )
    lines.append(f"wrote {summary['out']}/verify.parquet, verify.png, verify.json")
    return "\n".join(lines)


def _agreement_cells(name: str, row: dict[str, Any]) -> list[str]:
    intervals = []
    for measure in (row["spearman"], row["pearson"]):
        value, low, high = (_number(measure[end], ".3f") for end in ("value", "low", "high"))
        intervals.append(f"{value} [{low}, {high}]")
    return [name, *intervals, _number(row["slope"], ".2f"), _number(row["relative_error"], ".1%")]


def _number(value: float | None, form: str, none: str = "nan") -> str:
    return none if value is None else format(value, form)


def describe_tuning(summary: dict[str, Any], table: pl.DataFrame, out: Path) -> str:
    """The closing lines of `curate tune`, from `Tuned.summary` and its table."""
    metric, steps, everything = summary["metric"], summary["steps"], summary["everything"]
    pairs = table.filter(pl.col("horizon").is_not_null()).sort("learning_rate")
    cells = [["K \\ lr", *(f"{rate} " for rate in everything)]]
    for horizon in summary["horizons"]:
        row = pairs.filter(pl.col("horizon") == horizon).to_dicts()
        cells.append([horizon_name(horizon, steps), *map(_outcome_cell, row)])
    losses = (_number(value, ".3f", "-") + " " for value in everything.values())
    lines = [
        *columns([*cells, ["all rows", *losses]]),
        f"{metric} on the part of the validation set that no score saw; * best, . not tried, "
        "x not to be trusted",
        "",
        summary["why"],
    ]
    if summary["test"] is not None:
        tests = {
            name: mean_and_spread([run[metric] for run in runs])
            for name, runs in summary["test"].items()
        }
        lines.append(
            f"test {metric}, retrained: {tests['kept']} on what it keeps, "
            f"{tests.get('everything', 'diverged')} on everything at the same learning rate"
        )
    share = summary["passes"] / summary["grid_passes"]
    spent = f"spent {share:.0%} of what runs of all {len(pairs)} pairs would cost"
    if (worth := summary["worth"]) is None:
        lines.append("what choosing is worth was not measured: a training for it diverges")
    else:
        best = f"{summary['suits_everything']:g}"
        lines += [
            "",
            *columns(worth_cells(worth)),
            f"{worth_line(worth)}, everything at its best learning rate, {best}; judged by "
            f"{worth['judging']:,} rows that no score saw, but by which the pair was chosen, so a "
            "little in its favor",
        ]
        if worth["answer"] != "pays":
            lines.append(f"so train on everything, at learning rate {best}")
        spent += f", and {worth['steps'] / steps:.1f} trainings on what it is worth"
    lines.append(spent)
    lines.append(f"wrote {out}/recipe.yaml (for curate select), tune.parquet, tune.png, tune.json")
    return "\n".join(lines)


def _outcome_cell(line: dict[str, Any]) -> str:
    if line["value"] is None:
        return SIGNS[line["outcome"]]
    return f"{line['value']:.3f}{'*' if line['outcome'] == 'best' else ' '}"
