"""The closing lines of a command, from its summary."""

from pathlib import Path
from typing import Any

import polars as pl

from curate.output.verdict import protocol_line, repeats_line, verdict, worth_line
from curate.output.words import (
    columns,
    evaluation_table,
    horizon_name,
    mean_and_spread,
    worth_cells,
)
from curate.runtime.units import duration

SIGNS = {"dropped": "x ", "untried": ". ", "failed": "- "}
UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def describe(summary: dict[str, Any]) -> str:
    """What `curate select` says when it is done."""
    lines = [_worth(summary), ""]
    if "worth" in summary:
        lines += [*columns(worth_cells(summary["worth"])), protocol_line(summary["worth"]), ""]
    if "evaluation" in summary:
        lines += [*evaluation_table(summary["evaluation"]), ""]
    tokens = summary.get("tokens")
    counted = f", {tokens['kept']:,} of {tokens['candidates']:,} tokens," if tokens else ""
    lines.append(
        f"kept {summary['kept']} of {summary['candidates']} rows{counted} by {summary['policy']} "
        f"({summary['steps']} steps, {_where(summary)})"
    )
    if "noise" in summary:
        noise = summary["noise"]
        lines.append(
            f"label noise: {noise['planted']} rows planted, {noise['kept']} kept, "
            f"AUROC of the score {noise['auroc']:.3f}"
        )
    lines += _counts("left out, shorter than data.min_length", summary.get("left_out", {}))
    lines += _counts("truncated to data.max_length", summary.get("truncated", {}))
    if "repeats" in summary:
        lines.append(repeats_line(summary["repeats"]))
    if "error" in summary:
        error = summary["error"]
        lines.append(
            f"influence: {error['signal']:.2g} on average, expected to be off by "
            f"{error['error']:.2g} (jump {error['jump']:.2g}, propagation "
            f"{error['propagation']:.2g}, derivative {error.get('derivative', 0.0):.2g}; "
            f"{error['probes']} removals followed exactly)"
        )
        lines.append(f"influences: {verdict(error['error'], error['signal'], error['probes'])}")
    lines.append(f"wrote {summary['out']}; to look at: {summary['out']}/report.html")
    lines.append(", ".join(f"{name} {value:.1f} s" for name, value in summary["seconds"].items()))
    return "\n".join(lines)


def _worth(summary: dict[str, Any]) -> str:
    """Whether choosing pays: the first line."""
    if "worth" not in summary:
        return "what choosing is worth was not measured (selection.judge, data.validation)"
    return f"{worth_line(summary['worth'])}; all this took {summary['cost']:.1f} plain trainings"


def _counts(what: str, found: dict[str, int]) -> list[str]:
    """A line with how many rows of what, unless there are none."""
    parts = ", ".join(f"{count} of {name}" for name, count in found.items() if count)
    return [f"{what}: {parts}"] if parts else []


def describe_plan(plan: dict[str, Any]) -> str:
    """What `curate select --plan` says."""
    passes, memory, disk, seconds = (
        plan[name].copy() for name in ("passes", "memory", "disk", "seconds")
    )
    total, held, in_files = (parts.pop("total") for parts in (passes, memory, disk))
    each = "" if plan["processes"] == 1 else " of each process"
    return "\n".join(
        [
            f"{plan['policy']} on {plan['candidates']:,} candidates, {plan['parameters']:,} "
            f"parameters, {_where(plan)}",
            f"steps: {plan['steps']:,}; windows: {plan['windows']:,} of {plan['horizon']:,}; "
            f"rounds: {plan['rounds']}",
            f"passes (gradients of one batch): {total:,.0f} = "
            + " + ".join(f"{name} {count:,.0f}" for name, count in passes.items() if count),
            f"memory{each}: {_size(held)} = {_sizes(memory)}",
            *([f"disk{each}: {_size(in_files)} = {_sizes(disk)}"] if in_files else []),
            f"time: about {duration(seconds['total'])}: scoring {duration(seconds['score'])}, "
            f"judging {duration(seconds['judge'])}, evaluation {duration(seconds['evaluate'])}",
        ]
    )


def _where(summary: dict[str, Any]) -> str:
    """The device, and how many processes share the run if there are several."""
    count = summary["processes"]
    return str(summary["device"]) if count == 1 else f"{summary['device']}, {count} processes"


def _sizes(parts: dict[str, int]) -> str:
    return " + ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)


def _size(count: float) -> str:
    unit, name = next(u for u in UNITS if count >= u[0] or u[0] == 2**10)
    return f"{count / unit:,.1f} {name}"


def describe_verification(summary: dict[str, Any]) -> str:
    """What `curate verify` says when it is done."""
    found, mistaken = summary["agreement"], summary["mistaken"]
    rows = [("this run", found), ("SGD (mistaken)", mistaken)]
    head = ["scored as", "Spearman [95 %]", "Pearson [95 %]", "slope", "median relative error"]
    cells = [head, *(_agreement_cells(name, row) for name, row in rows if row is not None)]
    lines = [*columns(cells), ""]
    if diverged := summary["examples"] - found["examples"]:
        lines.append(f"{diverged} removals made the training diverge; they are left aside here")
    expected = summary["expected_error"]
    expected = "not asked for (selection.probing is 0)" if expected is None else f"{expected:.2g}"
    lines.append(
        f"error of a score, mean over {found['examples']} rows: {_known(found['error'], '.2g')}; "
        f"expected by the run: {expected}; actual changes: {_known(found['signal'], '.2g')}"
    )
    if mistaken is not None:
        one, other = (own["spearman"]["value"] for own in (found, mistaken))
        if one is not None and other is not None:
            lines.append(
                f"taking the optimizer for SGD costs {one - other:.3f} of Spearman's correlation, "
                "and the sizes with it"
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
    intervals = (
        f"{_known(own['value'], '.3f')} [{_known(own['low'], '.3f')}, {_known(own['high'], '.3f')}]"
        for own in (row["spearman"], row["pearson"])
    )
    return [name, *intervals, _known(row["slope"], ".2f"), _known(row["relative_error"], ".1%")]


def _known(value: float | None, form: str) -> str:
    return "nan" if value is None else format(value, form)


def describe_tuning(summary: dict[str, Any], table: pl.DataFrame, out: Path) -> str:
    """What `curate tune` says when it is done, from `Tuned.summary` and its table."""
    metric, steps, everything = summary["metric"], summary["steps"], summary["everything"]
    pairs = table.filter(pl.col("horizon").is_not_null())
    cells = [["K \\ lr", *(f"{rate} " for rate in everything)]]
    for k in summary["horizons"]:
        row = pairs.filter(pl.col("horizon") == k).sort("learning_rate").to_dicts()
        cells.append([horizon_name(k, steps), *map(_outcome_cell, row)])
    shown = (SIGNS["failed"] if v is None else f"{v:.3f} " for v in everything.values())
    cells.append(["all rows", *shown])
    lines = [
        *columns(cells),
        f"{metric} on the part of the validation set that no score saw; * best, . not tried, "
        "x not to be trusted",
        "",
        summary["why"],
    ]
    if summary["test"] is not None:
        each = {
            name: mean_and_spread([run[metric] for run in runs])
            for name, runs in summary["test"].items()
        }
        lines.append(
            f"test {metric}, retrained: {each['kept']} on what it keeps, "
            f"{each.get('everything', 'diverged')} on everything at the same learning rate"
        )
    spent = (
        f"spent {summary['passes'] / summary['grid_passes']:.0%} of what runs of all {len(pairs)} "
        "pairs would cost"
    )
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
