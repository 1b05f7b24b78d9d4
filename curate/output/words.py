"""Numbers, tables and other people's texts, made readable in a page and in a terminal alike."""

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, takewhile
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
    return HIDDEN.sub(lambda match: _spelled(ord(match[0])), text)


def _spelled(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def truncate(text: str, most: int) -> str:
    """At most `most` characters, and how many more there are."""
    if len(text) <= most:
        return text
    return f"{text[:most].rstrip()} … ({len(text) - most:,} more characters)"


def one_line(text: str) -> str:
    """The text without line breaks and repeated blanks."""
    return " ".join(text.split())


def cells(text: str) -> int:
    """Columns that a line of text takes in a terminal: wide characters two, combining ones none."""
    return sum(map(_cells, text))


def fit(text: str, width: int) -> str:
    """The text in exactly `width` columns: filled up with blanks, or cut with an ellipsis."""
    if cells(text) > width:
        text = text[: _fitting(text, width - 1)] + "…"
    return text + " " * (width - cells(text))


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at blanks where there are any, and at newlines."""
    lines = []
    for paragraph in text.expandtabs(4).split("\n"):
        line = ""
        for word in re.findall(r"\s*\S+", paragraph):
            if cells(line) + cells(word) <= width:
                line += word
                continue
            if line:
                lines.append(line)
            line = word.lstrip()
            while (fitting := max(1, _fitting(line, width))) < len(line):
                lines.append(line[:fitting])
                line = line[fitting:]
        lines.append(line)
    return lines


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitting(text: str, width: int) -> int:
    """How many characters from the first on take at most `width` columns."""
    return sum(1 for _ in takewhile(lambda used: used <= width, accumulate(map(_cells, text))))


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
    return f"{digits} × 10{_raised(power)}" if power else digits


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _raised(power: str) -> str:
    return str(int(power.replace("−", "-"))).translate(SUPERSCRIPTS)


def percent(share: float) -> str:
    """A share, three digits of it."""
    return "over 1000%" if share > 10 else f"{100 * share:.3g}%"


def count(number: int, noun: str) -> str:
    """A number of things, with the plural where there is more than one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def horizon_name(horizon: int, steps: int) -> str:
    """A horizon as people call it in a run of `steps` steps."""
    return f"full ({steps})" if horizon == steps else str(horizon)


class Scale:
    """A power of ten that numbers are given in, so that their digits stand below each other."""

    def __init__(self, values: Sequence[float]) -> None:
        """The power that leaves the larger of `values` one or two digits; 1 for common sizes."""
        sizes = sorted(abs(v) for v in values if math.isfinite(v) and v)
        size = sizes[int(0.9 * (len(sizes) - 1))] if sizes else 1.0
        power = math.floor(math.log10(size))
        self.power = 0 if -2 <= power <= 3 else power

    @property
    def name(self) -> str:
        """The power for a heading; empty where numbers are given as they are."""
        return f"10{_raised(str(self.power))}" if self.power else ""

    def write(self, value: float | None, *, sign: str = "+", named: bool = False) -> str:
        """A number on this scale, with two decimals (three where the scale is 1)."""
        if value is None or not math.isfinite(value):
            return "–"
        text = f"{value / 10.0**self.power:{sign}.{2 if self.power else 3}f}".replace("-", "−")
        return f"{text} × {self.name}" if named and self.power else text


def columns(rows: list[list[str]]) -> list[str]:
    """Lines with cells below each other, the first column to the left and others to the right."""
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            " " * (width - cells(cell)) + cell if place else fit(cell, width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def worth_cells(worth: dict[str, Any]) -> list[list[str]]:
    """What is kept and what else was trained on, judged by target rows; the first row is the head.

    From `Worth.row`. Gains are over everything, in loss, with their 95 % intervals; where fewer or
    more rows judge than judge what is kept, losses are of those.
    """
    chosen, judging = worth["chosen"], worth["judging"]
    metrics = [*chosen["metrics"]]
    tried = [way for way in worth["tried"] if way["share"] != chosen["share"]]
    ways = sorted([chosen, *worth["against"], *tried], key=lambda way: way["loss"])
    head = ["trained on", "rows", "loss", *metrics, "gain", "interval", "without stopping"]
    body = [
        [
            _named(way) + (f", by {way['judging']:,} rows" if way["judging"] != judging else ""),
            f"{way['rows']:,}",
            *(f"{value:.3f}" for value in (way["loss"], *map(way["metrics"].get, metrics))),
            *_gain(way),
            f"{way['last']:.3f}",
        ]
        for way in ways
    ]
    return [head, *body]


def _named(way: dict[str, Any]) -> str:
    return way["name"] if way["share"] is None else f"{way['name']}, {way['share']:.0%}"


def _gain(way: dict[str, Any]) -> tuple[str, str]:
    if way["name"] == "everything":
        return "", ""
    return f"{way['gain']:+.3f}", f"{way['low']:+.3f} to {way['high']:+.3f}"


def evaluation_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Test metrics of every alternative, mean and spread over the seeds, best loss first.

    The first row is the head.
    """
    first, rows = rows[0], sorted(rows, key=lambda row: row["loss"]["mean"])
    table = {
        "retrained on": [row["trained_on"] for row in rows],
        "rows": [f"{row['rows']:,}" for row in rows],
    }
    if first.get("tokens") is not None:
        table["tokens"] = [f"{row['tokens']:,}" for row in rows]
    if first.get("noise_left") is not None:
        table["wrong labels"] = [f"{row['noise_left']:.1%}" for row in rows]
    for name, metric in first.items():
        if isinstance(metric, dict):
            table[f"test {name.replace('_', ' ')}"] = [
                mean_and_spread(row[name]["values"]) for row in rows
            ]
    return [list(table), *map(list, zip(*table.values(), strict=True))]
