"""Tables of text."""

from typing import Any

from curate.output.words import cells, fit, mean_and_spread


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


def worth_cells(worth: dict[str, Any]) -> list[list[str]]:
    """What is kept and what else was trained on, judged by target rows; the first line is the head.

    From `Worth.row`. Gains are over everything, in loss, with their 95 % intervals.
    """
    metrics = [*worth["chosen"]["metrics"]]
    ways = [worth["chosen"], *worth["against"]]
    ways += [own for own in worth["tried"] if own["share"] != worth["chosen"]["share"]]
    head = ["trained on", "rows", "loss", *metrics, "gain", "interval", "without stopping"]
    return [
        head,
        *(
            [
                own["name"] if own["share"] is None else f"{own['name']}, {own['share']:.0%}",
                f"{own['rows']:,}",
                f"{own['loss']:.3f}",
                *(f"{own['metrics'][name]:.3f}" for name in metrics),
                "" if own["name"] == "everything" else f"{own['gain']:+.3f}",
                "" if own["name"] == "everything" else f"{own['low']:+.3f} to {own['high']:+.3f}",
                f"{own['last']:.3f}",
            ]
            for own in sorted(ways, key=lambda own: own["loss"])
        ),
    ]


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
