"""Numbers and texts of others, as they can be read: in a page and in a terminal alike."""

import math
import re
import unicodedata
from collections.abc import Sequence
from statistics import mean, stdev

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
