"""Flat models, objectives, factories, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from curate.datasets import TensorExamples
from curate.errors import ModelError
from curate.models import (
    ACTIVATIONS,
    BUILTIN_MODELS,
    Classification,
    FlatModel,
    Regression,
    build_model,
    load_objective,
    probe,
)
from curate.recipe import models as recipe_models
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
    assert [model.parameter_at(i) for i in (0, 2, 3, 42)] == [
        "3.bias", "3.bias", "0.weight", "3.weight",
    ]  # fmt: skip


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
        out: torch.Tensor = self.head(self.embed(x).tanh())
        return out


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


def test_all_frozen_is_refused() -> None:
    with pytest.raises(ModelError, match="no trainable parameters"):
        FlatModel(tiny.module().requires_grad_(False))


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(3), nn.LazyBatchNorm1d(), nn.InstanceNorm1d(3, track_running_stats=True)],
)
def test_layers_that_mix_examples_are_refused_by_name(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 3), layer)
    with pytest.raises(ModelError, match=r"layer 1 "):
        FlatModel(model)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_builtin_models_have_the_shapes_they_say(activation: str) -> None:
    made = BUILTIN_MODELS["mlp"]((2, 3), 5, hidden=(4, 4), activation=activation, dropout=0.1)
    assert made(torch.randn(7, 2, 3)).shape == (7, 5)
    convnet = BUILTIN_MODELS["cnn"](
        (1, 9, 8), 5, channels=(2, 3), activation=activation, dropout=0.1
    )
    assert convnet(torch.randn(7, 1, 9, 8)).shape == (7, 5)


def test_recipe_lists_what_models_there_are() -> None:
    from typing import get_args

    assert set(get_args(recipe_models.Activation)) == set(ACTIVATIONS)


def test_cnn_refuses_flat_features_and_small_images() -> None:
    with pytest.raises(ModelError, match=r"needs images.*shape \(64,\)"):
        BUILTIN_MODELS["cnn"]((64,), 10)
    with pytest.raises(ModelError, match="3 halvings, too many for images of 8x7"):
        BUILTIN_MODELS["cnn"]((1, 8, 7), 10, channels=(2, 2, 2))


def test_classification_losses_match_torch() -> None:
    batch = {"features": torch.randn(6, 4), "label": torch.randint(0, 3, (6,))}
    module = tiny.module()
    losses = Classification().losses(module, batch)
    expected = nn.functional.cross_entropy(module(batch["features"]), batch["label"])
    torch.testing.assert_close(losses.mean(), expected)
    assert Classification().sizes(batch).tolist() == [1] * 6
    assert set(Classification().metrics(module, batch)["accuracy"].tolist()) <= {0.0, 1.0}


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


def test_factories_and_objectives_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_models.py").write_text(
        "import torch\n"
        "def net(width): return torch.nn.Linear(4, width)\n"
        "def broken(): raise ValueError('no weights here')\n"
        "class Odd(Exception): pass\n"
        "def odd(): raise Odd('boom')\n"
        "def leave(): raise SystemExit(3)\n"
        "def failing(model, batch): raise Odd('boom')\n"
        "def not_a_model(): return 3\n"
        "def loss(model, batch): return model(batch['features']).square().sum(1)\n"
        "def reduced(model, batch): return model(batch['features']).square().mean()\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(build_model("mine_for_models:net", {"width": 3}), nn.Linear)
    for path, arguments, message in [
        ("mine_for_models:net", {}, "raised TypeError"),
        ("mine_for_models:broken", {}, "raised ValueError: no weights here"),
        ("mine_for_models:odd", {}, r"raised Odd: boom \(CURATE_TRACEBACK=1 shows where\)"),
        ("mine_for_models:leave", {}, "raised SystemExit: 3"),
        ("mine_for_models:not_a_model", {}, "must return a torch.nn.Module but got a int"),
        ("mine_for_models:absent", {}, "has no absent"),
        ("no_such_module_at_all:net", {}, "cannot import no_such_module_at_all"),
        ("mine_for_models", {}, "must look like package.module:name"),
        ("mine_for_models:number", {}, "is a int, not a function"),
    ]:
        with pytest.raises(ModelError, match=message):
            build_model(path, arguments)
    batch = {"features": torch.randn(6, 4)}
    objective = load_objective("mine_for_models:loss")
    assert objective.losses(nn.Linear(4, 2), batch).shape == (6,)
    with pytest.raises(ModelError, match="one loss per example"):
        load_objective("mine_for_models:reduced").losses(nn.Linear(4, 2), batch)
    with pytest.raises(ModelError, match="objective: mine_for_models:failing raised Odd: boom"):
        load_objective("mine_for_models:failing").losses(nn.Linear(4, 2), batch)
    with pytest.raises(ModelError, match="must be a function"):
        load_objective("mine_for_models:number")
    sys.modules.pop("mine_for_models")


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self.linear(x)
        return out


class Centring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x - x.mean(dim=0))
        return out


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Counting(), "calls changes in the forward pass"),
        (Centring(), "depends on who shares its batch"),
        (Detached(), "does not depend on any trainable parameter"),
        (nn.Linear(5, 3), "cannot be trained on this data: RuntimeError"),
        (nn.Linear(4, 2), "cannot be trained on this data: IndexError"),
    ],
    ids=["buffer", "mixing", "detached", "shape", "classes"],
)
def test_probe_refuses(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        probe(FlatModel(module, dtype=torch.float64), Classification(), worst_examples())


def worst_examples() -> TensorExamples:
    """The first two examples have labels 2: out of range for two classes."""
    found = tiny.examples()
    assert found.labels is not None
    return found.take(torch.nonzero(found.labels == 2).squeeze(1))


def test_probe_accepts_a_model_with_dropout() -> None:
    probe(FlatModel(tiny.module(0.5), dtype=torch.float64), Classification(), tiny.examples())
