"""Sizes and times, from text and to text: the only place that turns one into the other."""

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 3 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def memory_bytes(size: str) -> int:
    """A size such as 1.5GiB in bytes."""
    return int(float(size[:-3]) * UNITS[size[-3:]])
