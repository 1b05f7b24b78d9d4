"""Tangents of single operations, against finite differences; what a watcher sees of a pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.influence.point import go_back
from curate.influence.tangents import Call, Watcher, tensors_in

ROWS = 5


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


Made = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]

CALLS: dict[str, Callable[[], Made]] = {
    "linear": lambda: (F.linear, (random(ROWS, 4), random(3, 4), random(3)), (1, 2)),
    "wide linear": lambda: (F.linear, (random(ROWS, 2), random(9, 2), random(9)), (1, 2)),
    "linear, bias alone": lambda: (F.linear, (random(ROWS, 4), random(3, 4), random(3)), (2,)),
    "linear, weight alone": lambda: (F.linear, (random(ROWS, 4), random(3, 4), None), (1,)),
    "addmm": lambda: (torch.addmm, (random(3), random(ROWS, 4), random(4, 3)), (0, 2)),
    "conv1d": lambda: (F.conv1d, (random(ROWS, 2, 6), random(3, 2, 3), random(3)), (1, 2)),
    "conv1d, weight alone": lambda: (
        F.conv1d,
        (random(ROWS, 2, 6), random(3, 2, 3), random(3)),
        (1,),
    ),
    "embedding": lambda: (F.embedding, (torch.tensor([[0, 2], [3, 3]]), random(4, 3)), (1,)),
    "layer norm": lambda: (F.layer_norm, (random(ROWS, 4), (4,), random(4), random(4)), (2, 3)),
    "layer norm, weight alone": lambda: (
        F.layer_norm,
        (random(ROWS, 4), (4,), random(4), random(4)),
        (2,),
    ),
    "product": lambda: (torch.mul, (random(ROWS, 4), random(4)), (1,)),
    "two outputs": lambda: (torch.aminmax, (random(ROWS, 4),), (0,)),
}
"""Name -> a function, its arguments, and the places of those that move."""


@pytest.mark.parametrize("name", CALLS)
def test_tangents_are_what_a_small_step_does(name: str) -> None:
    func, args, places = CALLS[name]()
    call = Call.of(func, args, {})
    along = {place: torch.randn_like(call.leaves[place]) for place in places}

    def at(reach: float) -> list[Tensor]:
        moved = {k: call.leaves[k] + reach * a for k, a in along.items()}
        again, by_name = call.arguments(moved)
        return tensors_in(func(*again, **by_name))

    expected = [(up - down) / 2e-6 for up, down in zip(at(1e-6), at(-1e-6), strict=True)]
    for tangents in (call.tangent(func, along), call._twice_backward(func, along)):
        for tangent, right in zip(tangents, expected, strict=True):
            torch.testing.assert_close(tangent, right, rtol=1e-6, atol=1e-8)
    gradient = torch.randn_like(expected[0])
    effect, right = call.effect(func, along, gradient, 0), gradient * expected[0]
    rows = len(right) if right.ndim else 1
    torch.testing.assert_close(
        effect.reshape(rows, -1).sum(1), right.reshape(rows, -1).sum(1), rtol=1e-6, atol=1e-8
    )


def test_a_call_is_the_same_by_name_and_with_other_tensors() -> None:
    x, weight = random(ROWS, 4), random(3, 4)
    call = Call.of(F.linear, (x,), {"weight": weight, "bias": None})
    args, kwargs = call.arguments({})
    assert not call.by_place
    assert args[0] is x
    assert kwargs == {"weight": weight, "bias": None}
    other = call.holding([2 * x, weight])
    assert torch.equal(other.tensors()[0], 2 * x)
    args, kwargs = other.arguments({1: -weight})
    assert torch.equal(kwargs["weight"], -weight)


def test_tensors_are_found_in_whatever_holds_them_in_order() -> None:
    a, b, c = (random(1) for _ in range(3))
    assert tensors_in({"x": [a, 1], "y": (b, {"z": c}), "w": "text"}) == [a, b, c]
    assert tensors_in(torch.sort(a))[0].shape == a.shape
    assert tensors_in(a) == [a]


def watched(model: nn.Module, x: Tensor) -> Watcher:
    """What is seen of a pass, along a direction of ones."""
    parameters = dict(model.named_parameters())
    ones = {name: torch.ones_like(p) for name, p in parameters.items()}
    watcher = Watcher(parameters, len(x), [ones])
    with watcher:
        go_back(model(x).square().sum())
    return watcher


def test_shares_of_a_layer_add_up_to_its_rows_slopes() -> None:
    model, x = nn.Linear(4, 3).double(), random(ROWS, 4)
    watcher = watched(model, x)
    (shares,) = watcher.shares.values()
    (share,) = shares
    expected = (2 * model(x) * (x.sum(1, keepdim=True) + 1)).sum(1)
    torch.testing.assert_close(share, expected.detach()[None])
    assert not watcher.missed


@pytest.mark.parametrize("shape", [(6, 4), (1, 6, 4)])
def test_tokens_that_are_laid_end_to_end_belong_to_their_rows(shape: tuple[int, ...]) -> None:
    model, x = nn.Linear(4, 3).double(), random(*shape)
    owners = torch.tensor([0, 0, 0, 1, 2, 2])
    parameters = dict(model.named_parameters())
    ones = {name: torch.ones_like(p) for name, p in parameters.items()}
    with Watcher(parameters, 3, [ones], owners) as watcher:
        go_back(model(x).square().sum())
    (share,) = next(iter(watcher.shares.values()))
    by_token = (2 * model(x) * (x.sum(-1, keepdim=True) + 1)).sum(-1).flatten().detach()
    expected = torch.stack([by_token[owners == row].sum() for row in range(3)])
    torch.testing.assert_close(share, expected[None])
    assert not watcher.missed


def test_an_operation_without_a_formula_is_missed_by_name() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(random(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x.clone() + 0).mul_(self.a)

    watcher = watched(Overwriting(), random(ROWS, 4))
    assert watcher.missed == {"a": "mul_ overwrites what it is given"}


def test_what_draws_draws_again_as_it_did_and_leaves_the_generator_alone() -> None:
    layer = nn.LSTM(4, 3, num_layers=2, dropout=0.5, batch_first=True).double()
    x, weights = random(ROWS, 2, 4), torch.linspace(0.5, 1.5, ROWS, dtype=torch.float64)
    before = torch.get_rng_state()
    first = layer(x)[0]
    torch.set_rng_state(before)
    parameters = dict(layer.named_parameters())
    ones = {name: torch.ones_like(p) for name, p in parameters.items()}
    with Watcher(parameters, ROWS, [ones]) as watcher:
        output = layer(x)[0]
        after = torch.get_rng_state()
        go_back((weights * output.sum((1, 2))).sum())
    assert torch.equal(output, first)
    assert torch.equal(torch.get_rng_state(), after)
    (shares,) = watcher.shares.values()

    def at(reach: float) -> Tensor:
        torch.set_rng_state(before)
        moved = {name: p + reach for name, p in parameters.items()}
        result: Tensor = torch.func.functional_call(layer, moved, x)[0].sum((1, 2))
        return result

    slopes = weights * (at(1e-5) - at(-1e-5)) / 2e-5
    torch.testing.assert_close(torch.stack(shares).sum(0)[0], slopes.detach(), rtol=1e-5, atol=1e-7)
