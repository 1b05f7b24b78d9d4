"""What is said of odd data before a run, and nothing of ordinary data."""

from pathlib import Path

import pytest
from datasets import Dataset

from tests import job, words
from tests.job import curate, sets

QUICK = sets("selection.policy=loss", "training.epochs=1")

WILD = """
data: {train: wild.parquet, columns: {features: [a, b], label: label},
       validation: {fraction: 0.2}}
model: {kind: mlp, hidden: [4]}
training: {batch_size: 8, optimizer: {kind: sgd, lr: 1e-9}}
selection: {policy: loss}
"""


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    job.rows().to_parquet("rows.parquet")
    Path("r.yaml").write_text(job.RECIPE)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert curate(*arguments) == 0
    return capsys.readouterr().err


def test_nothing_is_said_of_ordinary_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert "note:" not in said(capsys, "r.yaml")


def test_a_horizon_that_is_longer_than_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    line = "selection.horizon 5,000 is longer than the run"
    assert line in said(capsys, "r.yaml", *sets("selection.horizon=5000"))


def test_features_of_different_scales(capsys: pytest.CaptureFixture[str]) -> None:
    spread = [{"a": 1000.0 * (i % 7), "b": i % 3 / 3, "label": i % 2} for i in range(40)]
    Dataset.from_list(spread).to_parquet("wild.parquet")
    Path("wild.yaml").write_text(WILD)
    assert "times another's, which few models train on well" in said(capsys, "wild.yaml")
    scaled = said(capsys, "wild.yaml", "--overwrite", *sets("data.standardize=true"))
    assert "note:" not in scaled


def test_a_target_among_the_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    job.rows().select(range(30)).to_parquet("part.parquet")
    found = said(capsys, "r.yaml", *sets("data.validation=part.parquet"), *QUICK)
    assert "note: " in found
    assert "of 30 rows of validation are candidates as well" in found


def test_texts_among_the_candidates(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words.write(there)
    found = said(capsys, "text.yaml", *sets("data.validation={same: texts.parquet}"), *QUICK)
    assert "of 60 rows of same are candidates as well" in found


def test_a_classifier_with_too_few_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("narrow.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(4, 1))\n"
    )
    assert curate("r.yaml", *sets("model={factory: 'narrow:make'}")) == 2
    assert "puts out 1 numbers for each example, but there are 2 classes" in capsys.readouterr().err
