"""What is said of influences, from what is known of them."""

import pytest

from curate.output.verdict import share_in_words, verdict


@pytest.mark.parametrize(
    ("error", "signal", "probes", "ratio", "words"),
    [
        (0.1, 1.0, 20, None, "to be trusted: size and order"),
        (0.1, 1.0, 20, 0.9, "to be trusted: size and order"),
        (0.5, 1.0, 20, 0.9, "signs and order"),
        (0.7, 1.0, 20, 0.9, "not to be trusted: bring features to one scale"),
        (0.1, 1.0, 20, 0.04, "not to be trusted in sum"),
        (0.1, 1.0, 20, -0.5, "not to be trusted in sum"),
        (0.01, 1.0, 2, None, "too few removals were followed to be sure (2)"),
        (0.9, 1.0, 2, None, "not to be trusted"),
        (0.0, 0.0, 20, None, "not to be trusted"),
    ],
)
def test_verdict(error: float, signal: float, probes: int, ratio: float | None, words: str) -> None:
    assert words in verdict(error, signal, probes, ratio)


def test_a_share_is_never_said_to_be_nothing() -> None:
    assert share_in_words(0.0001, 1.0) == "under 1 %"
    assert share_in_words(0.126, 1.0) == "13 %"
