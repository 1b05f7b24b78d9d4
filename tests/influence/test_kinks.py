"""Products with the Hessian of piecewise functions, against double backward on the same pieces."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from curate.datasets import BatchExamples
from curate.influence import Differences, Point
from curate.influence.kinks import Pieces
from curate.influence.point import go_back
from curate.models import FlatModel, FunctionObjective
from curate.trajectory import Step, Task
from tests.influence.layers import FromFunction

ROWS, WIDE = 8, 6


def losses(model: Any, batch: Any) -> Tensor:
    x = batch["x"]
    squares: Tensor = model(x).reshape(len(x), -1).square().sum(dim=1)
    return squares


def through(function: Callable[[Tensor], Tensor], out: int = WIDE) -> nn.Module:
    """Linear layers with a function between them, both sides of which move."""

    def call(model: Any, x: Tensor) -> Tensor:
        inner: Tensor = model.second(function(model.first(x)))
        return inner

    return FromFunction(call, first=nn.Linear(4, WIDE), second=nn.Linear(out, 3))


def in_place(x: Tensor) -> Tensor:
    y = x * 1
    torch.relu_(y)
    return y


def photographs(*layers: nn.Module) -> nn.Module:
    def call(model: Any, x: Tensor) -> Tensor:
        y = model.first(x[:, None, :, None].expand(-1, -1, -1, 4))
        output: Tensor = model.head(model.rest(y).flatten(1))
        return output

    first = nn.Conv2d(1, 3, 3, padding=1)
    return FromFunction(call, first=first, rest=nn.Sequential(*layers), head=nn.LazyLinear(2))


def checkpointed(x: Tensor) -> Tensor:
    y: Tensor = checkpoint(lambda z: F.relu(F.relu(z) - 0.1), x, use_reentrant=False)
    return y


MODELS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: through(F.relu),
    "torch.relu": lambda: through(torch.relu),
    "method": lambda: through(Tensor.relu),
    "layer, in place": lambda: through(nn.ReLU(inplace=True)),
    "in place": lambda: through(in_place),
    "leaky": lambda: through(nn.LeakyReLU(0.3)),
    "relu6": lambda: through(nn.ReLU6()),
    "hardtanh": lambda: through(nn.Hardtanh(-0.3, 0.3)),
    "hardswish": lambda: through(lambda x: F.hardswish(6 * x)),
    "hardswish in place": lambda: through(nn.Hardswish(inplace=True)),
    "softshrink": lambda: through(nn.Softshrink(0.2)),
    "threshold": lambda: through(nn.Threshold(0.1, 0.1)),
    "prelu": lambda: nn.Sequential(nn.Linear(4, WIDE), nn.PReLU(), nn.Linear(WIDE, 3)),
    "prelu by channel": lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 3)),
    "clamp": lambda: through(lambda x: x.clamp(min=-0.2, max=0.4)),
    "abs": lambda: through(torch.abs),
    "maximum": lambda: through(lambda x: torch.maximum(x, 0.5 * x.flip(1))),
    "max": lambda: through(lambda x: x.reshape(-1, 3, 2).max(dim=2).values, 3),
    "amax": lambda: through(lambda x: x.reshape(-1, 3, 2).amax(dim=2), 3),
    "sort": lambda: through(lambda x: x.sort(dim=1).values),
    "topk": lambda: through(lambda x: x.topk(3, dim=1)[0], 3),
    "where": lambda: through(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "times a comparison": lambda: through(lambda x: x * (x > 0)),
    "routed": lambda: through(lambda x: x.gather(1, x.topk(2).indices), 2),
    "max pool": lambda: photographs(nn.GELU(), nn.MaxPool2d(2)),
    "adaptive max pool": lambda: photographs(nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
    "network": lambda: photographs(nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.MaxPool2d(2)),
    "checkpointed": lambda: through(checkpointed),
}


def point_of(make: Callable[[], nn.Module], micro: int = 0) -> Point:
    torch.manual_seed(1)
    x = torch.randn(ROWS, 4, dtype=torch.float64)
    module = make().double()
    module(x)
    task = Task(FlatModel(module), FunctionObjective(losses, "l"), BatchExamples([{"x": x}]))
    weights = torch.linspace(0.5, 1.5, ROWS)
    step = Step(torch.arange(ROWS), weights, (0.1,), seed=0, micro_batch=micro)
    return Point(task, task.model.read(), step)


def by_double_backward(point: Point, directions: Sequence[Tensor]) -> list[Tensor]:
    """J a of the mean gradient; the graph is cut to pieces by torch in the same places."""
    task, step = point.task, point.step
    parameters = task.model.unpack(point.theta)
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    batch = task.examples.batch(step.rows, task.model.device)

    def called(*args: Any) -> Any:
        return torch.func.functional_call(task.model.module, leaves, args)

    weights, inputs = step.weights.double(), [*leaves.values()]
    mean = (weights * losses(called, batch)).sum() / weights.sum()
    first = torch.autograd.grad(mean, inputs, create_graph=True)
    products = []
    for a in directions:
        along = task.model.unpack(a).values()
        product = sum((g * v).sum() for g, v in zip(first, along, strict=True))
        parts = torch.autograd.grad(product, inputs, retain_graph=True, materialize_grads=True)
        products.append(torch.cat([x.reshape(-1) for x in parts]))
    return products


@pytest.mark.parametrize("micro", [0, 3])
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_on_the_pieces(name: str, micro: int) -> None:
    point = point_of(MODELS[name], micro)
    directions = [*torch.randn(2, len(point.theta)).double()]
    products = Differences().products(point, point.gradient(), directions)
    expected = by_double_backward(point, directions)
    for product, right in zip(products, expected, strict=True):
        assert (product.bent - right).norm() <= 1e-6 * right.norm()


@pytest.mark.parametrize("function", [F.relu, in_place])
def test_a_unit_goes_on_as_it_was_however_far(function: Callable[[Tensor], Tensor]) -> None:
    point = point_of(lambda: through(function))
    task, theta = point.task, point.theta
    far = theta + torch.randn_like(theta)
    batch = task.examples.batch(point.step.rows, task.model.device)

    def gradient_by(call: Callable[[Any, Any], Tensor], *modes: Any) -> Tensor:
        with task.model.at(far, training=True) as module, ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            go_back(call(module, batch).sum())
            return task.model.gradient()

    def masked(model: Any, batch: Any) -> Tensor:
        here = task.model.unpack(theta)
        x = F.linear(batch["x"], here["first.weight"], here["first.bias"])
        y, on = model.first(batch["x"]), x > 0
        squares: Tensor = model.second(on * y).square().sum(dim=1)
        return squares

    seen = point.pieces(slice(0, ROWS))
    right = gradient_by(masked)
    assert (gradient_by(losses, Pieces(seen)) - right).norm() <= 1e-12 * right.norm()
    assert (gradient_by(losses) - right).norm() > 1e-2 * right.norm()


def test_where_there_are_no_kinks_nothing_is_seen() -> None:
    assert not point_of(lambda: through(F.gelu)).pieces(slice(0, ROWS))
