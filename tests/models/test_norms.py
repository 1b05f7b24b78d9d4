"""Batch normalization by the statistics that it has."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from curate.errors import ModelError
from curate.models import FlatModel, freeze_norms


def net() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)),
        nn.Linear(8, 3),
    )
    for _ in range(5):
        module(2 * torch.randn(16, 1, 4, 4) + 1)
    return module


def test_rows_do_not_depend_on_each_other_in_training_mode() -> None:
    module, x = net(), torch.randn(6, 1, 4, 4)
    expected = copy.deepcopy(module).eval()(x)
    assert not torch.allclose(module.train()(x), expected)
    statistics = [b.clone() for b in net().buffers()]
    module = freeze_norms(net()).train()
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x[:1]), expected[:1])
    assert all(torch.equal(b, s) for b, s in zip(module.buffers(), statistics, strict=True))
    assert module[3].training
    assert not module[1].training


def test_they_are_the_layers_that_they_were() -> None:
    module, plain = freeze_norms(net()), net()
    assert isinstance(module[1], nn.BatchNorm2d)
    assert repr(module) == repr(plain)
    plain.load_state_dict(module.state_dict())
    assert not copy.deepcopy(module).train()[1].training
    assert len([*module.parameters()]) == len([*plain.parameters()])
    assert freeze_norms(freeze_norms(plain)) is plain


def test_one_without_statistics_is_refused_all_the_same() -> None:
    module = freeze_norms(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)))
    with pytest.raises(ModelError, match=r"mixes the examples of a batch.*freeze_norms"):
        FlatModel(module.train())


def test_weights_and_biases_of_it_are_trained() -> None:
    module = freeze_norms(net()).train()
    module(torch.randn(6, 1, 4, 4)).sum().backward()
    layer: Any = module[1]
    assert layer.weight.grad is not None
    assert layer.weight.grad.norm() > 0
