"""Modules as functions of one vector, which are themselves again afterwards."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from curate.errors import ModelError
from curate.models import FlatModel
from tests import tiny


def test_groups_are_contiguous_and_names_survive() -> None:
    module = tiny.module()
    model = FlatModel(module, [["3.bias", "0.weight"], ["0.bias", "3.weight"]])
    assert model.group_sizes == (23, 20)
    assert model.group_shapes == (((3,), (5, 4)), ((5,), (3, 5)))
    parts = model.unpack(model.read())
    assert list(parts) == ["3.bias", "0.weight", "0.bias", "3.weight"]
    for name, p in module.named_parameters():
        assert torch.equal(parts[name], p)
    owners = [model.parameter_at(i) for i in (0, 2, 3, 42)]
    assert owners == ["3.bias", "3.bias", "0.weight", "3.weight"]


def test_bound_model_is_the_module_at_other_parameters() -> None:
    model = FlatModel(tiny.module())
    other = tiny.module()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    x = torch.randn(5, 4)
    assert torch.equal(tiny.bound(model, model.read() * 2, training=False)(x), other.eval()(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.embed(x).tanh())
        return output


def test_tied_weights_are_one_parameter() -> None:
    module = Tied()
    model = FlatModel(module, dtype=torch.float64)
    assert model.size == 16
    theta = model.read().requires_grad_()
    x = torch.randn(3, 4, dtype=torch.float64)
    (ours,) = torch.autograd.grad(tiny.bound(model, theta, training=True)(x).square().sum(), theta)
    module(x).square().sum().backward()
    assert module.embed.weight.grad is not None
    torch.testing.assert_close(ours, module.embed.weight.grad.flatten())


def test_frozen_parameters_stay_out() -> None:
    module = tiny.module()
    module[0].requires_grad_(False)  # type: ignore[index]
    assert FlatModel(module).names == ("3.weight", "3.bias")


def test_parameters_that_cannot_be_one_vector_are_refused() -> None:
    with pytest.raises(ModelError, match="no trainable parameters"):
        FlatModel(tiny.module().requires_grad_(False))
    with pytest.raises(ModelError, match=r"parameter weight has no shape yet"):
        FlatModel(nn.LazyLinear(3))
    with pytest.raises(ModelError, match=r"parameter weight is complex"):
        FlatModel(nn.Linear(2, 2, dtype=torch.complex64))
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64))
    with pytest.raises(ModelError, match=r"of one dtype but are torch.float32 on cpu, torch.float"):
        FlatModel(mixed)
    for groups in ([["0.weight"], ["0.weight"]], [["nope"]]):
        with pytest.raises(ValueError, match="trainable parameters, each of them once"):
            FlatModel(tiny.module(), groups)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(3), nn.LazyBatchNorm1d(), nn.InstanceNorm1d(3, track_running_stats=True)],
)
def test_layers_that_mix_examples_are_refused_by_name(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 3), layer)
    with pytest.raises(ModelError, match=r"layer 1 "):
        FlatModel(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_module_is_itself_again_whatever_happens(error: type[BaseException]) -> None:
    module = tiny.module(dropout=0.5).train()
    module[2].eval()  # type: ignore[index]
    model = FlatModel(module)
    module.eval()
    places = [p.data_ptr() for p in module.parameters()]
    values, grads = model.read(), [torch.ones_like(p) for p in module.parameters()]
    for p, grad in zip(module.parameters(), grads, strict=True):
        p.grad = grad
    with suppress(error), model.at(values * 2, training=True) as inside:
        assert inside is module
        assert [layer.training for layer in module.modules()] == [True, True, True, False, True]
        assert torch.equal(model.read(), values * 2)
        assert torch.equal(model.gradient(), torch.zeros(model.size))
        module[3](torch.ones(2, 5)).sum().backward()  # type: ignore[index]
        expected = [0.0] * 25 + [2.0] * 15 + [2.0] * 3
        assert model.gradient().tolist() == expected
        raise error
    assert not any(layer.training for layer in module.modules())
    assert torch.equal(model.read(), values)
    assert [p.data_ptr() for p in module.parameters()] == places
    assert all(p.grad is g for p, g in zip(module.parameters(), grads, strict=True))


def test_passes_are_in_the_precision_of_training_or_exactly_in_that_of_the_weights() -> None:
    model = FlatModel(nn.Linear(2, 2), autocast=torch.bfloat16)
    with model.computing():
        assert model.module(torch.ones(1, 2)).dtype == torch.bfloat16
    with torch.no_grad(), model.computing(exactly=True):
        output = model.module(torch.ones(1, 2))
        assert (output.dtype, output.requires_grad) == (torch.float32, True)
