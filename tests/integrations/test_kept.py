"""A dataset from a log that was written by hand: scores and choices by their definition."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_from_disk

from curate import write_kept
from curate.errors import DataError, OptionError, OutputError
from curate.output.audit_log import AuditLog

BATCHES: list[tuple[list[int], list[float], list[bool]]] = [
    ([0, 1, 2], [1.0, 2.0, 6.0], [False, False, True]),
    ([2, 3, 0], [0.0, 30.0, 60.0], [False, True, True]),
]
"""Rows of a dataset of six, their values and whether the loop kept them."""


def logged(folder: Path, rows: list[list[int | None]] | None = None) -> Path:
    log = AuditLog(folder, ["target"])
    for step, (positions, values, kept) in enumerate(BATCHES):
        count = len(positions)
        batch = {
            "window": [0] * count,
            "step": [step] * count,
            "batch": [0] * count,
            "position": range(count),
            "row": positions if rows is None else rows[step],
            "influence": [value / 10 for value in values],
            "value": values,
            "weight": np.array(kept, dtype=float),
            "kept": kept,
        }
        log.candidates(batch)
    return folder


def table() -> Dataset:
    return Dataset.from_dict({"name": list("abcdef")})


def test_scores_are_standardized_in_the_batch_and_averaged_over_occurrences(tmp_path: Path) -> None:
    scores = write_kept(logged(tmp_path / "log"), table(), tmp_path / "out", keep=0.5)
    expected, seen = np.zeros(6), np.zeros(6)
    for rows, values, _ in BATCHES:
        expected[rows] += (np.array(values) - np.mean(values)) / np.std(values)
        seen[rows] += 1
    np.testing.assert_allclose(scores["score"], expected / np.maximum(seen, 1), atol=1e-12)
    np.testing.assert_allclose(scores["influence"], [3.05, 0.2, 0.3, 3, 0, 0])
    assert scores["seen"].to_list() == [2, 1, 2, 1, 0, 0]
    assert scores.filter("kept")["row"].to_list() == [0, 2]  # the upper half of those offered
    assert load_from_disk(str(tmp_path / "out"))["train"]["name"][:] == ["a", "c"]
    assert scores["reason"].to_list()[4:] == ["never offered"] * 2


def test_without_a_share_rows_stay_that_were_kept_every_other_time(tmp_path: Path) -> None:
    scores = write_kept(logged(tmp_path / "log"), table(), tmp_path / "out")
    assert scores["kept"].to_list() == [True, False, True, True, False, False]
    assert scores["reason"].to_list() == [
        "kept 1 of 2 times",
        "kept 0 of 1 times",
        "kept 1 of 2 times",
        "kept 1 of 1 times",
        "never offered",
        "never offered",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1, None], [2, 3, 0]], "1 of 6 entries have no row id; give the loader `row`"),
        ([[0, 1, 2], [2, 6, 0]], "has row 6, but the dataset has 6 rows"),
        ([[0, -1, 2], [2, 3, 0]], "has row -1, but the dataset has 6 rows"),
    ],
)
def test_rows_that_are_not_those_of_the_dataset_are_refused(
    tmp_path: Path, rows: list[list[int | None]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_kept(logged(tmp_path / "log", rows), table(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shares_out_of_range_and_places_taken_are_refused(tmp_path: Path) -> None:
    logged(tmp_path / "log")
    with pytest.raises(OptionError, match=r"keep must be above 0 and at most 1 but got 1\.5"):
        write_kept(tmp_path / "log", table(), tmp_path / "out", keep=1.5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError):
        write_kept(tmp_path / "log", table(), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
