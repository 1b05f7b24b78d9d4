"""Squared error per example, over one output or several."""

import pytest
import torch
from torch import nn

from curate.errors import ModelError
from curate.models.objectives.regression import Regression


def test_regression_takes_one_output_or_several() -> None:
    one = {"features": torch.randn(6, 4), "label": torch.randn(6)}
    several = {"features": torch.randn(6, 4), "label": torch.randn(6, 2)}
    model = nn.Linear(4, 1)
    torch.testing.assert_close(
        Regression().losses(model, one), (model(one["features"])[:, 0] - one["label"]) ** 2
    )
    assert Regression().losses(nn.Linear(4, 2), several).shape == (6,)
    with pytest.raises(ModelError, match=r"shape \(6, 2\) but got a tensor of shape \(6, 1\)"):
        Regression().losses(model, several)
