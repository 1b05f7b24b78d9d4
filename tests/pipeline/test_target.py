"""Targets that are about something else than the mean loss of training, from a recipe."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import curate
from curate.pipeline.job import prepare
from curate.pipeline.verify import RemovalPlan


def rows(count: int, seed: int) -> pl.DataFrame:
    """Three clusters, the third of them rare; a column beside the label says which half."""
    random = np.random.default_rng(seed)
    label = random.choice(3, count, p=[0.45, 0.45, 0.1])
    x = random.normal(size=(count, 3)) + 1.5 * np.eye(3)[label]
    return pl.DataFrame({f"x{k}": x[:, k] for k in range(3)} | {"label": label}).with_columns(
        side=pl.when(pl.col("x0") > 0.5).then(pl.lit("right")).otherwise(pl.lit("left"))
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows(96, 0).write_parquet("train.parquet")
    rows(60, 1).write_parquet("checked.parquet")
    return tmp_path


def recipe(target: dict[str, Any] | None, **changes: Any) -> Any:
    plain: dict[str, Any] = {
        "data": {
            "train": "train.parquet",
            "validation": "checked.parquet",
            "columns": {"features": ["x*"], "label": "label"},
        },
        "model": {"kind": "mlp", "hidden": [6], "activation": "tanh"},
        "training": {"epochs": 2, "batch_size": 12, "optimizer": {"lr": 1e-2}},
        "selection": {"horizon": 4, "epochs": 2, "keep": {"fraction": 0.8}},
    }
    return curate.check_recipe(plain | ({} if target is None else {"target": target}) | changes)


@pytest.mark.parametrize(
    "target",
    [
        {"loss": "margin"},
        {"loss": "focal", "balance": "label"},
        {"balance": "side", "worst": 4.0},
    ],
)
def test_influences_are_those_of_leaving_rows_out(here: Path, target: dict[str, Any]) -> None:
    plan = RemovalPlan(examples=24, mistaken=False)
    selection = {"horizon": 4, "epochs": 2, "jump": "exact", "keep": {"fraction": 0.8}}
    checked = recipe(target, selection=selection)
    _, summary = curate.verify(checked, here / "verify", plan, device="cpu")
    assert summary["agreement"]["spearman"]["value"] > 0.98
    plain = curate.run_select(recipe(None), here / "plain", device="cpu")
    own = curate.run_select(recipe(target), here / "own", device="cpu")
    scores = [
        pl.read_parquet(here / name / "scores.parquet").sort("row")["influence"].to_numpy()
        for name in ("plain", "own")
    ]
    assert np.corrcoef(*scores)[0, 1] < 0.999
    loss = own["worth"]["against"][0]["loss"]
    assert loss != plain["worth"]["against"][0]["loss"]  # judged by what it is about


def test_balanced_groups_count_alike_whatever_their_size(here: Path) -> None:
    data = prepare(recipe({"balance": "label"}), torch.device("cpu")).data
    (target,) = data.targets
    assert target.groups is not None
    checked = pl.read_parquet("checked.parquet")
    counts = checked["label"].value_counts().sort("label")["count"].to_list()
    assert target.groups.terms.tolist() == counts
    ones = torch.ones(60, dtype=torch.float64)
    shares = target.shares(ones, ones)
    for label in range(3):
        own = torch.from_numpy((checked["label"] == label).to_numpy())
        assert float(shares[own].sum()) == pytest.approx(1 / 3)
    halves = data.half_targets
    assert [len(half.groups.terms) for half in halves if half.groups] == [3, 3]
    losses = torch.rand(60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = dict(zip(target.examples.rows.tolist(), range(60), strict=True))
    total = sum(half.weight for half in halves)
    parts = 0.0
    for half in halves:  # the mean over halves is that over the whole, odd groups or not
        own = losses[[places[row] for row in half.examples.rows.tolist()]]
        sums = torch.zeros(3, dtype=torch.float64).index_add_(0, half.groups.of, own)
        parts += half.weight / total * half.groups.value(sums)
        assert float(half.shares(own, torch.ones_like(own)).sum()) == pytest.approx(1.0)
    sums = torch.zeros(3, dtype=torch.float64).index_add_(0, target.groups.of, losses)
    assert parts == pytest.approx(target.groups.value(sums), rel=1e-12)


def test_a_group_that_cannot_be_halved_is_refused(here: Path) -> None:
    checked = pl.read_parquet("checked.parquet").with_columns(
        side=pl.when(pl.int_range(pl.len()) == 7).then(pl.lit("alone")).otherwise("side")
    )
    checked.write_parquet("checked.parquet")
    data = prepare(recipe({"balance": "side"}), torch.device("cpu")).data
    with pytest.raises(curate.CurateError, match=r"target.balance: alone is one row of validation"):
        _ = data.halves
    checked.with_columns(side=pl.when(pl.col("side") != "alone").then("side")).write_parquet(
        "checked.parquet"
    )
    with pytest.raises(curate.CurateError, match=r"target.balance: column side is null at row 7"):
        prepare(recipe({"balance": "side"}), torch.device("cpu"))


def test_several_targets_are_shown_one_by_one(here: Path) -> None:
    rows(40, 2).write_parquet("other.parquet")
    data = recipe(None).data.model_dump(exclude_none=True)
    data["validation"] = {"one": "checked.parquet", "other": "other.parquet"}
    summary = curate.run_select(recipe(None, data=data), here / "out", device="cpu")
    for way in (summary["worth"]["chosen"], *summary["worth"]["against"][:2]):
        by_target = [way["metrics"][f"loss, {name}"] for name in ("one", "other")]
        assert np.mean(by_target) == pytest.approx(way["loss"], rel=1e-6)


def test_a_column_that_is_not_there_is_named(here: Path) -> None:
    with pytest.raises(curate.CurateError, match=r"target.balance: there is no column z; it has"):
        prepare(recipe({"balance": "z"}), torch.device("cpu"))
