"""Whether influences are to be believed: the same words when a run ends and in its report."""

FIRM, LOOSE = 0.3, 0.6
"""Expected error over the size of an influence, up to which size and order, and order, hold."""
FEW = 5
"""Removals followed below which their error says little."""
ADDS_UP, FAILS = 0.7, 0.3
"""Realised over predicted change of a window, from which influences add up, or below do not."""


def verdict(error: float, signal: float, probes: int, ratio: float | None = None) -> str:
    """One sentence on influences of mean size `signal` that are expected to be off by `error`.

    ratio: realised over predicted change of the windows, where it was measured.
    """
    share = error / signal if signal else float("inf")
    if share > LOOSE:
        return (
            "not to be trusted: bring features to one scale (data.standardize), shorten the "
            "horizon or lower the learning rate"
        )
    if ratio is not None and ratio < FAILS:
        return (
            "not to be trusted in sum: each influence is about right, but rows dropped together "
            "did not do what theirs add up to"
        )
    if probes < FEW:
        return f"too few removals were followed to be sure ({probes}); curate verify is"
    if share > FIRM:
        return "to be trusted for signs and order more than for sizes"
    return "to be trusted: size and order are right on average"


def share_in_words(error: float, signal: float) -> str:
    """The expected error in percent of the size of an influence."""
    share = error / signal if signal else float("inf")
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
