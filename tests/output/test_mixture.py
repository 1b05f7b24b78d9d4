"""`curate inspect --by`: weights that order sources, intervals that cover, a file to draw by."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, interleave_datasets
from torch.utils.data import WeightedRandomSampler

from curate.cli.main import cli, run
from curate.output.composition import Judged, composition
from curate.output.mixture import mixture, shares_kept
from curate.output.saved_run import read_run
from tests.job import curate
from tests.output.made import HOSTILE, ON_LISTS, made
from tests.output.test_inspect import inspect, refused

RESAMPLES = 200
ROWS = {"web": 24, "books": 8, "code": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows, of which the first 20 are kept: 16 of web's 24, 4 of books' 8, none of code's."""
    source = ["web", "web", "web", "web", "books"] * 4 + ["books"] * 4 + ["code"] * 8 + ["web"] * 8
    table = Dataset.from_dict({"x": [[float(i)] for i in range(40)], "source": source})
    table = table.add_column("label", [i % 2 for i in range(40)])
    return made(tmp_path_factory.mktemp("by") / "run", table, ON_LISTS, report=False)


@pytest.mark.parametrize(
    ("rows", "center", "spread", "share"),
    [
        ([200, 300, 500], [0, 0, 0], [1, 1, 1], 0.5),  # nothing differs
        ([200, 300, 500], [1, 0, -0.5], [1, 1, 1], 0.5),
        ([250] * 4, [2, 0, -1, -3], [1, 2, 1, 1], 0.3),
        ([2000] + [20] * 20, [0] * 21, [1] * 21, 0.1),  # many of few rows
    ],
)
def test_intervals_cover_what_the_same_cut_keeps_of_other_rows(
    rows: list[int], center: list[float], spread: list[float], share: float
) -> None:
    """Scores are normal, so that the chance to pass a cut is known."""
    counts, random = np.array(rows), np.random.default_rng(0)
    value = np.repeat(np.arange(len(rows)), counts)
    covered = np.zeros(len(rows))
    for _ in range(RESAMPLES):
        scores = random.normal(np.array(center)[value], np.array(spread)[value])
        cut = np.sort(scores)[-round(share * len(scores))]
        found = shares_kept(counts, np.bincount(value[scores >= cut], minlength=len(rows)), counts)
        passing = torch.special.ndtr((torch.tensor(center) - cut) / torch.tensor(spread)).numpy()
        true = counts * passing / (counts * passing).sum()
        covered += (found.low <= true) & (true <= found.high)
        assert found.weight.sum() == pytest.approx(1)
        assert (found.low <= found.weight).all()
        assert (found.weight <= found.high).all()
    assert 0.92 <= covered.mean() / RESAMPLES <= 0.99
    assert covered.min() / RESAMPLES > 0.89


@pytest.mark.parametrize("slope", [-1, 0, 1])
def test_intervals_of_tokens_cover_where_long_rows_are_kept_otherwise(slope: float) -> None:
    value, random = np.repeat([0, 1, 2], [100, 300, 600]), np.random.default_rng(0)
    tokens = np.exp(random.normal(4, 0.8, 1000)).round() + 1
    chance = 1 / (1 + np.exp(value - 1 - slope * (np.log(tokens) - 4)))

    def of_each(sizes: Any) -> Any:
        return np.bincount(value, sizes)

    true, covered = of_each(tokens * chance) / (tokens * chance).sum(), np.zeros(3)
    for _ in range(RESAMPLES):
        kept = random.random(1000) < chance
        found = shares_kept(of_each(tokens), of_each(tokens * kept), of_each(tokens**2))
        covered += (found.low <= true) & (true <= found.high)
    assert covered.min() / RESAMPLES > 0.9


def test_none_kept_of_a_few_is_not_none_ever() -> None:
    rows = np.array([20, 1000, 20])
    found = shares_kept(rows, np.array([0, 500, 20]), rows)
    assert found.weight.tolist() == [0, 500 / 520, 20 / 520]
    assert found.low[0] == 0
    assert 3 / 520 < found.high[0] < 6 / 520  # about three rows, by the rule of three
    assert found.low[2] < found.weight[2] < found.high[2]


def test_worse_sources_weigh_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of each are wrong at its own rate; the first has the target's distribution."""
    rates, random = {"copy": 0.0, "some": 0.2, "half": 0.45}, np.random.default_rng(0)

    def rows(count: int, wrong: float) -> dict[str, Any]:
        x = random.normal(size=(count, 4))
        return {"x": x.tolist(), "label": ((x[:, 0] > 0) ^ (random.random(count) < wrong)) + 0}

    monkeypatch.chdir(tmp_path)
    parts = [Dataset.from_dict(rows(200, wrong)) for wrong in rates.values()]
    parts = [p.add_column("source", [n] * 200) for n, p in zip(rates, parts, strict=True)]
    interleave_datasets(parts).to_parquet("rows.parquet")
    Dataset.from_dict(rows(200, 0.0)).to_parquet("target.parquet")
    Path("recipe.yaml").write_text(
        "data: {train: rows.parquet, validation: target.parquet, "
        "columns: {features: [x], label: label}}\n"
        "model: {kind: mlp, hidden: [8]}\n"
        "training: {epochs: 3, batch_size: 30, optimizer: {kind: adamw, lr: 1e-2}}\n"
        "selection: {horizon: 4, keep: {fraction: 0.5}, rounds: 1, judge: false, probing: 0}\n"
    )
    assert curate("recipe.yaml", "--out", "out", "--quiet") == 0
    found = mixture(read_run(Path("out")), "source")
    names = [part["value"] for part in found.parts]
    assert names == ["copy", "some", "half"]  # those of which most is kept first
    assert [part["influence"] for part in found.parts] == sorted(
        (part["influence"] for part in found.parts), reverse=True
    )
    assert (np.diff(found.rows.weight) < 0).all()
    assert found.rows.low[0] > 1 / 3 > found.rows.high[2]


def test_the_file_is_what_loaders_take(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.json"
    assert f"wrote {file}" in inspect(capsys, folder, "--by", "source", "--weights", file)
    found = json.loads(file.read_text())
    assert json.loads(inspect(capsys, folder, "--by", "source", "--json")) == found
    assert found["weights"] == {"web": 0.8, "books": 0.2, "code": 0}
    values = found["values"]
    assert {name: line["rows"] for name, line in values.items()} == ROWS
    low, high = values["code"]["weights_interval"]
    assert (low, high > 0) == (0, True)
    parts = [Dataset.from_dict({"source": [name] * 400}) for name in found["weights"]]
    mixed = interleave_datasets(parts, probabilities=[*found["weights"].values()], seed=0)
    share = np.mean(np.array(mixed["source"]) == "books")
    assert share == pytest.approx(0.2, abs=0.08)
    rows = [name for name, count in ROWS.items() for _ in range(count)]
    each = [found["weights"][name] / values[name]["rows"] for name in rows]
    generator = torch.Generator().manual_seed(0)
    drawn = [rows[i] for i in WeightedRandomSampler(each, 2000, generator=generator)]
    assert np.mean(np.array(drawn) == "books") == pytest.approx(0.2, abs=0.04)


def test_the_table_says_what_each_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = inspect(capsys, folder, "--by", "source").splitlines()
    assert lines[0].split("  ")[1:3] == ["source", "rows"]
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["web", "24", "16", "67%"],
        ["books", "8", "4", "50%"],
        ["code", "8", "0", "0%"],
    ]
    influence = np.linspace(2e-3, -1e-3, 40)[24:32]
    far = 1.96 * influence.std(ddof=1) / 8**0.5
    ends = f"{1e4 * (influence.mean() - far):+.2f} to {1e4 * (influence.mean() + far):+.2f}"
    expected = f"{1e4 * influence.mean():+.2f} {ends}".replace("-", "−")
    assert " ".join(lines[3].split()).endswith(expected)
    assert [line.split()[-1] for line in lines[6:9]] == ["more", lines[7].split()[-1], "less"]
    assert "compared within labels" not in " ".join(lines)
    assert "compared within labels" in inspect(capsys, folder, "--by", "label")


def test_tokens_have_weights_of_their_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by = {"source": ["a", "a", "b", "b"], "x": [[0.0]] * 4}
    kept, tokens = np.array([True, False, True, False]), np.array([30, 5, 10, 15])
    judged = Judged(kept, None, np.ones(4), tokens)
    parts = composition(Dataset.from_dict(by), judged, ON_LISTS)
    file = folder / "provenance.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"composition": parts}))
    try:
        found = json.loads(inspect(capsys, folder, "--by", "source", "--json"))
        text = inspect(capsys, folder, "--by", "source")
    finally:
        file.write_text(before)
    assert found["weights"] == {"a": 0.5, "b": 0.5}
    assert found["token_weights"] == {"a": 0.75, "b": 0.25}
    assert "influence" not in found["values"]["a"]
    assert "of all tokens" in text


def test_weights_that_scores_did_not_make_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Dataset.from_dict(
        {"x": [[0.0]] * 40, "label": [0, 1] * 20, "source": [HOSTILE[4], "b"] * 20}
    )
    whole = made(tmp_path / "whole", table, ON_LISTS, keep=1.0, report=False)
    text = inspect(capsys, whole, "--by", "source")
    assert "Every row is kept" in text
    assert text.replace("\n", "").isprintable()
    quotas = ON_LISTS.model_copy(deep=True)
    quotas = quotas.model_copy(
        update={"selection": quotas.selection.model_copy(update={"group_by": "source"})}
    )
    shared = made(tmp_path / "shared", table, quotas, report=False)
    assert "selection.group_by gives" in inspect(capsys, shared, "--by", "source")


def test_what_cannot_be_weighed_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "inspect", folder, "--by", "colour")
    assert line.startswith("curate: --by colour: is not among what was added up")
    assert "label, source" in line
    assert "leave out" in refused(capsys, "inspect", folder, "--by", "source", "--kept", "2")
    for option in (["--json"], ["--weights", tmp_path / "w.json"]):
        assert "need --by" in refused(capsys, "inspect", folder, *option)
    there = tmp_path / "no" / "w.json"
    assert "cannot be written" in refused(
        capsys, "inspect", folder, "--by", "source", "--weights", there
    )
    table = Dataset.from_dict({"x": [[0.0]] * 12, "source": ["a", "b"] * 6})
    none = made(tmp_path / "none", table, ON_LISTS, keep=0.0, report=False)
    assert "no row is kept" in refused(capsys, "inspect", none, "--by", "source")
    assert run(cli, ["inspect", str(none)]) == 0
