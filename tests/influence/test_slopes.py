"""Slopes from ordinary gradients, layer by layer, against double backward."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curate.datasets import BatchExamples
from curate.influence import Point
from curate.influence import slopes as slopes_module
from curate.influence.slopes import Slopes
from curate.models import FlatModel
from curate.trajectory import Step, Task, counting, gradient
from tests.influence.layers import (
    LAYERS,
    ROWS,
    SQUARED,
    WIDE,
    FromFunction,
    case,
    gradient_of_no_loss,
    of_module,
    oracle,
    saving,
    weight,
)


@pytest.mark.parametrize("rows", [ROWS, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_slopes_are_those_of_double_backward_without_a_backward_pass_per_row(
    monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    point, directions = case(name, rows)
    monkeypatch.setattr(slopes_module, "_one_by_one", None)
    grad, slopes = Slopes().take(point, list(directions))
    assert torch.equal(grad.mean, gradient(point.task, point.theta, point.step).mean)
    for q, direction in enumerate(directions):
        _, expected = oracle(point, direction)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(slopes[q], expected, rtol=1e-12, atol=1e-12)


def test_reentrant_checkpointing_gives_what_it_gives_without() -> None:
    point, directions = case("reentrant")
    _, slopes = Slopes().take(point, list(directions))
    module: Any = point.task.model.module
    module.call = lambda m, x: m.head(m.body(m.foot(x)))
    for q, direction in enumerate(directions):
        torch.testing.assert_close(slopes[q], oracle(point, direction)[1])


class Hidden(torch.autograd.Function):
    """A product that is not seen as a function of torch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return gradient * w, (gradient * x).sum(0)


@pytest.mark.parametrize("seen_besides", [False, True])
def test_a_use_that_nobody_sees_is_found_by_the_sum(seen_besides: bool) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        hidden: Tensor = Hidden.apply(x, m.a).sin()  # type: ignore[no-untyped-call]
        return hidden + m.a if seen_besides else hidden

    point, direction = of_module(lambda: FromFunction(call, a=weight(WIDE)))
    taker = Slopes()
    with pytest.warns(RuntimeWarning, match="parameter a.*it is used where nobody sees it"):
        _, slopes = taker.take(point, [direction])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        _, again = taker.take(point, [direction])
    torch.testing.assert_close(slopes, again)
    torch.testing.assert_close(slopes[0], oracle(point, direction)[1])


def test_rows_in_another_order_are_found_by_other_weights() -> None:
    """The sum over rows is right whatever row a share goes to."""
    order = torch.tensor([3, 0, 1, 5, 2, 4])
    point, direction = of_module(
        lambda: FromFunction(
            lambda m, x: m.a(x[order]).sin()[order.argsort()], a=nn.Linear(WIDE, 2)
        )
    )
    with pytest.warns(RuntimeWarning, match="rows cannot be told apart"):
        _, slopes = Slopes().take(point, [direction])
    torch.testing.assert_close(slopes[0], oracle(point, direction)[1])


def test_rows_that_weigh_nothing_have_slopes_too() -> None:
    point, directions = case("linear")
    point = point.reweighted(point.step.weights * (torch.arange(ROWS) % 2))
    grad, slopes = Slopes().take(point, [directions[0]])
    torch.testing.assert_close(slopes[0], oracle(point, directions[0])[1])
    assert torch.equal(grad.mean, gradient(point.task, point.theta, point.step).mean)


@pytest.mark.parametrize("kind", ["hook", "straight through"])
def test_slopes_are_those_of_the_gradient_that_trains(kind: str) -> None:
    """Also where that is the gradient of no loss."""
    point, direction = of_module(partial(gradient_of_no_loss, kind))
    _, slopes = Slopes().take(point, [direction])
    one = point.reweighted(torch.eye(ROWS, dtype=torch.float64)[2])
    alone = one.gradient().mean @ direction
    assert float(slopes[0, 2]) == pytest.approx(float(alone), rel=1e-10)


def test_memory_under_checkpointing_stays_down() -> None:
    """What slopes need of a checkpointed layer is computed again with it, not held."""
    wide, layers = 64, 6

    def taken(*, checkpoints: bool) -> tuple[Tensor, int]:
        def call(m: Any, x: Tensor) -> Tensor:
            for layer in m.body:
                x = saving(layer, x) if checkpoints else layer(x)
            return x

        torch.manual_seed(0)
        body = [
            nn.Sequential(nn.Linear(wide, 4 * wide), nn.Tanh(), nn.Linear(4 * wide, wide))
            for _ in range(layers)
        ]
        model = FlatModel(FromFunction(call, body=nn.ModuleList(body)))
        task = Task(model, SQUARED, BatchExamples([{"x": torch.randn(32, wide)}]))
        step = Step(torch.arange(32), torch.ones(32), (0.1,), seed=1)
        point, taker = Point(task, model.read(), step), Slopes()
        taker._attributed = True
        with counting(point.theta, *model.held) as sizes:
            _, slopes = taker.take(point, [torch.randn(model.size)])
        return slopes, sum(sizes.values())

    (slopes, most), (saved_slopes, least) = taken(checkpoints=False), taken(checkpoints=True)
    torch.testing.assert_close(saved_slopes, slopes)
    assert least < most / 2


@pytest.mark.parametrize("rows", [ROWS, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_directions_may_come_after_the_pass(name: str, rows: int) -> None:
    point, directions = case(name, rows)
    _, expected = Slopes().take(point, list(directions))
    slopes = Slopes()
    seen = slopes.see(point)
    assert seen is not None
    assert torch.equal(seen.grad.mean, gradient(point.task, point.theta, point.step).mean)
    torch.testing.assert_close(
        slopes.along(seen, list(directions)), expected, rtol=1e-13, atol=1e-14
    )


def test_a_pass_in_parts_or_over_rows_that_weigh_nothing_is_not_seen() -> None:
    point, _ = case("linear")
    weightless = point.step.weights.clone()
    weightless[0] = 0
    assert Slopes().see(point.reweighted(weightless)) is None
    parts = replace(point.step, micro_batch=1)
    assert Slopes().see(replace(point, step=parts)) is None


def test_a_use_that_nobody_sees_is_found_after_the_pass_too() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        hidden: Tensor = Hidden.apply(x, m.a).sin()  # type: ignore[no-untyped-call]
        return hidden

    point, direction = of_module(lambda: FromFunction(call, a=weight(WIDE)))
    slopes = Slopes()
    seen = slopes.see(point)
    assert seen is not None
    with pytest.warns(RuntimeWarning, match="parameter a.*it is used where nobody sees it"):
        found = slopes.along(seen, [direction])
    torch.testing.assert_close(found[0], oracle(point, direction)[1])
