"""`report.html`: everything a run knows, in one file that asks nobody for anything."""

import base64
import hashlib
import io
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import PIL.Image
from datasets import Dataset

from curate.errors import OutputError
from curate.output.card import CARD, write_card
from curate.output.facts import every_fact
from curate.output.figures import figures
from curate.output.saved_run import (
    DROPPED,
    RowView,
    SavedRun,
    listed,
    read_run,
    read_scores,
    store_dropped,
)
from curate.output.words import (
    Scale,
    evaluation_cells,
    one_line,
    signed,
    truncate,
    worth_cells,
)
from curate.runtime.files import write_whole_text
from curate.runtime.parts import Parts

REPORT = "report.html"
REPORTED = (DROPPED, REPORT, CARD)
"""The files that `leave_report` leaves, each a part of its own."""
CARDS = 8
"""Rows of each kind that are shown at once."""
CARD_TEXT, LISTED_TEXT, PREVIEW = 500, 700, 160
"""Characters: of a text on a card and in the table, opened and closed."""
CARD_COLUMNS, LISTED_COLUMNS = 40, 16
CARD_PIXELS, LISTED_PIXELS = 192, 48
"""The longest side of a picture there."""
MOST_LABELS = 200
"""Labels that can be chosen from a list, and values of a column that have a line each."""


def leave_report(folder: Path, table: Dataset, parts: Parts) -> None:
    """Store the dropped rows worth a look in a directory, and write its report and card.

    Args:
        table: all candidates. parts: notes what fails.
    """
    scores = folder / "scores.parquet"
    parts.attempt(DROPPED, lambda: store_dropped(folder, table, read_scores(scores)))
    read = cache(lambda: read_run(folder))
    parts.attempt(REPORT, lambda: _write(read()))
    parts.attempt(CARD, lambda: write_card(read()))


def write_report(folder: Path) -> Path:
    """Write `report.html` of a run from what its directory holds; returns where it is.

    Raises:
        UserError: the directory was not written by curate, is damaged, or cannot be written to.
    """
    return _write(read_run(folder))


def _write(run: SavedRun) -> Path:
    path, text = run.folder / REPORT, render(run)
    try:
        write_whole_text(path, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}.") from error
    return path


@cache
def _page() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("curate.output"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "signed": signed,
        "uri": picture_uri,
        "truncate": truncate,
        "digest": _digest,
    }
    return environment.get_template("report.html.j2")


def render(run: SavedRun) -> str:
    """The page, which depends on nothing but what the directory holds."""
    made = run.provenance
    scale = Scale(run.scores.influences)
    rows = run.scores.ranked(listed(len(run.scores), run.kept))
    entries = [_entry(view, scale) for view in run.views(rows)]
    return _page().render(
        run=run,
        style=_template("style.css"),
        script=_template("rows.js"),
        facts=every_fact(run),
        ways=worth_cells(made["worth"]) if "worth" in made else [],
        figures=figures(run),
        evaluation=evaluation_cells(made["evaluation"]) if made.get("evaluation") else [],
        composition={
            name: parts
            for name, parts in made.get("composition", {}).items()
            if len(parts) <= MOST_LABELS
        },
        scale=scale,
        groups=_groups(run),
        entries=entries,
        labels=_labels(entries),
        listed_text=LISTED_TEXT,
        cut=any(text.endswith(" more characters)") for e in entries for _, text in e["columns"]),
        card_text=CARD_TEXT,
        card_columns=CARD_COLUMNS,
    )


def picture_uri(picture: PIL.Image.Image, most: int = CARD_PIXELS) -> str:
    """A picture as a `data:` address, at most so many pixels along its longer side.

    As PNG or JPEG, whichever is smaller.
    """
    small = picture.copy()
    small.thumbnail((most, most))
    options: dict[str, dict[str, Any]] = {"png": {"optimize": True}, "jpeg": {"quality": 80}}
    written = {kind: io.BytesIO() for kind in options}
    for kind, file in written.items():
        small.save(file, kind, **options[kind])
    kind, file = min(written.items(), key=lambda item: len(item[1].getvalue()))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _groups(run: SavedRun) -> list[tuple[str, str, list[RowView]]]:
    """The rows that are shown at once: a title, a sentence, and the rows."""
    count, cut = len(run.scores), run.kept
    best, worst = ("Most helpful", "Most harmful") if run.has_influences else ("Best", "Worst")
    lowest = range(max(CARDS, count - CARDS), count)[::-1]
    borderline = range(max(0, cut - CARDS // 2), min(count, cut + CARDS // 2) if cut < count else 0)
    groups = [
        (best, "The highest scores.", range(min(CARDS, count))),
        (worst, "The lowest scores, the lowest first.", lowest),
        ("Borderline", "Around the last row that the budget had room for.", borderline),
    ]
    by_rank = {line["rank"] - 1: row for row, line in run.scores.known().items()}
    return [
        (title, words, [*run.views([by_rank[k] for k in places])])
        for title, words, places in groups
        if places
    ]


def _entry(view: RowView, scale: Scale) -> dict[str, Any]:
    """A row of the table in plain values."""
    line, picture = view.line, view.picture
    uri = picture and picture.picture and picture_uri(picture.picture, LISTED_PIXELS)
    shown = view.shown[:LISTED_COLUMNS]
    return {
        "row": line["row"],
        "rank": line["rank"],
        "score": round(line["score"], 4),
        "influence": _scaled(line["influence"], scale),
        "error": _scaled(line.get("error"), scale),
        "kept": line["kept"],
        "why": view.why,
        "label": view.label,
        "text": truncate(one_line(view.preview), PREVIEW),
        "stored": bool(view.shown),
        "picture": uri,
        "heat": picture is not None and picture.kind == "heat",
        "columns": [[column.name, truncate(column.text, LISTED_TEXT)] for column in shown],
        "more": max(0, len(view.shown) - LISTED_COLUMNS),
    }


def _labels(entries: list[dict[str, Any]]) -> list[str]:
    """Labels to choose from, numbers first; none if they are too many."""
    labels = {entry["label"] for entry in entries if entry["label"] is not None}
    if len(labels) > MOST_LABELS:
        return []
    return sorted(labels, key=lambda label: (not label.lstrip("-").isdigit(), len(label), label))


def _scaled(value: float | None, scale: Scale) -> float | None:
    return None if value is None or value != value else round(value / 10.0**scale.power, 4)


def _template(name: str) -> str:
    return (files("curate.output") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """A hash as a Content-Security-Policy names what may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
