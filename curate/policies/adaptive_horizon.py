"""A horizon that follows how well its predictions come true."""

from dataclasses import dataclass

GOOD = (0.6, 1.5)
POOR = (0.45, 2.0)


@dataclass(frozen=True)
class AdaptiveHorizon:
    """Trust-region rule for K (DESIGN 3.8): twice as far after a good window, half after a bad.

    With r = realised / predicted change of the target loss over a window,

        0.6 <= r <= 1.5       K <- min(2 K, highest)
        r < 0.45 or r > 2     K <- max(K // 2, lowest)

    and K stays as it is in between, or where r is not known. What is kept was
    chosen for its prediction, so r is below 1 even where the picture holds.

    Measured, it keeps K from being absurd and does no better than a fixed K of
    2 to 4 (`examples/benchmarks/RESULTS.md`).
    """

    lowest: int = 1
    highest: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.lowest <= self.highest:
            raise ValueError(
                f"bounds of the horizon must be 1 <= lowest <= highest but got {self.lowest} "
                f"and {self.highest}"
            )

    def start(self) -> int:
        """The first window's K."""
        return min(max(4, self.lowest), self.highest)

    def after(self, horizon: int, ratio: float | None) -> int:
        """K of the next window, from this one's K and ratio."""
        if ratio is None:
            return horizon
        if GOOD[0] <= ratio <= GOOD[1]:
            return min(2 * horizon, self.highest)
        if not POOR[0] <= ratio <= POOR[1]:
            return max(horizon // 2, self.lowest)
        return horizon
