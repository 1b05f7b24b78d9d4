"""`curate inspect`: what it says, and what it refuses."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import Dataset

from curate.cli.main import cli, run
from curate.output.words import cells, visible
from tests.output.made import HOSTILE, ON_LISTS, ON_TEXT, made, recipe, texts


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run(cli, ["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run(cli, [str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def test_the_summary_has_what_the_run_knows(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = inspect(capsys, finished / "out")
    for part in (
        *("rows.parquet (x → label)", "36 of 72 kept (50%)", "14 wrong labels", "adamw"),
        *("horizon 4 steps, 4 rounds; keep 50%", "retrained on", "everything", "Realized"),
        *("group", "the 5 worst"),
    ):
        assert part in text
    worst = (
        pl.read_parquet(finished / "out" / "scores.parquet").sort("rank")["row"].to_list()[:-6:-1]
    )
    lines = text.split("the 5 worst")[1].splitlines()[2:7]
    assert [int(line.split()[0]) for line in lines] == worst


def test_a_row_has_everything_known_about_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished / "out", tmp_path / "out")  # away from its data
    scores = pl.read_parquet(out / "scores.parquet").sort("rank")
    kept, dropped = scores.to_dicts()[0], scores.to_dicts()[-1]
    for line in (kept, dropped):
        text = inspect(capsys, out, "--row", str(line["row"]))
        assert text.startswith(f"row {line['row']} of rows.parquet: ")
        assert ("dropped, below the budget: rank 72 of 72" in text) == (line is dropped)
        assert f"row {line['row']}\n" in text.split("note")[1]
        assert ("helps" in text, "harms" in text) == (line["influence"] > 0, line["influence"] < 0)
        assert "in 2 steps" in text


def test_lists_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Dataset.from_dict({"x": [[float(i)] for i in range(40)], "label": list("ab") * 20})
    folder = made(tmp_path / "run", table, ON_LISTS, report=False)

    def rows(*arguments: str) -> list[int]:
        lines = inspect(capsys, folder, *arguments).splitlines()
        return [
            int(line.split()[0]) for line in lines if line.split()[:1][0:1] and line[2:3].isdigit()
        ]

    assert rows("--dropped", "3") == [49, 48, 47]
    assert rows("--kept", "2") == [10, 11]
    assert rows("--kept", "2", "--dropped", "1") == [10, 11, 49]
    assert rows("--kept", "99") == list(range(10, 30))
    assert rows("--label", "b") == [*range(11, 30, 2), *range(49, 30, -2)]
    assert rows("--label", "a", "--dropped", "2") == [48, 46]
    assert "label b: 10 kept, 10 dropped" in inspect(capsys, folder, "--label", "b")


def test_no_escape_sequence_reaches_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x00\u202ecod\u2066\u200f"
    column = bad.replace("\x00", "")  # which no name can have
    names = {"text": [f"{bad} {i}" for i in range(6)], column: [bad] * 6}
    names |= {"label": [f"l{bad}", "m"] * 3}
    columns, data = {"text": "text", "label": "label"}, {"train": f"rows{bad}.parquet"}
    by = recipe(columns, objective="sequence_classification", data=data)
    folder = made(tmp_path / "run", Dataset.from_dict(names), by, report=False)
    label = visible(f"l{bad}")
    lists = (["--kept", "9", "--dropped", "9"], ["--label", label], ["--by", "label"])
    for arguments in ([], ["--row", "12"], *lists):
        for wide in ("40", "100"):
            monkeypatch.setenv("COLUMNS", wide)
            out = inspect(capsys, folder, *arguments)
            assert out.replace("\n", "").isprintable(), out
    assert r"\x1b]0;owned\x07" in out
    line = refused(capsys, "inspect", folder, "--label", "\x1b[31m")
    assert line.isprintable()


@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_lines_fit_whatever_is_in_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [
        "日本語のテキスト、幅の広い文字。" * 9,
        "e\u0301" * 300,
        "x" * 5000,
        "a b\n\n\tc " * 80,
        " ",
    ]
    folder = made(
        tmp_path / "run", Dataset.from_dict({"text": rows}), ON_TEXT, keep=0.4, report=False
    )
    for row in range(10, 15):
        lines = inspect(capsys, folder, "--row", str(row)).splitlines()
        content = lines[lines.index("text") + 1 :]
        assert all(cells(line) <= max(width, 20) for line in content)
        shown = "".join("".join(content).split())
        assert shown == "".join(rows[row - 10].split())  # all of it
    if width >= 80:
        lines = inspect(capsys, folder, "--kept", "9", "--dropped", "9").splitlines()
        assert all(cells(line) <= width for line in lines)
        assert "日本語" in "".join(lines)


def test_numbers_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = np.zeros((8, 8))
    one[:, 3] = 9
    table = Dataset.from_dict({"x": [one.ravel().tolist()] * 4, "label": [0, 1] * 2})
    folder = made(tmp_path / "run", table, ON_LISTS, report=False)
    text = inspect(capsys, folder, "--row", "10")
    assert "64 numbers, 0 to 9, drawn 8 × 8" in text
    assert text.count("        ██\n") == 8


def test_inspecting_loads_no_torch_and_needs_no_unicode(on_text: Path) -> None:
    code = (
        "import contextlib, io, sys; from curate.cli.main import cli, main, run\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    for more in ['--row', '10'], ['--kept', '3'], ['--by', 'where', '--json']:\n"
        f"        assert run(cli, ['inspect', {str(on_text)!r}, *more]) == 0\n"
        "assert 'torch' not in sys.modules\n"
        f"sys.argv[1:] = ['inspect', {str(on_text)!r}]\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "6 of 12 kept" in done.stdout


def test_what_is_not_stored_is_said(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied
    (folder / "dropped.parquet").unlink()
    text = inspect(capsys, folder, "--row", "21")
    assert "not stored here" in text
    assert "It is row 21 of rows.parquet" in " ".join(text.split())
    assert "not stored here" in inspect(capsys, folder, "--dropped", "3")
    assert run(cli, ["report", str(folder)]) == 0
    assert "6 dropped rows have their scores here" in (folder / "report.html").read_text()


def test_questions_without_an_answer(
    tmp_path: Path, on_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Dataset.from_dict({"x": [[float(i)] for i in range(8)], "label": list("ab") * 4})
    folder = made(tmp_path / "run", table, ON_LISTS, report=False)
    for row in ("9", "18", "-1"):
        line = refused(capsys, "inspect", folder, "--row", row)
        assert line == (
            f"curate: --row {row}: is none of the 8 candidates, which are among rows 10 to 17 of "
            "rows.parquet."
        )
    line = refused(capsys, "inspect", folder, "--label", "c")
    assert line == "curate: --label c: no such label; there are a, b."
    assert "leave out" in refused(capsys, "inspect", folder, "--row", "10", "--kept", "2")
    assert "have no label" in refused(capsys, "inspect", on_text, "--label", "a")
    assert run(cli, ["inspect", str(folder), "--kept", "0"]) == 2


def test_directories_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for command in ("inspect", "report"):
        assert "no such directory" in refused(capsys, command, tmp_path / "nothing")
        assert "no such directory" in refused(capsys, command, tmp_path / "file")
        assert "was not written by curate select" in refused(capsys, command, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_report_that_cannot_be_written_is_told(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "report.html").unlink()
    (copied / "report.html").mkdir()
    assert "report.html: cannot be written" in refused(capsys, "report", copied)
    assert [path.name for path in copied.glob(".*")] == []


def test_a_directory_without_its_recipe_is_shown_by_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path / "run", texts(), ON_TEXT, sources={"rows.parquet": {"rows": 12}})
    (folder / "recipe.yaml").unlink()
    assert inspect(capsys, folder).startswith("rows.parquet\n")
    assert HOSTILE[0] in inspect(capsys, folder, "--row", "10")


def test_the_hostile_are_told_apart_by_what_they_say(
    on_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert HOSTILE[0] in inspect(capsys, on_text, "--row", "10")
