"""Hessian products from ordinary gradients, against double backward."""

from functools import partial

import pytest
import torch

from curate.datasets import BatchExamples
from curate.errors import ModelError
from curate.influence import Differences, Point
from curate.influence.differences import EVERY, FORWARD
from curate.models import FlatModel
from curate.trajectory import Task, gradient
from tests.influence.layers import LAYERS, case, gradient_of_no_loss, of_module, oracle


@pytest.mark.parametrize("name", LAYERS)
def test_products_are_those_of_double_backward(name: str) -> None:
    if name == "weight norm":
        pytest.skip("torch's own second derivative of _weight_norm is wrong (2.13)")
    point, directions = case(name)
    products = Differences().products(point, point.gradient(), list(directions))
    for (bent, slopes, error), direction in zip(products, directions, strict=True):
        expected, expected_slopes = oracle(point, direction)
        assert (bent - expected).norm() <= 1e-7 * expected.norm()
        assert (slopes - expected_slopes).norm() <= 1e-7 * expected_slopes.norm()
        assert error < 1e-6


@pytest.mark.parametrize("kind", ["hook", "straight through"])
def test_a_gradient_of_no_loss_is_refused(kind: str) -> None:
    point, direction = of_module(partial(gradient_of_no_loss, kind))
    with pytest.raises(ModelError, match=r"not the gradient of any loss.*use horizon 1"):
        Differences().products(point, point.gradient(), [direction])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_refused(dtype: torch.dtype) -> None:
    point, directions = case("linear")
    grad, half = point.gradient(), Point(point.task, point.theta.to(dtype), point.step)
    with pytest.raises(ModelError, match=r"parameters in b?float16 .* keep them in float32"):
        Differences().products(half, grad, list(directions))


def in_single_precision(point: Point) -> Point:
    x = point.task.examples.batches[0]["x"]  # type: ignore[attr-defined]
    examples = BatchExamples([{"x": x.float() if x.is_floating_point() else x}])
    model = FlatModel(point.task.model.module.float())
    return Point(Task(model, point.task.objective, examples), point.theta.float(), point.step)


@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "attention", "embedding, tied, with positions", "group norm"]
)
def test_single_precision_is_as_near_as_it_says(name: str) -> None:
    """Forward differences, the estimate from the first, which is taken both ways."""
    wide, (direction, *_) = case(name)
    expected, expected_slopes = oracle(wide, direction)
    narrow, differences = in_single_precision(wide), Differences()
    grad = gradient(narrow.task, narrow.theta, narrow.step)
    for k in range(3):  # the first is checked, the others go by what it found
        ((bent, slopes, error),) = differences.products(narrow, grad, [direction.float()])
        off = float((bent - expected).norm() / expected.norm())
        assert 0 < off < 5e-3
        assert off < 5 * error + 1e-3 * (k > 0)
        assert (slopes - expected_slopes).norm() < 5e-3 * expected_slopes.norm()


def test_the_gradient_changes_by_the_share_that_is_aimed_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the length of the direction; found in a few tries, and in one from then on."""
    wide, (direction, *_) = case("linear")
    point, shares = in_single_precision(wide), list[float]()
    grad, moved = point.gradient(), Point.moved

    def seen(self: Point, a: torch.Tensor, reach: float, origin: Point | None) -> Point:
        there = moved(self, a, reach, origin)
        change = there.gradient().mean - grad.mean
        shares.append(float(change.norm() / grad.mean.norm()))
        return there

    monkeypatch.setattr(Point, "moved", seen)
    for length in (1e-6, 1.0, 1e6):
        shares.clear()
        differences = Differences()
        differences._symmetric = True
        differences.products(point, grad, [length * direction.float()])
        assert len(shares) < 8
        shares.clear()
        differences.products(point, grad, [length * direction.float()])
        (share,) = shares
        assert FORWARD / 4 < share < 4 * FORWARD


def test_both_ways_are_taken_now_and_then_or_always() -> None:
    wide, (direction, *_) = case("linear")
    point = in_single_precision(wide)
    grad = point.gradient()
    passes = {}
    for central in (False, True):
        differences = Differences(central=central)
        differences._symmetric = True
        passes[central] = []
        for _ in range(EVERY + 1):
            before = differences.slopes._passes
            differences.products(point, grad, [direction.float()])
            passes[central].append(differences.slopes._passes - before)
    assert passes[False][1:] == [1] * (EVERY - 1) + [3]
    assert passes[True][1:] == [2] * (EVERY - 1) + [4]


def test_along_no_direction_nothing_bends() -> None:
    point, directions = case("linear")
    ((bent, slopes, error),) = Differences().products(
        point, point.gradient(), [torch.zeros_like(directions[0])]
    )
    assert (bent.abs().max(), slopes.abs().max(), error) == (0, 0, 0)


def test_a_course_resumes_from_what_was_saved() -> None:
    point, directions = case("linear")
    grad = point.gradient()
    whole, again = Differences(), Differences()
    for k, direction in enumerate(directions):
        expected = whole.products(point, grad, [direction])[0]
        product = again.products(point, grad, [direction])[0]
        assert torch.equal(product.bent, expected.bent), k
        saved, again = again.saved(), Differences()
        again.restore(saved)
