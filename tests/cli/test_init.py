"""`curate init` as it is typed."""

from pathlib import Path

import pytest

from curate.cli.main import cli, run


def test_it_looks_writes_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"{k / 10},{k % 7},{'up' if k % 2 else 'down'}" for k in range(200)]
    Path("rows.csv").write_text("\n".join(["width,height,label", *lines]))
    assert run(cli, ["init", "rows.csv"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("rows.csv: 200 rows")
    assert said.endswith("  curate select recipe.yaml\n")
    assert run(cli, ["select", "recipe.yaml", "--plan", "--quiet"]) == 0
    before = Path("recipe.yaml").read_text()
    assert run(cli, ["init", "rows.csv"]) == 2
    assert "recipe.yaml" in capsys.readouterr().err
    assert Path("recipe.yaml").read_text() == before
    assert run(cli, ["init", "rows.csv", "--label", "height", "--overwrite"]) == 0
    assert "label: height" in Path("recipe.yaml").read_text()
    before = Path("rows.csv").read_text()
    assert run(cli, ["init", "rows.csv", "--out", "rows.csv", "--overwrite"]) == 2
    assert Path("rows.csv").read_text() == before
    assert run(cli, ["init", "gone.csv", "--out", "other.yaml"]) == 2
    assert not Path("other.yaml").exists()
