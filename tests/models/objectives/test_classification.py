"""Cross-entropy per example, as torch computes its mean."""

import pytest
import torch
from torch import nn

from curate.errors import ModelError
from curate.models import Classification
from tests import tiny


def test_classification_losses_match_torch() -> None:
    batch = {"features": torch.randn(6, 4), "label": torch.randint(0, 3, (6,))}
    module = tiny.module()
    losses = Classification().losses(module, batch)
    expected = nn.functional.cross_entropy(module(batch["features"]), batch["label"])
    torch.testing.assert_close(losses.mean(), expected)
    assert Classification().sizes(batch).tolist() == [1] * 6
    assert set(Classification().metrics(module, batch)["accuracy"].tolist()) <= {0.0, 1.0}


def test_outputs_of_another_shape_are_refused() -> None:
    batch = {"features": torch.randn(6, 4), "label": torch.zeros(6, dtype=torch.long)}
    for model, output in (
        (lambda x: x[:, 0], r"a tensor of shape \(6,\)"),
        (lambda x: x[:5], r"a tensor of shape \(5, 4\)"),
        (lambda x: [x], "a list"),
    ):
        with pytest.raises(ModelError, match=rf"shape \(6, classes\) but got {output}\."):
            Classification().losses(model, batch)
