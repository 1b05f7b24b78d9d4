"""A step at some parameters, and passes beside it."""

from dataclasses import replace

import pytest
import torch

from curate.influence import Point
from curate.trajectory import gradient
from tests import tiny
from tests.influence.layers import case


def point(*, kinked: bool = False, micro: int = 0) -> Point:
    task = tiny.task(kinked=kinked)
    return Point(task, task.model.read(), tiny.steps(1, micro=micro)[0])


def test_moved_and_reweighted_are_other_points_of_the_same_step() -> None:
    here = point()
    direction = torch.randn_like(here.theta)
    there = here.moved(direction, -0.5, None)
    assert torch.equal(there.theta, here.theta - 0.5 * direction)
    assert there.step is here.step
    weights = torch.linspace(0, 1, 6, dtype=torch.float64)
    other = here.reweighted(weights)
    expected = gradient(here.task, here.theta, here.step.reweight(weights))
    assert torch.equal(other.gradient().mean, expected.mean)


@pytest.mark.parametrize("micro", [0, 4])
def test_kinks_are_seen(micro: int) -> None:
    assert point(kinked=True, micro=micro).kinked is True
    assert point(micro=micro).kinked is False


def test_a_rank_without_rows_knows_of_no_kinks() -> None:
    here = point(kinked=True)
    assert replace(here, step=here.step.keep(torch.tensor([], dtype=torch.int64))).kinked is None


@pytest.mark.parametrize("micro", [0, 4])
def test_beside_its_origin_a_kinked_model_is_on_the_origins_pieces(micro: int) -> None:
    """There its loss has a third derivative: central differences agree with themselves."""
    here = point(kinked=True, micro=micro)
    direction = torch.randn_like(here.theta)

    def product(reach: float, origin: Point | None) -> torch.Tensor:
        far, near = (here.moved(direction, r, origin).gradient().mean for r in (reach, -reach))
        return (far - near) / (2 * reach)

    kept = [product(reach, here) for reach in (1e-2, 1e-4)]
    assert (kept[0] - kept[1]).norm() < 1e-2 * kept[1].norm()
    free = [product(reach, None) for reach in (1e-1, 1e-4)]
    assert (free[0] - free[1]).norm() > 1e-2 * kept[1].norm()


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt])
def test_whatever_happens_the_module_is_as_it_was(end: type[BaseException]) -> None:
    here, directions = case("linear")
    module = here.task.model.module
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    module[1].eval()
    before = [
        (p, p.data_ptr(), p.detach().clone(), p.grad, p.grad.clone())  # type: ignore[union-attr]
        for p in module.parameters()
    ]

    def breaks(*_: object) -> None:
        raise end("in the middle")

    hook = module[2].register_forward_hook(breaks)
    with pytest.raises(end):
        here.moved(directions[0], 1, here).gradient()
    hook.remove()
    for p, place, value, grad, copy in before:
        assert p.data_ptr() == place
        assert torch.equal(p, value)
        assert p.grad is grad
        assert torch.equal(grad, copy)
    assert not module[1].training
