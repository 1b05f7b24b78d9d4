"""Which states to keep when not all fit: binomial checkpointing.

Griewank & Walther, "Algorithm 799: Revolve", ACM TOMS 26 (2000). With s
snapshots, C(s + r, s) steps can be reversed by doing each forward step at most
r times more; no schedule does better.
"""

from math import comb


def split(length: int, snapshots: int) -> int:
    """How far past the first snapshot of a stretch to put the next one.

    Args:
        length: steps to be reversed, at least 2.
        snapshots: states that may be kept on the stretch, its first included, at least 2.
    """
    repeats = 1
    while comb(snapshots + repeats, snapshots) < length:
        repeats += 1
    left = comb(snapshots + repeats - 1, snapshots)
    return max(1, min(left, length - comb(snapshots + repeats - 2, snapshots - 1)))


def placements(start: int, end: int, snapshots: int) -> list[int]:
    """Where a forward sweep over steps start..end-1 keeps a state, `start` itself included."""
    places = [start]
    while snapshots > 1 and end - places[-1] > 1:
        places.append(places[-1] + split(end - places[-1], snapshots))
        snapshots -= 1
    return places


def redone(steps: int, snapshots: int) -> int:
    """How many forward steps the way back through a recording of so many steps adds.

    With r the least number for which C(s + r, s) > K: r (K + 1) - C(s + r, s + 1) - K.
    """
    repeats = 0
    while comb(snapshots + repeats, snapshots) <= steps:
        repeats += 1
    return repeats * (steps + 1) - comb(snapshots + repeats, snapshots + 1) - steps
