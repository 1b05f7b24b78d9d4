"""What is said about a run, from what it left."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.output.facts import asked, came_out, every_fact, selection_in_words, trust, worth
from curate.output.page import write_report
from curate.output.saved_run import SavedRun, read_run
from curate.output.scores import SavedScores
from tests.output.made import ON_TEXT, recipe

COLUMNS = {"features": ["x"], "label": "y"}


@pytest.fixture
def saved(on_text: Path) -> SavedRun:
    return read_run(on_text)


def with_provenance(saved: SavedRun, **provenance: Any) -> SavedRun:
    return replace(saved, provenance=saved.provenance | provenance)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (1e-4, "To be trusted: size and order"),
        (5e-4, "To be trusted for signs and order more than for sizes"),
        (9e-4, "Not to be trusted: bring features to one scale"),
    ],
)
def test_trust_is_said_in_words(saved: SavedRun, error: float, words: str) -> None:
    terms = {"jump": 2e-4, "propagation": 0.0}
    expected = {"probes": 9, "signal": 1e-3, "error": error} | terms
    text = trust(with_provenance(saved, error=expected))["expected error"]
    assert text.startswith(words)
    assert f"({100 * error / 1e-3:.0f} %; jump 0.0002, propagation 0); 9 removals" in text


def test_what_was_not_measured_is_not_made_up(saved: SavedRun) -> None:
    facts = trust(saved)
    assert facts["expected error"].startswith("Not estimated")
    assert facts["prediction"].startswith(
        "Realized over predicted, the median of the windows: 0.65"
    )
    assert "prediction" not in trust(replace(saved, windows=pl.DataFrame()))
    assert "selection.judge is off" in worth(saved)["choosing"]
    assert "a training loop made the choice" in worth(replace(saved, recipe=None))["choosing"]


def test_a_policy_without_influences_has_none_to_trust(saved: SavedRun) -> None:
    scores = pl.concat(saved.scores.parts()).with_columns(influence=pl.lit(None, pl.Float64))
    assert trust(replace(saved, scores=SavedScores(scores))) == {
        "influences": "look_ahead has none; its scores rank, and say no more."
    }


def test_a_verification_is_told(copied: Path) -> None:
    assert "Not run on this directory" in (copied / "report.html").read_text()
    (copied / "verify.json").write_text('{"examples": 64, "verdict": "trustworthy: x."}')
    assert "trustworthy: x. (64 rows left out)" in write_report(copied).read_text()


def test_what_came_out_is_in_the_numbers_of_the_summary() -> None:
    made = {
        "policy": "look_ahead",
        "steps": 1,
        "device": "cuda",
        "processes": 4,
        "tokens": {"candidates": 1000, "kept": 250},
        "noise": {"planted": 1, "kept": 0, "auroc": 0.5},
        "left_out": {"a": 0, "b": 2},
        "truncated": {"a": 0},
        "seconds": {"read": 0.26},
        "versions": {"curate": "1", "torch": "2", "python": "3"},
        "git_commit": "0123456789abcdef",
    }
    assert came_out(made, kept=1, candidates=3) == {
        "rows": "1 of 3 kept (33.3%)",
        "tokens": "250 of 1,000 kept (25%)",
        "label noise": "0 of 1 wrong label kept; AUROC of the score 0.500",
        "texts left out": "2 of b, shorter than data.min_length",
        "run": "look_ahead (1 step, cuda, 4 processes)",
        "time": "read 0.3 s",
        "made with": "curate 1, torch 2, commit 0123456789",
    }
    assert list(came_out({}, kept=1, candidates=1)) == ["rows"]


def test_what_was_asked_for(saved: SavedRun) -> None:
    targets = {"near": "a.parquet", "far": {"path": "b.parquet"}}
    data = {"validation": targets, "label_noise": {"fraction": 0.2}}
    by = recipe(COLUMNS, data=data, selection={"weights": {"near": 1, "far": 2}})
    facts = asked(replace(saved, recipe=by))
    assert facts["data"] == "rows.parquet (x → y)"
    assert facts["target"] == "mean of near: a.parquet (weight 1), far: b.parquet (weight 2)"
    assert facts["label noise"] == "20% of labels wrong on purpose"
    assert asked(replace(saved, recipe=ON_TEXT))["target"] == "20% of the rows, held out"


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"keep": {"fraction": 0.7}}, "look_ahead, horizon 8 steps, 1 round; keep 70%"),
        ({"horizon": "full", "keep": {"count": 9000}}, "the whole run, 1 round; keep 9,000 rows"),
        (
            {"keep": {"threshold": 0.5}, "horizon": 1},
            "horizon 1 step, 1 round; keep scores from 0.5",
        ),
        ({"policy": "loss"}, "loss; how much is kept was found by retraining"),
        ({"policy": "loss", "keep": {"count": 2}, "group_by": "z"}, "loss; keep 2 rows of each z"),
    ],
)
def test_a_selection_in_words(selection: dict[str, Any], words: str) -> None:
    assert selection_in_words(recipe(COLUMNS, selection=selection)).endswith(words)


@pytest.mark.parametrize(
    ("tokens", "words"), [(5000, "keep 5,000 tokens"), (0.25, "keep 25% of the tokens")]
)
def test_a_budget_of_tokens_in_words(tokens: float, words: str) -> None:
    by = recipe({"text": "text"}, selection={"keep": {"tokens": tokens}})
    assert selection_in_words(by).endswith(words)


def test_nothing_said_steers_a_terminal(saved: SavedRun) -> None:
    by = recipe({"text": "text"}, data={"train": "\x1b[31m.parquet"})
    facts = every_fact(replace(saved, recipe=by))
    assert all(text.isprintable() for part in facts.values() for text in part.values())
