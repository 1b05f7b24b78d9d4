"""Nearness to target rows of one's label: against the formula, and what it is for."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from curate.pipeline.job import Job, prepare
from curate.pipeline.nearness import TAU, nearness, nearness_passes
from curate.pipeline.retraining import Retraining
from curate.recipe import check_recipe
from curate.selection.ranking import auroc
from tests.pipeline.test_worth import CPU, recipe


def formula(job: Job, hidden: np.ndarray, targets: list[np.ndarray], k: int) -> np.ndarray:
    """By one half of the target, with loops; hidden: what goes into the last layer."""
    (half,) = job.data.halves[k].validation.values()
    assert half.labels is not None
    assert job.data.classes is not None
    labels, center = half.labels.numpy(), targets[k].mean(axis=0)

    def direction(x: np.ndarray) -> np.ndarray:
        return (x - center) / np.linalg.norm(x - center)

    values = []
    for x, label in zip(hidden, job.data.classes, strict=True):
        alike = [np.exp((direction(x) @ direction(z) - 1) / TAU) for z in targets[k]]
        means = {
            c: np.mean([a for a, y in zip(alike, labels, strict=True) if y == c]) for c in (0, 1)
        }
        values.append(means[int(label)] - means[1 - int(label)])
    return np.array(values)


def test_it_is_a_difference_of_mean_kernels_by_either_half(tmp_path: Path) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3)), CPU)
    task, _, state = job.start(0)
    found = nearness(job, task, state.theta)
    assert found is not None
    with task.model.at(state.theta, training=False) as module, torch.no_grad():
        body = module[:-1]
        hidden = body(job.data.examples.all_features()).double().numpy()
        targets = [
            body(examples.all_features()).double().numpy()
            for half in job.data.halves
            for examples in half.validation.values()
        ]
    for k in (0, 1):
        np.testing.assert_allclose(found.candidates[k], formula(job, hidden, targets, k), atol=1e-5)


def test_wrong_labels_are_far(tmp_path: Path) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3)), CPU)
    right = prepare(check_recipe(recipe(tmp_path, 0.0)), CPU).data.classes
    assert right is not None
    wrong = job.data.classes != right
    near = Retraining(job, lambda: None).plain().watched.near
    assert near is not None
    assert auroc(-near.candidates.mean(axis=0), wrong) > 0.85


def shifted(folder: Path, share: float) -> dict[str, Any]:
    """Rows of another kind among the candidates, far from the target's and rightly labeled."""
    plan = recipe(folder, 0.0)
    train = pl.read_parquet(folder / "train.parquet")
    x, label = np.array(train["x"].to_list()), train["label"].to_numpy()
    other = np.random.default_rng(3).random(len(x)) < share
    x[other, 0], x[other, 1] = x[other, 0] + 6 * (1 - 2 * label[other]), x[other, 1]
    train.with_columns(x=pl.Series(x.tolist()), other=other).write_parquet(folder / "train.parquet")
    return plan


def test_rows_of_another_kind_are_far_and_about_as_many_as_they_are(tmp_path: Path) -> None:
    job = prepare(check_recipe(shifted(tmp_path, 0.4)), CPU)
    other = np.array(job.data.table["other"])
    plain = Retraining(job, lambda: None).plain().watched
    assert plain.near is not None
    assert auroc(-plain.near.candidates.mean(axis=0), other) > 0.8
    assert plain.unlike() == pytest.approx(0.4, abs=0.1)


def test_a_row_whose_label_no_target_row_has_is_neither_near_nor_far(tmp_path: Path) -> None:
    plan = recipe(tmp_path, 0.0)
    for part, labels in (("train", [0, 1, 2]), ("validation", [0, 1]), ("test", [0, 1])):
        path = tmp_path / f"{part}.parquet"
        table = pl.read_parquet(path)
        label = pl.Series(np.resize(labels, len(table)))
        table.with_columns(label=label).write_parquet(path)
    job = prepare(check_recipe(plan), CPU)
    task, _, state = job.start(0)
    found = nearness(job, task, state.theta)
    assert found is not None
    assert job.data.classes is not None
    np.testing.assert_array_equal(found.candidates[:, job.data.classes == 2], 0)
    assert (found.candidates[:, job.data.classes < 2] != 0).all()
    assert nearness_passes(job) == pytest.approx((480 + 240) / 32 / 3)


def test_of_a_long_target_so_many_rows_have_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3)), CPU)
    task, _, state = job.start(0)
    whole = nearness(job, task, state.theta)
    monkeypatch.setattr("curate.pipeline.nearness.MOST", 60)
    some = nearness(job, task, state.theta)
    assert whole is not None
    assert some is not None
    assert (len(whole.target), len(some.target)) == (240, 120)
    correlation = np.corrcoef(whole.candidates[0], some.candidates[0])[0, 1]
    assert 0.7 < correlation < 1
    assert nearness_passes(job) == pytest.approx((480 + 120) / 32 / 3)


def test_without_classes_there_is_none(tmp_path: Path) -> None:
    plan: Any = recipe(tmp_path, 0.0) | {"objective": "regression"}
    job = prepare(check_recipe(plan), CPU)
    task, _, state = job.start(0)
    assert nearness(job, task, state.theta) is None
    assert nearness_passes(job) == 0
    assert [*Retraining(job, lambda: None).plain().watched.evidence()] == ["losses"]
