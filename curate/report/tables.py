"""Tables of text."""

from typing import Any

from curate.report.words import cells, fit, mean_and_spread


def columns(rows: list[list[str]]) -> list[str]:
    """Cells under each other, those of the first column to the left and the others to the right."""
    widths = [max(cells(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            [fit(row[0], widths[0])]
            + [" " * (w - cells(cell)) + cell for cell, w in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


def evaluation_table(rows: list[dict[str, Any]]) -> list[str]:
    """Test metrics of every alternative as lines of text, see `evaluation_cells`."""
    return columns(evaluation_cells(rows))


def evaluation_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Test metrics of every alternative, mean and spread over the seeds, best loss first.

    The first line is the head.
    """
    metrics = [key for key, value in rows[0].items() if isinstance(value, dict)]
    noise, tokens = rows[0]["noise_left"] is not None, "tokens" in rows[0]
    header = [
        "retrained on",
        "rows",
        *(["tokens"] if tokens else []),
        *(["noise"] if noise else []),
        *(f"test {m}" for m in metrics),
    ]
    body = [
        [
            row["trained_on"],
            str(row["rows"]),
            *([f"{row['tokens']:,}"] if tokens else []),
            *([f"{row['noise_left']:.1%}"] if noise else []),
            *(mean_and_spread(row[m]["values"]) for m in metrics),
        ]
        for row in sorted(rows, key=lambda row: row["loss"]["mean"])
    ]
    return [header, *body]
