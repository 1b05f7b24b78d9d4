"""Tensors as examples: batches, parts and scaling."""

import numpy as np
import pytest
import torch

from curate.datasets import Scaling, TensorExamples, tensors

CPU, F64 = torch.device("cpu"), torch.float64


def examples(labels: bool = True) -> TensorExamples:
    """Example i has features (i, 10 i), label i and stands in row 2 i of the source."""
    i = torch.arange(6)
    features = torch.stack([i, 10 * i], dim=1).to(F64)
    return TensorExamples(features, i if labels else None, 2 * i, dtype=F64)


def test_scaling_standardizes_and_leaves_constants_at_zero() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0]], dtype=F64)
    examples = TensorExamples(values, None, torch.arange(2), dtype=F64)
    scaled = examples.standardized_by(Scaling.standardizing(values, F64)).all_features()
    assert scaled.tolist() == [[-1, 0], [1, 0]]


def test_bytes_become_floats_between_zero_and_one() -> None:
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    batch = TensorExamples(pixels, None, torch.arange(1)).batch(
        torch.tensor([0]), torch.device("cpu")
    )
    assert batch["features"].flatten().tolist() == [0.0, 1.0]
    assert "label" not in batch


def test_a_batch_has_the_rows_in_the_order_they_were_asked_for() -> None:
    batch = examples().batch(torch.tensor([4, 1]), CPU)
    assert {name: part.tolist() for name, part in batch.items()} == {
        "features": [[4, 40], [1, 10]],
        "label": [4, 1],
    }


def test_chunks_are_all_positions_in_order() -> None:
    assert [chunk.tolist() for chunk in examples().chunks(4)] == [[0, 1, 2, 3], [4, 5]]


def test_parts_remember_their_rows_and_can_be_joined() -> None:
    part = examples().take(torch.tensor([5, 2]))
    assert (part.source_row(0), part.rows.tolist(), len(part)) == (10, [10, 4], 2)
    whole = part.joined(examples().take(torch.tensor([0])))
    assert whole.features.tolist() == [[5, 50], [2, 20], [0, 0]]
    assert whole.rows.tolist() == [10, 4, 0]
    assert whole.labels is not None
    assert whole.labels.tolist() == [5, 2, 0]
    assert examples(labels=False).joined(part).labels is None


def test_contents_are_equal_for_equal_features_whatever_the_labels() -> None:
    one = examples().take(torch.tensor([3, 3, 4]))
    first, second, third = one.with_labels(torch.tensor([0, 1, 2])).contents()
    assert first == second != third


def test_images_are_scaled_by_one_pair_and_after_they_became_floats() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    images = TensorExamples(pixels, None, torch.arange(2), dtype=F64)
    scaling = Scaling.standardizing(pixels / 255, F64)
    assert scaling.shift.shape == ()
    assert images.standardized_by(scaling).all_features().flatten().tolist() == [-1, 1]


@pytest.mark.parametrize("piece", [2**20, 100, 1])
def test_the_scale_is_the_same_in_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PIECE", piece)
    tables = [
        torch.randn(40, 3, dtype=F64) * torch.tensor([1e-3, 1, 1e3]) + 1e4,
        torch.full((40, 2), 0.1, dtype=F64),
        torch.randint(255, (40, 3, 2, 2), dtype=torch.uint8),
        torch.cat([torch.zeros(20, 1), torch.ones(20, 1)]),
    ]
    for features in tables:
        values = (features / 255 if features.dtype == torch.uint8 else features).numpy()
        axes = 0 if features.ndim == 2 else None
        scaling = Scaling.standardizing(features, F64)
        spread = np.ptp(values, axis=axes) > 0
        np.testing.assert_allclose(scaling.shift, values.mean(axis=axes, dtype=float), rtol=1e-9)
        factor = np.where(spread, 1 / np.where(spread, values.std(axis=axes, dtype=float), 1), 0)
        np.testing.assert_allclose(scaling.factor, factor, rtol=1e-6)
        assert ((scaling.factor == 0).numpy() == ~spread).all()
