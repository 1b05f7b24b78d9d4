"""Features by the last layer, against gradients by autograd."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from curate.models import Classification, FlatModel, LabelsObjective, as_objective
from curate.models.features import HIGH, WIDE, last_features, last_layer


def by_autograd(model: FlatModel, objective: Any, batch: Any, weight: nn.Parameter) -> Tensor:
    """The gradient of every row's loss by a matrix, shape (n, O, I), in eval mode."""
    with model.at(model.read(), training=False) as module:
        losses = objective.losses(module, batch)
        rows = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    return torch.stack(rows)


def test_small_layers_have_their_whole_gradient() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    model, objective = FlatModel(module), Classification()
    batch = {"features": torch.randn(6, 5), "label": torch.randint(3, (6,))}
    layer = last_layer(model, objective, batch)
    assert layer == "3"
    seen = last_features(model, objective, batch, model.read(), layer)
    truth = by_autograd(model, objective, batch, module[3].weight)
    assert seen.gradient is not None
    assert seen.outer is not None
    assert torch.allclose(seen.gradient.view(6, 3, 8), truth, atol=1e-6)
    assert torch.allclose(
        seen.outer, by_autograd(model, objective, batch, module[3].bias), atol=1e-6
    )
    assert torch.allclose(seen.slope, seen.outer.norm(dim=1), atol=1e-6)  # type: ignore[arg-type]
    assert all(p.grad is None for p in module.parameters())


def test_large_layers_keep_products_of_gradients() -> None:
    """A random projection keeps inner products, about."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, 100))
    model, objective = FlatModel(module), Classification()
    batch = {"features": torch.randn(40, 20), "label": torch.randint(100, (40,))}
    seen = last_features(model, objective, batch, model.read(), last_layer(model, objective, batch))
    truth = by_autograd(model, objective, batch, module[2].weight).flatten(1)
    assert seen.gradient is not None
    assert seen.gradient.shape == (40, WIDE * HIGH)
    one, other = (seen.gradient @ seen.gradient.T).flatten(), (truth @ truth.T).flatten()
    assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.8


def test_places_of_a_text_add_up_and_padding_does_not_count() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)

        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=self.head(self.embed(input_ids)))

    torch.manual_seed(0)
    module = Words()
    model, objective = FlatModel(module), LabelsObjective(shifts=True)
    ids = torch.randint(11, (4, 7))
    labels = ids.clone()
    labels[1, 3:] = -100
    batch = {"input_ids": ids, "labels": labels}
    layer = last_layer(model, objective, batch)
    assert layer == "head"
    seen = last_features(model, objective, batch, model.read(), layer)
    truth = by_autograd(model, objective, batch, module.head.weight)
    assert seen.gradient is not None
    assert torch.allclose(seen.gradient.view(4, 11, 6), truth, atol=1e-5)
    expected = module.embed(ids[1, :2]).mean(dim=0)  # the labels of three are learned from two
    assert torch.allclose(seen.inner[1], expected, atol=1e-6)  # type: ignore[index]


def test_a_model_without_such_a_layer_has_its_losses() -> None:
    class Curve(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.a).sum(dim=1)

    model = FlatModel(Curve())
    objective = as_objective(lambda module, batch: module(batch["features"]).square(), "square")
    batch = {"features": torch.randn(5, 3)}
    assert last_layer(model, objective, batch) is None
    seen = last_features(model, objective, batch, model.read(), None)
    assert torch.allclose(seen.losses, batch["features"].sum(dim=1).square())
    assert seen.gradient is None


def test_a_layer_that_does_not_lead_to_the_loss_is_not_it() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.aside = nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            return x @ self.a

    model = FlatModel(Aside())
    objective = as_objective(lambda module, batch: module(batch["features"]).square(), "square")
    assert last_layer(model, objective, {"features": torch.randn(5, 3)}) is None
