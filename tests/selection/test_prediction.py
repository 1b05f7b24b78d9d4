"""Predicting scores from features."""

import numpy as np
import pytest

from curate.selection.prediction import PENALTIES, Predictor, learn


def made(count: int, noise: float, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Two blocks, of 3 and 20 features, and scores linear in some of each."""
    random = np.random.default_rng(seed)
    few, many = random.normal(size=(count, 3)), random.normal(size=(count, 20))
    scores = 5 + 2 * few[:, 0] - few[:, 1] + 0.5 * many[:, :4].sum(axis=1)
    few, many = few * [1, 10, 100] + 7, many * 3 - 1  # whatever the units
    return [few.astype(np.float32), many.astype(np.float32)], scores + noise * random.normal(
        size=count
    )


def test_what_is_linear_is_found_and_what_is_not_there_is_not() -> None:
    blocks, scores = made(2000, 0.0)
    predictor, quality = learn(blocks, scores, 0.5)
    fresh, truth = made(500, 0.0, seed=1)
    assert (predictor(fresh) - truth).std() < 0.05 * truth.std()
    assert quality.spearman > 0.999
    assert quality.alike > 0.98
    assert quality.low > 0.99
    noise = np.random.default_rng(2).normal(size=2000)
    predictor, quality = learn(blocks, noise, 0.5)
    assert predictor(fresh).std() < 0.15
    assert abs(quality.spearman) < 0.1
    assert quality.low < 0.1
    assert abs(quality.alike - quality.by_chance) < 0.05


def test_the_penalty_is_that_of_leaving_rows_out() -> None:
    """One block: by scikit-learn's ridge over the same penalties, with its generalized CV."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    blocks, scores = made(300, 2.0)
    few = blocks[0].astype(np.float64)
    scaled = (few - few.mean(axis=0)) / few.std(axis=0)
    ridge = linear_model.RidgeCV(alphas=PENALTIES * 300).fit(scaled, scores)
    fresh = made(50, 0.0, seed=1)[0][0]
    expected = ridge.predict((fresh - few.mean(axis=0)) / few.std(axis=0))
    found, _ = learn([blocks[0]], scores, 0.5)
    assert np.allclose(found([fresh]), expected, atol=0.02)


def test_intervals_hold_nine_in_ten_of_new_rows() -> None:
    inside = []
    for seed in range(20):
        blocks, scores = made(400, 1.5, seed)
        predictor, _ = learn(blocks, scores, 0.5)
        fresh, truth = made(400, 1.5, seed + 100)
        inside.append(np.mean(np.abs(predictor(fresh) - truth) <= predictor.width))
    assert 0.88 < np.mean(inside) < 0.93


def test_more_features_than_rows_and_features_that_never_vary() -> None:
    random = np.random.default_rng(0)
    many = random.normal(size=(100, 300)).astype(np.float32)
    constant = np.ones((100, 2), dtype=np.float32)
    predictor, quality = learn([constant, many], random.normal(size=100), 0.5)
    assert np.isfinite(predictor([constant, many])).all()
    assert quality.low < 0.2


def test_restored_is_what_was_saved() -> None:
    blocks, scores = made(200, 1.0)
    predictor, _ = learn(blocks, scores, 0.5)
    again = Predictor.restored(predictor.saved())
    assert np.array_equal(again(blocks), predictor(blocks))
