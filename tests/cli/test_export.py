"""`curate export`, and the way back: correct what it wrote, and see what that was worth."""

from pathlib import Path

import polars as pl
import pytest

from curate.cli.main import cli, run
from tests.job import sets

JUDGED = sets("selection.judge=true", "selection.keep={fraction: 0.7}", "training.epochs=6")


def test_labels_go_out_and_come_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["select", "recipe.yaml", "--out", "first", *JUDGED, "--quiet"]) == 0
    assert run(cli, ["export", "first", "--to", "cleanlab", "--only", "dropped"]) == 0
    out = capsys.readouterr().out
    assert f"--relabelled {here}/first.cleanlab/label_issues.csv" in out
    path = here / "first.cleanlab" / "label_issues.csv"
    table = pl.read_csv(path)
    right = pl.read_parquet("rows.parquet")["label"].gather(table["row"])
    table.with_columns(right.alias("label")).write_csv(path)
    back = ["--relabelled", str(path), "--out", "second", *JUDGED]
    assert run(cli, ["select", "recipe.yaml", *back]) == 0
    wrong = int((right != table["given_label"]).sum())
    out = capsys.readouterr().out
    assert f"corrections: {wrong} of {len(table)} labels in {path} differ" in out
    assert "labels as they were read" in out
    assert "label_read" in pl.read_ipc_stream(next((here / "second/train").glob("*.arrow"))).columns


def test_what_cannot_be_exported_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli, ["export", "nowhere", "--to", "argilla"]) == 2
    assert capsys.readouterr().err == "curate: nowhere: no such directory.\n"
    Path("fixed.csv").write_text("row,label\n900,up\n")
    assert run(cli, ["select", "recipe.yaml", "--relabelled", "fixed.csv"]) == 2
    error = capsys.readouterr().err
    assert "fixed.csv: row 900 is none of the 72 candidates" in error
    assert error.count("\n") == 1
