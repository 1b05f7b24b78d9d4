"""What is said about influences and about choosing by them."""

from math import nan
from typing import Any

import polars as pl
import pytest

from curate.output.verdict import (
    agreement_verdict,
    error_line,
    learned_line,
    protocol_line,
    ratio_line,
    repeats_line,
    share_in_words,
    trust_ratio,
    verdict,
    worth_line,
)
from tests.output.made import WINDOWS


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


def test_an_error_is_told_with_its_terms() -> None:
    error = {"probes": 1, "signal": 2e-3, "error": 1e-3, "jump": 5e-4, "propagation": 0.0}
    assert error_line(error) == (
        "too few removals were followed to be sure (1); curate verify is. An influence is 0.002 on "
        "average, and expected to be off by 0.001 (50 %; jump 0.0005, propagation 0); 1 removal "
        "followed exactly"
    )
    assert "derivative 1 × 10⁻⁶" in error_line(error | {"derivative": 1e-6})


def worth(gain: float, share: float | None, answer: str) -> dict[str, Any]:
    chosen = {"rows": 970, "gain": gain, "low": gain - 0.05, "high": gain + 0.05}
    return {"chosen": chosen, "share": share, "answer": answer, "tried": [chosen, chosen]} | {
        "against": [{"name": "everything", "gain": 0.0}, {"name": "target alone", "gain": 0.3}]
    }


def test_it_is_said_where_training_teaches_nothing() -> None:
    assert learned_line({}) is None
    assert learned_line({"untrained": None}) is None
    assert (
        learned_line({"untrained": {"loss": 1.0, "gain": -0.4, "low": -0.5, "high": -0.3}}) is None
    )
    assert learned_line({"untrained": {"loss": 1.0, "gain": -1e-4, "low": -2e-4, "high": -1e-5}})
    line = learned_line({"untrained": {"loss": 0.693, "gain": -0.4, "low": -0.9, "high": 0.1}})
    assert line is not None
    assert "0.693, by more than chance" in line


def test_the_worth_of_choosing_in_a_sentence() -> None:
    assert worth_line(worth(0.25, 0.8, "pays")).endswith(
        "; target alone does better still (0.3 lower)"
    )
    assert worth_line(worth(0.35, 0.8, "pays")) == (
        "choosing pays: loss is 0.35 lower than on everything (95 % interval of the gain 0.3 to "
        "0.4)"
    )
    assert worth_line(worth(-0.5, 1, "does not pay")) == (
        "choosing does not pay; all rows are kept. With 970 rows, the best of 2 budgets tried, "
        "loss is 0.5 higher (95 % interval of the gain -0.55 to -0.45)"
    )
    assert worth_line(worth(0.0, None, "cannot tell")).startswith("cannot tell whether choosing")


@pytest.mark.parametrize(("judging", "words"), [(60, "both halves"), (30, "that did not choose")])
def test_who_judged(judging: int, words: str) -> None:
    worth = {"judging": judging, "target_rows": 60, "limit": 1000}
    worth["against"] = [{"name": "everything", "rows": 500}, {"name": "random", "rows": 200}]
    line = protocol_line(worth, 500)
    assert words in line
    assert protocol_line(worth, 2000) == f"{line}, on the sample of 500 rows"
    assert "1,000 steps at most, stopped where its loss on the judging rows is lowest; " in line


@pytest.mark.parametrize(
    ("low", "reliability", "words"),
    [
        (0.4, 0.9, "with losses in training (2 to 1), foretell influences on the other with 0.50"),
        (0.4, 0.2, "mostly chance: about 2,000 target rows would do, instead of 60"),
        (-0.1, 0.2, "do not repeat: more target rows are needed"),
    ],
)
def test_how_far_scores_repeat(low: float, reliability: float, words: str) -> None:
    repeats = {"correlation": 0.5, "low": low, "high": 0.6, "foretold": 0.5}
    repeats |= {"reliability": reliability, "target_rows": 60, "rows_needed": 2000}
    assert repeats_line(repeats | {"evidence": {"losses": 2.0}}).endswith(words)
    both = {"losses": 2.0, "nearness": 0.5}
    told = "with losses in training (2 to 1) and nearness to target rows of the label (0.5 to 1),"
    assert told in repeats_line(repeats | {"evidence": both})
    for evidence in ({"losses": 0.0}, {}, 2.0):  # the last is of an old run
        assert "losses" not in repeats_line(repeats | {"evidence": evidence})


def test_promises_are_kept_by_the_median_window() -> None:
    windows = pl.DataFrame(WINDOWS)
    assert trust_ratio(windows) == pytest.approx((0.5 + 0.8) / 2)
    assert trust_ratio(windows.with_columns(predicted=0.0)) is None
    assert trust_ratio(windows.drop("predicted")) is None
    assert trust_ratio(pl.DataFrame()) is None


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.9, "add up"), (1.4, "add up"), (0.5, "overlap"), (0.1, "far from 1"), (2.0, "far from 1")],
)
def test_a_ratio_in_words(ratio: float, words: str) -> None:
    assert words in ratio_line(ratio)


@pytest.mark.parametrize(
    ("examples", "certain", "slope", "words"),
    [
        (9, 1.0, 1.0, "no verdict: 9 examples are too few"),
        (64, nan, 1.0, "no verdict: the changes do not differ"),
        (64, 0.95, 1.0, "trustworthy"),
        (64, 0.85, 1.0, "good: sizes are right"),
        (64, 0.95, 0.5, "the order can be trusted; sizes are too large (slope 0.50)"),
        (64, 0.85, 2.0, "the order can be trusted; sizes are too small (slope 2.00)"),
        (64, 0.95, -1.0, "a rough order"),
        (64, 0.6, 1.0, "a rough order"),
        (64, 0.3, 1.0, "do not act on these scores"),
    ],
)
def test_a_verdict_on_scores_compared_with_leaving_out(
    examples: int, certain: float, slope: float, words: str
) -> None:
    assert agreement_verdict(examples, certain, slope).startswith(words)
