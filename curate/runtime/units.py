"""Sizes and times, from text and to text: the only place that turns one into the other."""

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 3 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def memory_bytes(text: str) -> int:
    """The bytes of a size such as 1.5GiB."""
    return int(float(text[:-3]) * UNITS[text[-3:]])


def size(count: float) -> str:
    """A number of bytes in the largest unit of which there is one, at least in KiB: 1.5 GiB."""
    unit = next((unit for unit, one in UNITS.items() if count >= one), "KiB")
    return f"{count / UNITS[unit]:,.1f} {unit}"
