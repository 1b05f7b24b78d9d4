"""A figure before it is drawn: axes, and marks in the units of its canvas."""

import math
from dataclasses import dataclass, field

from curate.report.words import Unit, plain

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 40


@dataclass(frozen=True)
class Axis:
    """From values to places along the canvas."""

    low: float
    high: float
    start: float
    end: float
    name: str
    log: bool = False

    @property
    def unit(self) -> Unit:
        """What its values are given in."""
        return Unit([max(abs(self.low), abs(self.high))])

    @property
    def label(self) -> str:
        """What it is, and in what unit."""
        return f"{self.name} ({self.unit.name})" if self.unit.name else self.name

    def at(self, value: float) -> float:
        """Where a value is."""
        low, high, own = (self._scaled(v) for v in (self.low, self.high, value))
        share = (own - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and names of round values, about five."""
        scale = 10.0**self.unit.power
        if self.log:
            return [(self.at(v), plain(v / scale)) for v in _round_powers(self.low, self.high)]
        step = _round_step((self.high - self.low) / 4.5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step / scale) + 1e-9))
        names = [
            f"{k * step / scale:,.{digits}f}".replace("-", "−") for k in range(first, last + 1)
        ]
        return [
            (self.at(k * step), name) for k, name in zip(range(first, last + 1), names, strict=True)
        ]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclass(frozen=True)
class Mark:
    """Something drawn: line (points), dot (x, y), bar (x, y, width, height), rule (two points),
    text (x, y). look: its class, of which the style sheet knows the colour. title: on hovering."""

    shape: str
    look: str
    numbers: tuple[float, ...] = ()
    title: str = ""
    points: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure with its words: a title, a sentence on how to read it, what its looks mean."""

    name: str
    title: str
    caption: str
    x: Axis
    y: Axis
    marks: list[Mark]
    legend: list[tuple[str, str]] = field(default_factory=list)
    height: int = HEIGHT
    names: list[tuple[float, str]] = field(default_factory=list)
    """Of lines along y, where it counts nothing."""


def _round_step(step: float) -> float:
    if step <= 0 or not math.isfinite(step):
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= step)


def _round_powers(low: float, high: float) -> list[float]:
    """Powers of ten within a range, or times 1, 2 and 5 where it has few of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1,) if len(decades) > 4 else (1, 2, 5)
    every = -(-len(decades) // 6) or 1
    values = [digit * 10.0**power for power in decades[::every] for digit in digits]
    return [value for value in values if low <= value <= high]
