"""Numbers and texts of others, as they can be read: in a page and in a terminal alike."""

import math
import re
import unicodedata
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Characters that steer a terminal or the direction of writing, or cannot be seen; not tab and
newline."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def visible(text: str) -> str:
    """The text with characters that do something, rather than stand there, spelled out."""
    return HIDDEN.sub(lambda found: _spelled(ord(found[0])), text)


def _spelled(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def shorten(text: str, most: int) -> str:
    """At most so many characters, and how many there are more."""
    if len(text) <= most:
        return text
    return f"{text[:most].rstrip()} … ({len(text) - most:,} more characters)"


def one_line(text: str) -> str:
    """The text without line breaks and repeated blanks."""
    return " ".join(text.split())


def cells(text: str) -> int:
    """Columns that a line of text takes in a terminal: wide characters two, combining ones none."""
    return sum(_cells(character) for character in text)


def fit(text: str, width: int) -> str:
    """The text in exactly `width` columns: filled up with blanks, or cut with an ellipsis."""
    size = cells(text)
    if size <= width:
        return text + " " * (width - size)
    used, cut = 0, []
    for character in text:
        own = _cells(character)
        if used + own > width - 1:
            break
        cut.append(character)
        used += own
    return "".join(cut) + "…" + " " * (width - 1 - used)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at blanks where there are any, and at newlines."""
    lines = []
    for paragraph in text.expandtabs(4).split("\n"):
        line, used = "", 0
        for word in re.findall(r"\s*\S+", paragraph) or [""]:
            size = cells(word)
            if used + size <= width:
                line, used = line + word, used + size
                continue
            if line:
                lines.append(line)
            line, used = "", 0
            for character in word.lstrip():
                own = _cells(character)
                if used + own > width:
                    lines.append(line)
                    line, used = "", 0
                line, used = line + character, used + own
        lines.append(line)
    return lines


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def mean_and_spread(values: Sequence[float]) -> str:
    """A mean and, of several values, their sample standard deviation."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def plain(value: float) -> str:
    """Three digits of a number, with a true minus and true powers."""
    if not math.isfinite(value):
        return "–"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}".replace("-", "−")
    digits, _, power = f"{value:.3g}".replace("-", "−").partition("e")
    return f"{digits} × 10{power_of(power)}" if power else digits


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def power_of(power: str) -> str:
    """An exponent as it is set."""
    return str(int(power.replace("−", "-"))).translate(SUPERSCRIPTS)


def count(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Unit:
    """A power of ten that numbers are given in, so that their digits stand below each other."""

    def __init__(self, values: Sequence[float]) -> None:
        """The power that leaves the larger of `values` one or two digits; 1 for common sizes."""
        sizes = sorted(abs(v) for v in values if math.isfinite(v) and v)
        size = sizes[int(0.9 * (len(sizes) - 1))] if sizes else 1.0
        power = math.floor(math.log10(size))
        self.power = 0 if -2 <= power <= 3 else power

    @property
    def name(self) -> str:
        """For a heading; empty where numbers are given as they are."""
        return f"10{power_of(str(self.power))}" if self.power else ""

    def write(self, value: float | None, *, signed: bool = True, named: bool = False) -> str:
        """A number in this unit, with two decimals (three where the unit is 1)."""
        if value is None or not math.isfinite(value):
            return "–"
        text = f"{value / 10.0**self.power:{'+' if signed else ''}.{2 if self.power else 3}f}"
        text = text.replace("-", "−")
        return f"{text} × {self.name}" if named and self.power else text


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


def horizon_name(horizon: int, steps: int) -> str:
    """A horizon of a run of `steps` steps as people say it."""
    return f"full ({steps})" if horizon == steps else str(horizon)
