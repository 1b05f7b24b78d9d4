"""`curate inspect`, and what it and the report make of directories that are none or damaged."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import Dataset, load_from_disk

from curate.cli.main import cli, run
from curate.output.words import cells, visible
from tests.job import curate
from tests.output.made import made, recipe
from tests.output.test_page import HOSTILE, ON_TEXT, texts


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run(cli, ["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run(cli, [str(a) for a in arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = found.err.splitlines()
    return line


def test_the_summary_has_what_the_run_knows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = "evaluation={seeds: [0], against: [everything]}"
    assert curate("recipe.yaml", "--out", "out", "--quiet", "--set", evaluation) == 0
    text = inspect(capsys, "out")
    for part in ("rows.parquet (x → label)", "36 of 72 kept (50%)", "14 wrong labels", "adamw",
                 "horizon 4 steps, 4 rounds; keep 50%", "retrained on", "everything", "Realised",
                 "group", "the 5 worst"):  # fmt: skip
        assert part in text
    worst = pl.read_parquet("out/scores.parquet").sort("rank")["row"].to_list()[:-6:-1]
    lines = text.split("the 5 worst")[1].splitlines()[2:7]
    assert [int(line.split()[0]) for line in lines] == worst


def test_a_row_has_everything_known_about_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("recipe.yaml", "--out", "out", "--quiet") == 0
    Path("rows.parquet").unlink()
    scores = pl.read_parquet("out/scores.parquet").sort("rank")
    kept, dropped = scores.to_dicts()[0], scores.to_dicts()[-1]
    for line in (kept, dropped):
        text = inspect(capsys, "out", "--row", str(line["row"]))
        assert text.startswith(f"row {line['row']} of rows.parquet: ")
        assert ("dropped, below the budget: rank 72 of 72" in text) == (line is dropped)
        assert f"row {line['row']}\n" in text.split("note")[1]
        assert ("helps" in text, "harms" in text) == (line["influence"] > 0, line["influence"] < 0)
        assert "in 2 steps" in text


def test_lists_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Dataset.from_dict({"x": [[float(i)] for i in range(40)], "label": list("ab") * 20})
    folder = made(tmp_path / "run", table, recipe({"features": ["x"], "label": "label"}))

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
    names = {"text": [f"{bad} {i}" for i in range(6)], column: [bad] * 6,
             "label": [f"l{bad}", "m"] * 3}  # fmt: skip
    by = recipe({"text": "text", "label": "label"}, objective="sequence_classification",
                data={"train": f"rows{bad}.parquet"})  # fmt: skip
    folder = made(tmp_path / "run", Dataset.from_dict(names), by)
    label = visible(f"l{bad}")
    for arguments in ([], ["--row", "12"], ["--kept", "9", "--dropped", "9"], ["--label", label]):
        for wide in ("40", "100"):
            monkeypatch.setenv("COLUMNS", wide)
            out = inspect(capsys, folder, *arguments)
            assert all(own.isprintable() for own in out.replace("\n", "")), out
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
    folder = made(tmp_path / "run", Dataset.from_dict({"text": rows}), ON_TEXT, keep=0.4)
    for row in range(10, 15):
        lines = inspect(capsys, folder, "--row", str(row)).splitlines()
        own = lines[lines.index("text") + 1 :]
        assert all(cells(line) <= max(width, 20) for line in own)
        shown = "".join("".join(own).split())
        assert shown == "".join(rows[row - 10].split())  # all of it
    if width >= 80:
        lines = inspect(capsys, folder, "--kept", "9", "--dropped", "9").splitlines()
        assert all(cells(line) <= width for line in lines)
        assert "日本語" in "".join(lines)


def test_numbers_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = np.zeros((8, 8))
    one[:, 3] = 9
    table = Dataset.from_dict({"x": [one.ravel().tolist()] * 4, "label": [0, 1] * 2})
    folder = made(tmp_path / "run", table, recipe({"features": ["x"], "label": "label"}))
    text = inspect(capsys, folder, "--row", "10")
    assert "64 numbers, 0 to 9, drawn 8 × 8" in text
    assert text.count("        ██\n") == 8


def test_inspecting_loads_no_torch(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", texts(), ON_TEXT)
    code = (
        "import sys; from curate.cli.main import cli, run\n"
        "for more in [], ['--row', '10'], ['--kept', '3']:\n"
        f"    assert run(cli, ['inspect', {str(folder)!r}, *more]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_terminal_without_unicode_gets_all_the_same(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", texts(), ON_TEXT)
    done = subprocess.run(
        [sys.executable, "-m", "curate", "inspect", str(folder)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "6 of 12 kept" in done.stdout


def test_what_is_not_stored_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "run", texts(), ON_TEXT)
    (folder / "dropped.parquet").unlink()
    text = inspect(capsys, folder, "--row", "21")
    assert "not stored here" in text
    assert "It is row 21 of rows.parquet" in " ".join(text.split())
    assert "not stored here" in inspect(capsys, folder, "--dropped", "3")
    assert run(cli, ["report", str(folder)]) == 0
    assert "6 dropped rows have their scores here" in (folder / "report.html").read_text()


def test_questions_without_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Dataset.from_dict({"x": [[float(i)] for i in range(8)], "label": list("ab") * 4})
    folder = made(tmp_path / "run", table, recipe({"features": ["x"], "label": "label"}))
    for row in ("9", "18", "-1"):
        line = refused(capsys, "inspect", folder, "--row", row)
        assert line == (
            f"curate: --row {row}: is none of the 8 candidates, which are among rows 10 to 17 of "
            "rows.parquet."
        )
    line = refused(capsys, "inspect", folder, "--label", "c")
    assert line == "curate: --label c: no such label; there are a, b."
    assert "leave out" in refused(capsys, "inspect", folder, "--row", "10", "--kept", "2")
    plain = made(tmp_path / "plain", texts(), ON_TEXT)
    assert "have no label" in refused(capsys, "inspect", plain, "--label", "a")
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path / "run", texts(), ON_TEXT)
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    assert "report.html: cannot be written" in refused(capsys, "report", folder)
    assert [path.name for path in folder.glob(".*")] == []


def test_a_directory_without_its_recipe_is_shown_by_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path / "run", texts(), ON_TEXT, sources={"rows.parquet": {"rows": 12}})
    (folder / "recipe.yaml").unlink()
    assert inspect(capsys, folder).startswith("rows.parquet\n")
    assert HOSTILE[0] in inspect(capsys, folder, "--row", "10")


def rewritten(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], object]:
    return lambda path: change(pl.read_parquet(path)).write_parquet(path)


def halved(path: Path) -> object:
    return path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def provenance(**changes: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    ("scores.parquet", halved),
    ("scores.parquet", lambda path: path.write_bytes(b"")),
    ("scores.parquet", lambda path: path.write_bytes(b"PAR1" + b"\0" * 200 + b"PAR1")),
    ("scores.parquet", rewritten(lambda t: t.drop("score"))),
    ("scores.parquet", rewritten(lambda t: t.with_columns(score=pl.lit("high")))),
    ("scores.parquet", rewritten(lambda t: t.with_columns(row=pl.lit(3)))),
    ("scores.parquet", rewritten(lambda t: t.with_columns(kept=pl.lit(None, pl.Boolean)))),
    ("scores.parquet", rewritten(lambda t: t.clear())),
    ("train", rewritten(lambda t: t)),
    ("train", lambda path: shutil.rmtree(path)),
    ("train/data-00000-of-00001.arrow", halved),
    ("train/state.json", lambda path: path.write_text("{}")),
    ("windows.parquet", halved),
    ("windows.parquet", rewritten(lambda t: t.drop("steps"))),
    ("dropped.parquet", halved),
    ("dropped.parquet", rewritten(lambda t: t.with_columns(row=pl.lit(10)))),
    ("recipe.yaml", lambda path: path.write_text("data: 3")),
    ("recipe.yaml", lambda path: path.write_text("data: [")),
    ("provenance.json", halved),
    ("provenance.json", lambda path: path.write_text("[]")),
    ("provenance.json", provenance(seconds="long")),
    ("provenance.json", provenance(evaluation=[{"trained_on": "x", "rows": 3, "loss": 0.2}])),
    ("provenance.json", provenance(composition={"label": [["a", 1, 2]]})),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_damage_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    name, spoil = DAMAGES[number]
    folder = made(tmp_path / "run", texts(), ON_TEXT)
    before = (folder / "report.html").read_bytes()
    if name == "train" and number == 8:  # other rows than the scores say
        load_from_disk(str(folder / "train")).select([0]).save_to_disk(str(tmp_path / "other"))
        shutil.rmtree(folder / "train")
        (tmp_path / "other").rename(folder / "train")
    else:
        spoil(folder / name)
    for command in ("inspect", "report"):
        line = refused(capsys, command, folder)
        assert name.split("/")[0] in line
    assert (folder / "report.html").read_bytes() == before


def test_the_hostile_are_told_apart_by_what_they_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path / "run", texts(), ON_TEXT)
    assert HOSTILE[0] in inspect(capsys, folder, "--row", "10")
