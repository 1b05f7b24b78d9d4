"""The closing lines of a command, from its summary."""

from typing import Any

from curate.output.tables import columns, evaluation_table, worth_cells
from curate.output.verdict import protocol_line, repeats_line, verdict, worth_line
from curate.runtime.units import duration

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
