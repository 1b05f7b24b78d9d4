"""The report and the terminal on real runs over text."""

from pathlib import Path

import pytest

from curate.cli.main import cli, run
from tests import words
from tests.job import curate
from tests.output.made import Page, listing


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    return tmp_path


def test_a_run_on_completions_with_a_budget_in_tokens(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (
        "data.columns={prompt: prompt, completion: completion}",
        *("data.max_length=16", "data.min_length=5", "selection.keep={tokens: 0.5}"),
        "evaluation={seeds: [0], against: [everything]}",
    )
    overrides = [part for setting in settings for part in ("--set", setting)]
    assert curate("text.yaml", "--out", "out", "--quiet", *overrides) == 0
    for name in ("texts.parquet", "tiny/model.safetensors", "tiny/tokenizer.json"):
        Path(name).unlink()
    before = Path("out/report.html").read_text()
    assert run(cli, ["report", "out"]) == 0
    assert Path("out/report.html").read_text() == before
    page, rows = Page(before), listing(before)
    assert "keep 50% of the tokens" in before
    assert "shorter than data.min_length" in before
    assert "tokens" in page.texts["th"]
    assert {"prompt", "completion"} <= set(page.texts["b"])
    source = words.texts()
    for row in rows:
        shown = dict(row["columns"])
        assert shown["prompt"] == source["prompt"][row["row"]]
        assert shown["completion"] == source["completion"][row["row"]]
        assert row["label"] is None
    capsys.readouterr()
    assert run(cli, ["inspect", "out", "--row", str(rows[0]["row"])]) == 0
    said = capsys.readouterr().out
    assert "tokens" in said
    assert " ".join(source["completion"][rows[0]["row"]].split()) in " ".join(said.split())


def test_a_run_on_conversations_shows_who_says_what(there: Path) -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained("chatty")
    settings = ("data.columns={messages: messages}", "model.tokenizer=chatty", "training.epochs=1")
    overrides = [part for setting in settings for part in ("--set", setting)]
    assert curate("text.yaml", "--out", "out", "--quiet", *overrides) == 0
    page = Page(Path("out/report.html").read_text())
    assert {"user", "assistant"} <= set(page.texts["b"])
