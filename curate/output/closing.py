"""The closing lines of `curate select`, for a terminal and for a notebook, from its summary."""

from collections.abc import Sequence
from html import escape
from typing import Any

from curate.output.facts import came_out
from curate.output.verdict import error_line, protocol_line, repeats_line, worth_line
from curate.output.words import columns, evaluation_cells, visible, worth_cells


def first_line(summary: dict[str, Any]) -> str:
    """What choosing is worth, and what it took to find out."""
    if (worth := summary.get("worth")) is None:
        return "what choosing is worth was not measured (selection.judge, data.validation)"
    return f"{worth_line(worth)}; all this took {summary['cost']:.1f} plain trainings"


def closing_lines(summary: dict[str, Any]) -> str:
    """What choosing is worth, what was kept, and how far influences are to be trusted."""
    lines = [first_line(summary), ""]
    if (worth := summary.get("worth")) is not None:
        lines += [*columns(worth_cells(worth)), protocol_line(worth, summary["candidates"]), ""]
    if "evaluation" in summary:
        lines += [*columns(evaluation_cells(summary["evaluation"])), ""]
    lines += _facts(summary)
    lacks = summary.get("missing", {})
    look = "" if "report.html" in lacks else f"; to look at: {summary['out']}/report.html"
    return "\n".join([*lines, f"wrote {summary['out']}{look}"])


def closing_html(summary: dict[str, Any]) -> str:
    """The same for a notebook, without a style of its own."""
    parts = [f"<p><b>{escape(first_line(summary))}</b></p>"]
    if (worth := summary.get("worth")) is not None:
        note = escape(protocol_line(worth, summary["candidates"]))
        parts += [_table(worth_cells(worth)), f"<p><small>{note}</small></p>"]
    if "evaluation" in summary:
        parts.append(_table(evaluation_cells(summary["evaluation"])))
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in _facts(summary))
    return "\n".join([*parts, f"<ul>{facts}</ul>"])


def _facts(summary: dict[str, Any]) -> list[str]:
    facts = came_out(summary, summary["kept"], summary["candidates"])
    if "error" in summary:
        facts["influences"] = error_line(summary["error"])
    lines = [f"{name}: {visible(text)}" for name, text in facts.items()]
    return [*lines, repeats_line(summary["repeats"])] if "repeats" in summary else lines


def _table(rows: Sequence[Sequence[str]]) -> str:
    tags = ["th", *["td"] * (len(rows) - 1)]
    lines = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(tags, rows, strict=True)
    )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
