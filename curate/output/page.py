"""`report.html`: everything a run knows, in one file that asks nobody for anything."""

import base64
import hashlib
import io
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import PIL.Image
from datasets import Dataset

from curate.errors import OutputError
from curate.output.card import write_card
from curate.output.facts import asked, came_out, trust, why, worth
from curate.output.figures import figures
from curate.output.rows import Shown
from curate.output.saved_run import Run, lines_of, listed, read_run, store_dropped
from curate.output.words import (
    Unit,
    mean_and_spread,
    one_line,
    shorten,
    signed,
    visible,
    worth_cells,
)
from curate.runtime.files import write_whole_text

REPORT = "report.html"
CARDS = 8
"""Rows of each kind that are shown at once."""
CARD_TEXT, LISTED_TEXT, PREVIEW = 500, 700, 160
"""Characters: of a text on a card and in the table, opened and closed."""
CARD_COLUMNS, LISTED_COLUMNS = 40, 16
CARD_PIXELS, LISTED_PIXELS = 192, 48
"""The longest side of a picture there."""


@dataclass(frozen=True)
class Card:
    """A row as it is shown by itself."""

    line: dict[str, Any]
    label: str | None
    shown: list[Shown]
    left_out: int
    why: str


def leave_report(stage: Path, table: Dataset, scores: Any) -> None:
    """Store the dropped rows worth a look in a staged directory, and write its report and card.

    Args:
        table: all candidates. scores: a line each, in their order.
    """
    store_dropped(stage, table, scores)
    write_report(stage)
    write_card(read_run(stage))


def write_report(folder: Path) -> Path:
    """Write `report.html` of a run from what its directory holds; returns where it is.

    Raises:
        UserError: the directory was not written by curate, is damaged, or cannot be written to.
    """
    path, text = folder / REPORT, render(read_run(folder))
    try:
        write_whole_text(path, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}.") from error
    return path


def render(run: Run) -> str:
    """The page, which depends on nothing but what the directory holds."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("curate.output"), autoescape=True, trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "signed": signed,
        "uri": picture_uri,
        "shorten": shorten,
        "spread": mean_and_spread,
    }
    style, script = (_template(name) for name in ("style.css", "rows.js"))
    rows = listed(run.scores)
    unit = Unit(run.scores["influence"].drop_nulls().to_list())
    listing = _listing(run, rows, unit)
    return environment.get_template("report.html.j2").render(
        run=run,
        source=visible(run.source),
        style=style,
        script=script,
        style_hash=_digest(style),
        script_hash=_digest(script),
        asked=asked(run),
        came_out=came_out(run),
        trust=trust(run),
        worth=worth(run),
        ways=[] if run.provenance.worth is None else worth_cells(run.provenance.worth.model_dump()),
        figures=figures(run),
        evaluation=run.provenance.evaluation,
        composition=run.provenance.composition,
        unit=unit,
        groups=_groups(run),
        listing=listing,
        left_out=len(run.scores) - len(rows),
        listed_text=LISTED_TEXT,
        cut=any(len(text) > LISTED_TEXT for row in listing["rows"] for _, text in row["columns"]),
        card_text=CARD_TEXT,
        label_name=run.looks.label,
    )


def picture_uri(picture: PIL.Image.Image, most: int = CARD_PIXELS) -> str:
    """A picture as a `data:` address, at most so many pixels along its longer side.

    As PNG or JPEG, whichever is smaller.
    """
    small = picture.copy()
    small.thumbnail((most, most))
    png, jpeg = io.BytesIO(), io.BytesIO()
    small.save(png, "PNG", optimize=True)
    small.save(jpeg, "JPEG", quality=80)
    kind, file = min(("png", png), ("jpeg", jpeg), key=lambda own: len(own[1].getvalue()))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _groups(run: Run) -> list[tuple[str, str, list[Card]]]:
    """The rows that are shown at once: a title, a sentence, and a card for each."""
    rows = run.scores["row"].to_list()
    cut = int(run.scores["kept"].sum())
    borderline = rows[max(0, cut - CARDS // 2) : cut + CARDS // 2]
    worst = rows[max(CARDS, len(rows) - CARDS) :][::-1]
    groups = [
        ("Most helpful", "The highest scores.", rows[:CARDS]),
        ("Most harmful", "The lowest scores, the lowest first.", worst),
        ("Borderline", "Around the last row that the budget had room for.", borderline),
    ]  # fmt: skip
    if not run.scores["influence"].count():
        groups = [
            ("Best", "The highest scores.", rows[:CARDS]),
            ("Worst", "The lowest scores, the lowest first.", worst),
            groups[2],
        ]
    if cut == len(rows):
        groups.pop()
    return [(title, words, _cards(run, chosen)) for title, words, chosen in groups if chosen]


def _cards(run: Run, rows: list[int]) -> list[Card]:
    cards = []
    for line, content in zip(lines_of(run, rows), run.contents(rows), strict=True):
        shown = [] if content is None else run.looks.row(content)
        label = None if content is None else run.looks.label_of(content)
        some = shown[:CARD_COLUMNS]
        cards.append(Card(line, label, some, len(shown) - len(some), why(run, line)))
    return cards


def _listing(run: Run, rows: list[int], unit: Unit) -> dict[str, Any]:
    """What the table is made of, in plain values."""
    entries = []
    for line, content in zip(lines_of(run, rows), run.contents(rows), strict=True):
        shown = [] if content is None else run.looks.row(content)
        label = None if content is None else run.looks.label_of(content)
        pictures = [own for own in shown if own.picture is not None]
        picture = pictures[0] if pictures else None
        entries.append(
            {
                "row": line["row"], "rank": line["rank"], "score": round(line["score"], 4),
                "influence": _scaled(line["influence"], unit),
                "error": _scaled(line.get("error"), unit),
                "kept": line["kept"], "why": why(run, line), "label": label,
                "text": shorten(one_line(run.looks.preview(shown)), PREVIEW),
                "stored": bool(shown),
                "picture": None if picture is None or picture.picture is None
                else picture_uri(picture.picture, LISTED_PIXELS),
                "heat": picture is not None and picture.kind == "heat",
                "columns": [
                    [own.name, shorten(own.text, LISTED_TEXT)] for own in shown[:LISTED_COLUMNS]
                ],
                "more": max(0, len(shown) - LISTED_COLUMNS),
            }
        )  # fmt: skip
    labels = {entry["label"] for entry in entries if entry["label"] is not None}
    order = sorted(labels, key=lambda label: (not label.lstrip("-").isdigit(), len(label), label))
    return {"labels": order if len(order) <= 200 else [], "rows": entries}


def _scaled(value: float | None, unit: Unit) -> float | None:
    if value is None or value != value:
        return None
    return round(value / 10.0**unit.power, 4)


def _template(name: str) -> str:
    return (files("curate.output") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a Content-Security-Policy names what may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
