"""The closing lines of every command, from their summaries."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.cli.main import shown
from curate.cli.summary import (
    describe_look,
    describe_plan,
    describe_tuning,
    describe_verification,
)
from curate.output.words import cells
from tests.output.made import SELECTED, WORTH


@pytest.mark.parametrize("processes", [1, 2])
def test_a_plan_adds_up(processes: int) -> None:
    plan = SELECTED | {
        "processes": processes,
        "scored": 72,
        "parameters": 1234,
        "windows": 3,
        "horizon": 4,
        "rounds": 1,
        "passes": {"total": 40.0, "score": 30.0, "judge": 0.0, "evaluate": 10.0},
        "memory": {"total": 3 * 2**20, "model": 2**20, "states": 2 * 2**20},
        "disk": {"total": 0 if processes == 1 else 2**31, "states": 2**31},
        "seconds": {"total": 100.0, "score": 80.0, "judge": 0.0, "evaluate": 10.0}
        | {"read": 4.0, "write": 1.0, "report": 5.0},
    }
    lines = describe_plan(plan).splitlines()
    where = "cpu" if processes == 1 else "cpu, 2 processes"
    assert lines[0] == f"look_ahead on 72 candidates, 1,234 parameters, {where}"
    assert lines[1] == "steps: 10; windows: 3 of 4; rounds: 1"
    assert lines[2] == "passes (gradients of one batch): 40 = score 30 + evaluate 10"
    each = "" if processes == 1 else " of each process"
    assert lines[3] == f"memory{each}: 3.0 MiB = model 1.0 MiB + states 2.0 MiB"
    disk = [] if processes == 1 else ["disk of each process: 2.0 GiB = states 2.0 GiB"]
    assert lines[4:-1] == disk
    assert lines[-1] == (
        "time: about 2 min: reading 4 s, scoring 80 s, judging 0.0 s, evaluation 10 s, "
        "writing and report 6 s"
    )
    assert describe_plan(plan | {"scored": 50}).startswith("look_ahead on 50 of 72 candidates, ")


AGREEMENT: dict[str, Any] = {
    "examples": 30,
    "spearman": {"value": 0.9512, "low": 0.9, "high": 0.98},
    "pearson": {"value": 0.97, "low": 0.9315, "high": 0.99},
    "slope": 1.1,
    "relative_error": 0.0525,
    "error": 0.01,
    "signal": 0.8,
}


def verified(**changes: Any) -> dict[str, Any]:
    facts = {"verdict": "trustworthy: x.", "expected_error": 0.1, "reproduced": None, "out": "out"}
    return {"examples": 30, "agreement": AGREEMENT, "mistaken": None} | facts | changes


def test_the_lines_of_a_verification_are_the_numbers() -> None:
    header, scored, *lines = describe_verification(verified()).splitlines()
    assert len(header) == len(scored)
    cells = ["this run", "0.951 [0.900, 0.980]", "0.970 [0.931, 0.990]", "1.10", "5.2%"]
    assert re.split(r"\s\s+", scored) == cells
    assert lines == [
        "",
        "error of a score, mean over 30 rows: 0.01; expected by the run: 0.1; actual changes: 0.8",
        "verdict: trustworthy: x.",
        "wrote out/verify.parquet, verify.png, verify.json",
    ]


def test_the_mistake_has_a_line_and_a_price() -> None:
    wrong = AGREEMENT | {"spearman": {"value": 0.2, "low": -0.1, "high": 0.4}}
    text = describe_verification(verified(mistaken=wrong))
    assert "taking the optimizer for SGD costs 0.751 of Spearman's correlation" in text
    assert text.splitlines()[2].startswith("SGD (mistaken)  0.200 [-0.100, 0.400]")


def test_an_error_that_was_not_asked_for_is_not_made_up() -> None:
    text = describe_verification(verified(expected_error=None))
    assert "expected by the run: not asked for (selection.probing is 0)" in text


def test_what_a_verification_could_not_do_is_said() -> None:
    """Changes that are all the same, removals that diverged, scores that do not repeat."""
    none = dict.fromkeys(("value", "low", "high"))
    nothing = AGREEMENT | {"spearman": none, "pearson": none, "slope": None}
    changes = {"agreement": nothing, "mistaken": AGREEMENT, "examples": 32, "reproduced": False}
    text = describe_verification(verified(**changes))
    assert re.search(r"this run +nan \[nan, nan\] +nan \[nan, nan\] +nan ", text)
    assert "2 removals made the training diverge; they are left aside here" in text
    assert "costs" not in text
    assert "note: scoring again gave other influences than scores.parquet has" in text


def tuned(**changes: Any) -> tuple[dict[str, Any], pl.DataFrame]:
    """A summary and a table: one pair of each outcome, and the pilots."""
    pairs = [(k, rate) for k in (1, 4, 16) for rate in (1e-3, 1e-2)]
    outcomes = ["best", "failed", "beaten", "untried", "dropped", "untried"]
    values = [0.25, None, 0.5, None, None, None]
    table = pl.DataFrame(
        {
            "horizon": [None, None, *(k for k, _ in pairs)],
            "learning_rate": [1e-3, 1e-2, *(rate for _, rate in pairs)],
            "outcome": ["pilot", "pilot", *outcomes],
            "value": [0.75, None, *values],
        }
    )
    summary = {
        "metric": "loss",
        "steps": 16,
        "horizons": [1, 4, 16],
        "everything": {"0.001": 0.75, "0.01": None},
        "why": "best: horizon 1",
        "test": {"kept": [{"loss": 0.3}, {"loss": 0.5}], "everything": [{"loss": 0.8}]},
        "passes": 500.0,
        "grid_passes": 1000.0,
        "worth": None,
        "suits_everything": 0.01,
    }
    return summary | changes, table


def test_a_tuning_in_lines() -> None:
    lines = describe_tuning(*tuned(), Path("out")).splitlines()
    assert lines[0].split() == ["K", "\\", "lr", "0.001", "0.01"]
    assert lines[1].split() == ["1", "0.250*", "-"]
    assert lines[2].split() == ["4", "0.500", "."]
    assert lines[3].split() == ["full", "(16)", "x", "."]
    assert lines[4].split() == ["all", "rows", "0.750", "-"]
    assert lines[7] == "best: horizon 1"
    assert lines[8] == (
        "test loss, retrained: 0.400 ± 0.141 on what it keeps, 0.800 on everything at the same "
        "learning rate"
    )
    assert lines[9] == "what choosing is worth was not measured: a training for it diverges"
    assert lines[10] == "spent 50% of what runs of all 6 pairs would cost"
    assert (
        lines[11] == "wrote out/recipe.yaml (for curate select), tune.parquet, tune.png, tune.json"
    )


@pytest.mark.parametrize("answer", ["pays", "does not pay"])
def test_a_tuning_says_what_choosing_is_worth(answer: str) -> None:
    summary, table = tuned(worth=WORTH | {"answer": answer}, test=None)
    lines = describe_tuning(summary, table, Path("out")).splitlines()
    assert "test loss" not in "".join(lines)
    (judged,) = (line for line in lines if "judged by" in line)
    assert judged.startswith(f"choosing {answer}: loss is 0.25 lower")
    assert "everything at its best learning rate, 0.01; judged by 12 rows" in judged
    advice = "so train on everything, at learning rate 0.01"
    assert (advice in lines) == (answer != "pays")
    assert lines[-2].endswith("would cost, and 2.0 trainings on what it is worth")


@pytest.mark.parametrize(("width", "colors"), [(30, True), (30, False), (200, True)])
def test_lines_are_as_wide_as_the_terminal_and_plain_in_a_pipe(
    width: int, colors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["choosing pays: " + "a word " * 6, "", "a table   of  wide cells" + "  0.1" * 9, "end"]
    text = "\n".join(lines)
    assert shown(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colors:
        monkeypatch.setenv("NO_COLOR", "1")
    found = shown(text)
    assert found.startswith("\x1b[1mchoosing") == colors
    bare = re.sub(r"\x1b\[\d*m", "", found).split("\n")
    assert lines[2] in bare  # a table is left alone
    assert max(len(line) for line in bare if line != lines[2]) <= width
    assert " ".join(line.strip() for line in bare).split() == text.split()


def test_what_was_seen_fits_a_terminal() -> None:
    seen: dict[str, Any] = {
        "data": "a\nb.csv",
        "rows": 1,
        "columns": [("wide 猫" * 9, "label", "many classes " * 9)]
        + [(f"c{k}", "not used", "the same in every row") for k in range(30)],
        "repeated": 1,
        "contradicting": None,
        "shared": 2,
        "target": "checked.csv",
        "target_rows": 3000,
        "recipe": "a b.yaml",
        "objective": "causal_lm",
        "model": "some/model",
    }
    lines = describe_look(seen).splitlines()
    assert all(cells(line) <= 80 for line in lines)
    assert lines[0] == "a b.csv: 1 row"
    assert lines[3].startswith("wide 猫wide 猫")
    assert lines[-9].split() == ["and", "7", "more"]
    assert lines[-7:-5] == [
        "1 row as one before, in what is used",
        "2 of 3,000 rows of checked.csv are candidates, too",
    ]
    assert lines[-1] == "  curate select 'a b.yaml'"
